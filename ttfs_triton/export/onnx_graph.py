"""A network as an ONNX model: the closed form in standard operators, no custom domain, any batch size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ttfs_triton.export.shared import check_names, configuration, persistence, require, synapse_arrays
from ttfs_triton.nn.ann import ANNConv2d, ANNLinear
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.folding import plain_skip_weights
from ttfs_triton.nn.graph import NetworkGraph, Stage, Wire
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.pooling import EarliestSpikePool2d
from ttfs_triton.nn.readout import FirstSpikeReadout, PotentialReadout, Readout
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer, WeightedLinear, skip_step

if TYPE_CHECKING:
    from onnx import ModelProto

FORMAT_VERSION = 1
OPSET = 18  # the oldest that has all we need; its file format (IR 8) is read by every onnxruntime since 1.14
IR_VERSION = 8


RESERVED = ("images", "logits", "spike_times")  # names of inputs and outputs, which no layer's may be


def to_onnx(
    network: nn.Module,
    *,
    image_shape: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    dataset: str = "",
    hidden: bool = False,
) -> ModelProto:
    """Translate a network, as it computes in evaluation mode, layer by layer.

    Input "images" [N, *image_shape] float32, as the network takes them. Outputs, float32:
    "logits" [N, classes], what `network(images)` gives; of spiking networks also "spike_times" [N, classes], what
    its readout's `decide` gives: from the output window's start, in windows, inf for silent neurons; with `hidden`,
    the activations of every layer under its name ("conv1", ...), before pooling. Both contractions of a layer share one
    weight. Dropout is off; standardisation and batch norm are folded into the weights. Of a network on a chip's grid,
    weights are the rounded ones, and spike times are rounded behind each layer; sums are in floating point, so that a
    spike at the very border of two steps may come in the other one.

    Args:
        network: what `network_graph` takes, spiking or analog.
        image_shape: as of `network_graph`.
        class_names: one a class, kept in the metadata. Default: numbers.
        dataset: name of the training data, for the metadata.
        hidden: also output the activations of hidden layers.
    Returns:
        The model, checked by `onnx.checker`. Metadata: format_version, network (configuration, JSON), class_names
        (JSON), dataset, psp_persistence, window, input, outputs, and grid of a network that is on one.
    Raises:
        NetworkError: a model that is no network of our layers; says what to use in its place.
        ValueError: as many class names as classes are needed.
        RuntimeError: onnx is not installed.
    Source: Wei et al., ICCV 2023, Eq. 6-8.
    """
    onnx = require("to_onnx", "onnx", "onnx")
    found = network_graph(network, image_shape)
    names = check_names("to_onnx", found, class_names)
    graph, outputs = _Graph(onnx), []
    values: dict[str | None, str] = {None: "images"}
    *others, last = found.stages
    for stage in others:
        name = f"{stage.name}.activations" if stage.name in RESERVED else stage.name
        skip = None if stage.skip is None else _skip(graph, name, stage, found, values)
        arriving = _route(graph, name, stage.input, values)
        values[stage.name] = _hidden_layer(graph, name, stage.layer, arriving, skip)
        outputs += [values[stage.name]] if hidden else []
    arriving = _route(graph, last.name, last.input, values)
    outputs = [*_readout(graph, last.name, found.readout, arriving, spiking=not found.analog), *outputs]
    model = graph.model(outputs, ["N", *found.image_shape])
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "network": json.dumps(configuration(network, found)),
        "class_names": json.dumps(names, ensure_ascii=False),
        "dataset": dataset,
        "psp_persistence": persistence(found),
        "window": "1.0; spike of layer l at time t: activation (l + 1) - t in [0, 1], 0 is silent",
        "input": _input_text(found),
        "outputs": "logits; spike_times in windows from the output window's start, inf is silent; activations by layer",
    }
    if found.grid is not None:
        metadata["grid"] = json.dumps(found.grid.to_dict())
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def _input_text(graph: NetworkGraph) -> str:
    if graph.encoder.kind == "latency":
        return f"pixels in [0, {graph.max_value}]"
    return "pixels as mean and std of the network's encoder expect them; the model normalises"


class _Graph:
    """Nodes and weights in the order in which they are added; every value has the name of its node."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.weights = onnx, [], {}
        self.shapes: dict[str, list[str | int]] = {}

    def add(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray | float) -> str:
        self.weights[name] = self.onnx.numpy_helper.from_array(np.asarray(value, np.float32), name)
        return name

    def number(self, value: float) -> str:
        return self.constant(f"constant_{value}", value)

    def integers(self, name: str, values: Sequence[int]) -> str:
        self.weights[name] = self.onnx.numpy_helper.from_array(np.asarray(values, np.int64), name)
        return name

    def spikes(self, name: str, value: str) -> str:
        """1 where an activation is above 0, else 0."""
        above = self.add("Greater", f"{name}.fired", value, self.number(0.0))
        return self.add("Cast", f"{name}.spikes", above, to=self.onnx.TensorProto.FLOAT)

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


