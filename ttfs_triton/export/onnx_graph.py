"""A network as an ONNX model: the closed form in standard operators, no custom domain, any batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ttfs_triton.export.shared import as_array, metadata, require, synapse_arrays
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder
from ttfs_triton.nn.graph import Stage, Wire, network_graph
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d, SpikeUpsample2d, WeightedLinear
from ttfs_triton.nn.on_chip import psp_persistence
from ttfs_triton.nn.prepare import plain_skip_weights
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.weighted import skip_step

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18  # the oldest with all operators used here; every onnxruntime since 1.14 reads its file format (IR 8)
IR_VERSION = 8
RESERVED = ("images", "logits", "spike_times", "threshold")  # names that no layer may have


def to_onnx(
    network: nn.Module,
    *,
    image_shape: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    dataset: str = "",
    hidden: bool = False,
) -> ModelProto:
    """Translate a network, as it computes in evaluation mode, into an ONNX model.

    Input "images" [N, *image_shape] float32, as the network reads them. Outputs, float32: "logits" [N, classes], equal
    to `network(images)`; "spike_times" [N, classes], equal to those of the readout's `decide`: in windows from the
    output window's start, inf for silent neurons; with `hidden`, the activations of every layer under its name
    ("conv1", ...), before pooling. Both contractions of a layer share one weight. Dropout is off; standardisation and
    batch norm are folded into the weights. For a network on a chip's grid, weights are rounded, and so are spike times
    after every layer. Sums are in floating point, so a spike at the very border of two steps may come in the other
    step. Registers do not saturate.

    Args:
        network: network that `network_graph` accepts.
        image_shape: see `network_graph`.
        class_names: one name per class, kept in the metadata. Default: numbers.
        dataset: name of the training data, for the metadata.
        hidden: also output the activations of hidden layers.
    Returns:
        The model, checked by `onnx.checker`. Metadata: format_version, network (configuration, JSON), class_names
        (JSON), dataset, psp_persistence, window, input, outputs, and the network's grid if it has one.
    Raises:
        ValueError: the network has layers of other packages, or there are more or fewer class names than classes.
        RuntimeError: onnx is not installed.
    Source: Wei et al., ICCV 2023, Eq. 6-8.
    """
    onnx = require("to_onnx", "onnx", "onnx")
    structure = network_graph(network, image_shape)
    pixels = "pixels as mean and std of the network's encoder expect them; the model normalises"
    about = metadata(
        *("to_onnx", network, structure, class_names, dataset),
        window="1.0; spike of layer l at time t: activation (l + 1) - t in [0, 1], 0 is silent",
        input="pixels in [0, 1]" if structure.encoder.kind == "latency" else pixels,
        outputs="logits; spike_times in windows from the output window's start, inf is silent; activations by layer",
    )
    graph, layers = _Graph(onnx), []
    values: dict[str | None, _Value] = {None: _Value(graph, "images")}
    *others, last = structure.stages
    for stage in others:
        graph.layer = f"{stage.name}.activations" if stage.name in RESERVED else stage.name
        arriving, skip = _arriving(values, stage), None if stage.skip is None else _skip(stage, values)
        values[stage.name] = _activations(stage.layer, arriving, skip).named(graph.layer)
        layers.append(values[stage.name].name)
    graph.layer = last.name
    outputs = _readout(structure.readout, _arriving(values, last))
    model = graph.model([*outputs, *(layers if hidden else [])], ["N", *structure.image_shape])
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and weights in the order in which they are added.

    Attributes:
        layer: name of the present layer; names of its nodes begin with it.
    """

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.weights, self.layer = onnx, [], {}, ""

    def constant(self, name: str, value: np.ndarray | Sequence[int] | float, dtype: Any = np.float32) -> _Value:
        self.weights[name] = self.onnx.numpy_helper.from_array(np.asarray(value, dtype), name)
        return _Value(self, name)

    def model(self, outputs: list[str], image_shape: list[str | int]) -> ModelProto:
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "ttfs_triton",
            [helper.make_tensor_value_info("images", kind, image_shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            list(self.weights.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="ttfs-triton", opset_imports=opsets, ir_version=IR_VERSION)
        return self.onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _operator(name: str) -> Callable[[_Value, _Value | float], _Value]:
    return lambda value, other: value.apply(name, other)


class _Value:
    """A tensor of a model under construction; operations on it add nodes to the graph."""

    def __init__(self, graph: _Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def apply(self, operator: str, *others: _Value | float, **attributes: Any) -> _Value:
        """Add an ONNX operator that reads this tensor and others."""
        graph = self.graph
        name = f"{graph.layer}.{operator.lower()}{len(graph.nodes)}"
        values = (x if isinstance(x, _Value) else graph.constant(f"constant_{x}", x) for x in others)
        inputs = [self.name, *(value.name for value in values)]
        graph.nodes.append(graph.onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return _Value(graph, name)

    def named(self, name: str) -> _Value:
        """Rename this value, which must be the last one computed."""
        node = self.graph.nodes[-1]
        assert node.output[0] == self.name, "nothing reads it yet"
        node.name = node.output[0] = name
        return _Value(self.graph, name)

    def where(self, this: _Value | float, that: _Value | float) -> _Value:
        """`this` where the condition holds, else `that`."""
        return self.apply("Where", this, that)

    def clip(self) -> _Value:
        """The value clamped to [0, 1]."""
        return self.apply("Clip", 0.0, 1.0)

    def spikes(self) -> _Value:
        """1 where an activation is above 0, else 0."""
        return (self > 0.0).apply("Cast", to=self.graph.onnx.TensorProto.FLOAT)

    __add__, __sub__, __mul__, __truediv__ = map(_operator, ("Add", "Sub", "Mul", "Div"))
    __and__, __lt__, __gt__ = map(_operator, ("And", "Less", "Greater"))


def _arriving(values: dict[str | None, _Value], stage: Stage) -> _Value:
    """Inputs of a layer, concatenated if they come from several layers."""
    first, *others = (_route(values, wire) for wire in stage.inputs)
    return first.apply("Concat", *others, axis=1) if others else first


def _route(values: dict[str | None, _Value], wire: Wire) -> _Value:
    """Activations of a wire's source, as they reach the layer."""
    value = values[wire.source]
    for module in wire.route:
        if isinstance(module, EarliestSpikePool2d):
            sizes = {"kernel_shape": module.kernel_size, "strides": module.stride, "pads": 2 * module.padding}
            value = value.apply("MaxPool", ceil_mode=int(module.ceil_mode), **sizes)
        elif isinstance(module, SpikeUpsample2d):
            factor = value.graph.constant(
                f"{value.graph.layer}.scales{len(value.graph.nodes)}", [1, 1, *module.scale_factor]
            )
            options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            value = value.apply("Resize", _Value(value.graph, ""), factor, **options)
        else:
            assert isinstance(module, nn.Flatten), "nothing else stands between layers"
            value = value.apply("Flatten", axis=1)
    return value


def _skip(stage: Stage, values: dict[str | None, _Value]) -> tuple[_Value, _Value]:
    """Delayed activations, one per neuron, and weights that broadcast to them; see `WeightedLayer.delayed`."""
    assert stage.skip is not None
    value, layer = _route(values, stage.skip), stage.weighted
    graph, name, dimensions = value.graph, value.graph.layer, 1 + len(stage.shape)
    weights = plain_skip_weights(layer)
    assert weights is not None
    if steps := skip_step(stage.skip.shape, stage.shape):
        bounds = {"starts": [0, 0], "ends": [2**31 - 1] * 2, "axes": [2, 3], "steps": steps}
        value = value.apply(
            "Slice", *(graph.constant(f"{name}.skip.{key}", values, np.int64) for key, values in bounds.items())
        )
    if missing := stage.shape[0] - layer.skip:
        pads = [0] * (dimensions + 1) + [missing] + [0] * (dimensions - 2)
        value = value.apply("Pad", graph.constant(f"{name}.skip.pads", pads, np.int64))
    beside = weights.view(-1, *(1,) * (dimensions - 2))
    return value, graph.constant(f"{name}.skip.weight", as_array(beside))


def _activations(layer: nn.Module, value: _Value, skip: tuple[_Value, _Value] | None) -> _Value:
    """Activations of a layer; on a grid, rounded to the nearest time step."""
    assert isinstance(layer, DFTConv2d | DFTLinear | LatencyEncoder), "network_graph knows no other layer"
    if isinstance(layer, AnalogEncoder):
        name, constant = value.graph.layer, value.graph.constant
        mean, std = (constant(f"{name}.{key}", as_array(getattr(layer, key))) for key in ("mean", "std"))
        value = (value - mean) / std
    if isinstance(layer, LatencyEncoder):
        value = value.clip()
    else:
        value = _fire(*_contractions(layer, value, psp_persistence(layer), skip))
    if layer.grid is None:
        return value
    return (value * layer.grid.time_steps + 0.5).apply("Floor") / layer.grid.time_steps


def _contractions(
    layer: DFTConv2d | WeightedLinear,
    value: _Value,
    sigma: float,
    skip: tuple[_Value, _Value] | None = None,
) -> tuple[_Value, _Value | None]:
    """A = Σ w·x + v·x_skip + b, and σ·W with W = Σ w·[x > 0] + v·[x_skip > 0], or None if σ = 0."""
    graph, (weights, biases) = value.graph, synapse_arrays(layer)
    weight = graph.constant(f"{graph.layer}.weight", weights)
    bias = [] if biases is None else [graph.constant(f"{graph.layer}.bias", biases)]
    operator, attributes = "Gemm", dict[str, Any](transB=1)
    if isinstance(layer, DFTConv2d):
        operator, attributes = "Conv", {"kernel_shape": layer.kernel_size, "strides": layer.stride}
        attributes |= {"pads": [*layer.padding] * 2, "dilations": layer.dilation, "group": layer.groups}
    potential = value.apply(operator, weight, *bias, **attributes)
    if skip is not None:
        potential = potential + skip[0] * skip[1]
    if sigma == 0:
        return potential, None
    slope = value.spikes().apply(operator, weight, **attributes)
    if skip is not None:
        slope = slope + skip[0].spikes() * skip[1]
    return potential, slope if sigma == 1 else slope * sigma


def _fire(potential: _Value, slope: _Value | None) -> _Value:
    """1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0. The divisor is 1 where it is not used."""
    if slope is None:
        return potential.clip()
    end, below = potential + slope, potential < 1.0
    inside = below & (end > 0.0)
    crossing = end / inside.where(slope + 1.0, 1.0)
    return inside.where(crossing, below.where(0.0, 1.0))


def _readout(readout: Readout, value: _Value) -> list[str]:
    """Add the readout; returns the names of logits and of spike times."""
    potential, slope = _contractions(readout, value, readout.neuron.psp_persistence)
    if readout.at == "first_spike":
        times = _spike_times(readout, potential, slope)
        (times.apply("Min", 1.0) * -readout.threshold).named("logits")
        return ["logits", times.name]
    at_end = readout.at == "potential_end"
    (potential.apply("Identity") if slope is None or not at_end else potential + slope).named("logits")
    return ["logits", _spike_times(readout, potential, slope).name]


def _spike_times(readout: Readout, potential: _Value, slope: _Value | None) -> _Value:
    """Times s at which A + V₀ + W·s meets the ramp θ·(1 − s); see `first_spike_times`."""
    graph, threshold = potential.graph, readout.threshold
    start = potential + readout.initial_potential
    slope = potential * 0.0 if slope is None else slope
    end, below = start + slope, start < threshold
    inside = below & (end > 0.0)
    steepness = inside.where(slope + threshold, 1.0)
    crossing = (graph.constant("threshold", threshold) - start) / steepness
    time = inside.where(crossing, below.where(np.inf, 0.0))
    if readout.grid is not None:
        steps = float(readout.grid.time_steps)
        stamp = (time * steps - 0.5).apply("Ceil")
        time = (stamp < steps).where(stamp.apply("Max", 0.0) / steps, np.inf)
    return time.named("spike_times")