def _route(graph: _Graph, name: str, wire: Wire, values: dict[str | None, str]) -> str:
    """What reaches a layer: the activations of its source, pooled and flattened."""
    value = values[wire.source]
    for place, module in enumerate(wire.route, 1):
        step = f"{name}.route{place}"
        if isinstance(module, EarliestSpikePool2d):
            value = graph.add("MaxPool", step, value, kernel_shape=module.kernel_size, strides=module.stride)
        else:
            assert isinstance(module, nn.Flatten), "nothing else stands between layers"
            value = graph.add("Flatten", step, value, axis=1)
    return value


def _skip(
    graph: _Graph, name: str, stage: Stage, network: NetworkGraph, values: dict[str | None, str]
) -> tuple[str, np.ndarray]:
    """Delayed spikes, one a neuron, and their weights beside them; see `WeightedLayer.arriving`."""
    assert stage.skip is not None
    assert stage.skip.source is not None
    value, layer = _route(graph, f"{name}.skip", stage.skip, values), stage.weighted
    emitted = torch.empty(1, *network[stage.skip.source].shape, device="meta")
    weights, dimensions = plain_skip_weights(layer), 1 + len(stage.shape)
    assert weights is not None
    steps = skip_step(stage.skip.deliver(emitted).shape[1:], stage.shape)
    if steps:
        bounds = {"starts": [0, 0], "ends": [2**31 - 1] * 2, "axes": [2, 3], "steps": steps}
        named = [graph.integers(f"{name}.skip.{key}", numbers) for key, numbers in bounds.items()]
        value = graph.add("Slice", f"{name}.skip.positions", value, *named)
    missing = stage.shape[0] - layer.skip
    if missing:
        pads = [0] * (dimensions + 1) + [missing] + [0] * (dimensions - 2)
        value = graph.add("Pad", f"{name}.skip.channels", value, graph.integers(f"{name}.skip.pads", pads))
    return value, weights.detach().cpu().float().view(-1, *(1,) * (dimensions - 2)).numpy()


def _hidden_layer(graph: _Graph, name: str, layer: nn.Module, value: str, skip: tuple[str, np.ndarray] | None) -> str:
    """Activations behind a layer, under the layer's name; on a grid, rounded to time steps."""
    assert isinstance(layer, WeightedLayer | LatencyEncoder), "network_graph knows no other layer"
    grid = layer.grid
    if grid is None:
        return _activations(graph, name, name, layer, value, skip)
    unrounded = _activations(graph, f"{name}.any_time", name, layer, value, skip)
    steps = graph.add("Mul", f"{name}.in_steps", unrounded, graph.number(grid.time_steps))
    if grid.compare_at == "middle":  # rounded to the nearest step
        steps = graph.add("Add", f"{name}.nearest", steps, graph.number(0.5))
    whole = graph.add("Floor", f"{name}.whole", steps)
    return graph.add("Div", name, whole, graph.number(grid.time_steps))


def _activations(
    graph: _Graph, out: str, name: str, layer: nn.Module, value: str, skip: tuple[str, np.ndarray] | None
) -> str:
    """What a layer of this name computes, as the value `out`."""
    if isinstance(layer, LatencyEncoder):
        scaled = graph.add("Div", f"{name}.scaled", value, graph.number(layer.max_value))
        return graph.add("Clip", out, scaled, graph.number(0.0), graph.number(1.0))
    if isinstance(layer, AnalogEncoder | SignedEncoder):
        for operator, step, values in (("Sub", "mean", layer.mean), ("Div", "std", layer.std)):
            constant = graph.constant(f"{name}.{step}", values.detach().cpu().numpy())
            value = graph.add(operator, f"{name}.{operator.lower()}_{step}", value, constant)
    if isinstance(layer, ANNConv2d | ANNLinear):
        potential, _ = _contractions(graph, name, layer, value, 0.0, skip)
        return graph.add("Clip", out, potential, graph.number(0.0), graph.number(1.0))
    assert isinstance(layer, DFTConv2d | DFTLinear), "network_graph knows no other layer"
    return _fire(graph, out, name, *_contractions(graph, name, layer, value, layer.neuron.psp_persistence, skip))


def _contractions(
    graph: _Graph,
    name: str,
    layer: WeightedConv2d | WeightedLinear,
    value: str,
    persistence: float,
    skip: tuple[str, np.ndarray] | None = None,
) -> tuple[str, str | None]:
    """A = Σ w·x + v·x_skip + b and σ·W, W = Σ w·[x > 0] + v·[x_skip > 0]; no W if σ = 0."""
    weight, bias = synapse_arrays(layer)
    synapses = [graph.constant(f"{name}.weight", weight)]
    biased = synapses if bias is None else [*synapses, graph.constant(f"{name}.bias", bias)]
    if isinstance(layer, WeightedConv2d):
        operator, attributes = (
            "Conv",
            {
                "kernel_shape": layer.kernel_size,
                "strides": layer.stride,
                "pads": [*layer.padding, *layer.padding],
                "dilations": layer.dilation,
                "group": layer.groups,
            },
        )
    else:
        operator, attributes = "Gemm", {"transB": 1}
    potential = graph.add(operator, f"{name}.potential", value, *biased, **attributes)
    if skip is not None:
        weights = graph.constant(f"{name}.skip.weight", skip[1])
        late = graph.add("Mul", f"{name}.skip.weighted", skip[0], weights)
        potential = graph.add("Add", f"{name}.potential_with_skip", potential, late)
    if persistence == 0:
        return potential, None
    slope = graph.add(operator, f"{name}.slope", graph.spikes(name, value), *synapses, **attributes)
    if skip is not None:
        spikes = graph.spikes(f"{name}.skip", skip[0])
        late = graph.add("Mul", f"{name}.skip.slope", spikes, f"{name}.skip.weight")
        slope = graph.add("Add", f"{name}.slope_with_skip", slope, late)
    if persistence != 1:
        slope = graph.add("Mul", f"{name}.persistent_slope", slope, graph.number(persistence))
    return potential, slope


def _fire(graph: _Graph, out: str, name: str, potential: str, slope: str | None) -> str:
    """1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0. The divisor is 1 where it is not used."""
    zero, one = graph.number(0.0), graph.number(1.0)
    if slope is None:
        return graph.add("Clip", out, potential, zero, one)
    end = graph.add("Add", f"{name}.end", potential, slope)
    below = graph.add("Less", f"{name}.below", potential, one)
    crosses = graph.add("Greater", f"{name}.crosses", end, zero)
    inside = graph.add("And", f"{name}.inside", below, crosses)
    closing_speed = graph.add("Add", f"{name}.closing_speed", slope, one)
    divisor = graph.add("Where", f"{name}.divisor", inside, closing_speed, one)
    crossing = graph.add("Div", f"{name}.crossing", end, divisor)
    elsewhere = graph.add("Where", f"{name}.elsewhere", below, zero, one)
    return graph.add("Where", out, inside, crossing, elsewhere)


def _readout(graph: _Graph, name: str, readout: Readout, value: str, *, spiking: bool) -> list[str]:
    """Names of the outputs: "logits" and, of spiking networks, "spike_times"."""
    potential, slope = _contractions(graph, name, readout, value, readout.neuron.psp_persistence)
    reads_times = isinstance(readout, FirstSpikeReadout)
    times = _spike_times(graph, name, readout, potential, slope) if spiking or reads_times else None
    if reads_times:
        assert times is not None
        within = graph.add("Min", f"{name}.within_window", times, graph.number(readout.window))
        graph.add("Mul", "logits", within, graph.number(-readout.threshold / readout.window))
    elif isinstance(readout, PotentialReadout) and readout.at == "end" and slope is not None:
        graph.add("Add", "logits", potential, slope)
    else:
        graph.add("Identity", "logits", potential)
    return ["logits"] if times is None else ["logits", times]


def _spike_times(graph: _Graph, name: str, readout: Readout, potential: str, slope: str | None) -> str:
    """When A + V₀ + W·s meets the ramp θ·(1 − s/S); see `first_spike_times`."""
    threshold, zero = graph.number(readout.threshold), graph.number(0.0)
    start = graph.add("Add", f"{name}.start", potential, graph.number(readout.initial_potential))
    slope = slope if slope is not None else graph.add("Mul", f"{name}.no_slope", potential, zero)
    rise = graph.add("Mul", f"{name}.rise", slope, graph.number(readout.window))
    end = graph.add("Add", f"{name}.end", start, rise)
    below = graph.add("Less", f"{name}.below", start, threshold)
    crosses = graph.add("Greater", f"{name}.crosses", end, zero)
    inside = graph.add("And", f"{name}.inside", below, crosses)
    closing_speed = graph.add("Add", f"{name}.closing_speed", slope, graph.number(readout.threshold / readout.window))
    steepness = graph.add("Where", f"{name}.steepness", inside, closing_speed, graph.number(1.0))
    missing = graph.add("Sub", f"{name}.missing", threshold, start)
    crossing = graph.add("Div", f"{name}.crossing", missing, steepness)
    elsewhere = graph.add("Where", f"{name}.elsewhere", below, graph.number(np.inf), zero)
    if readout.grid is None:
        return graph.add("Where", "spike_times", inside, crossing, elsewhere)
    clock = readout.grid.clock
    steps, any_time = graph.number(clock.steps), graph.add("Where", f"{name}.any_time", inside, crossing, elsewhere)
    late = graph.add("Mul", f"{name}.late", any_time, steps)
    if clock.compare_at == "middle":
        late = graph.add("Sub", f"{name}.nearest", late, graph.number(0.5))
    stamp = graph.add("Ceil", f"{name}.stamp", late)
    last = float(clock.step_of(torch.tensor(len(clock.instants(readout.window)))))
    within = graph.add("Less", f"{name}.within", stamp, graph.number(last))
    time = graph.add("Div", f"{name}.stamped", graph.add("Max", f"{name}.not_before", stamp, zero), steps)
    return graph.add("Where", "spike_times", within, time, graph.number(np.inf))
