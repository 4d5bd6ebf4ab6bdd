"""A network as an ONNX model: the closed form in standard operators, no custom domain, any batch size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ttfs_triton.export.shared import check_network, require, synapse_arrays
from ttfs_triton.nn.ann import ANNConv2d, ANNLinear
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.models import TTFSNetwork
from ttfs_triton.nn.pooling import EarliestSpikePool2d
from ttfs_triton.nn.readout import FirstSpikeReadout, PotentialReadout, Readout
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLinear

if TYPE_CHECKING:
    from onnx import ModelProto

FORMAT_VERSION = 1
OPSET = 18  # the oldest that has all we need; its file format (IR 8) is read by every onnxruntime since 1.14
IR_VERSION = 8


def to_onnx(
    network: TTFSNetwork, *, class_names: Sequence[str] | None = None, dataset: str = "", hidden: bool = False
) -> ModelProto:
    """Translate a network, as it computes in evaluation mode, layer by layer.

    Input "images" [N, in_channels, height, width] float32, as the network takes them. Outputs, float32:
    "logits" [N, classes], what `network(images)` gives; of spiking networks also "spike_times" [N, classes], what
    `network.decide(images)` gives: from the output window's start, in windows, inf for silent neurons; with `hidden`,
    the activations of every layer under its name ("conv1", ...), before pooling. Both contractions of a layer share one
    weight. Dropout is off; standardisation and batch norm are folded into the weights. Of a network on a chip's grid,
    weights are the rounded ones, and spike times are rounded behind each layer; sums are in floating point, so that a
    spike at the very border of two steps may come in the other one.

    Args:
        network: spiking or analog.
        class_names: one a class, kept in the metadata. Default: numbers.
        dataset: name of the training data, for the metadata.
        hidden: also output the activations of hidden layers.
    Returns:
        The model, checked by `onnx.checker`. Metadata: format_version, network (configuration, JSON), class_names
        (JSON), dataset, psp_persistence, window, input, outputs, and grid of a network that is on one.
    Raises:
        TypeError: `network` is not a `TTFSNetwork`, or one with a layer that is not ours.
        ValueError: as many class names as classes are needed.
        RuntimeError: onnx is not installed.
    Source: Wei et al., ICCV 2023, Eq. 6-8.
    """
    onnx = require("to_onnx", "onnx", "onnx")
    names = check_network("to_onnx", network, class_names)
    graph = _Graph(onnx)
    value, outputs = "images", []
    for name, layer in network.features.named_children():
        value = _hidden_layer(graph, name, layer, value, network.config.grid)
        if hidden and not isinstance(layer, EarliestSpikePool2d | nn.Flatten):
            outputs.append(value)
    config = network.config
    outputs = [*_readout(graph, network.readout, value, spiking=not config.analog), *outputs]
    model = graph.model(outputs, ["N", config.in_channels, *config.image_size])
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "network": json.dumps(config.to_dict()),
        "class_names": json.dumps(names, ensure_ascii=False),
        "dataset": dataset,
        "psp_persistence": repr(config.neuron.psp_persistence),
        "window": "1.0; spike of layer l at time t: activation (l + 1) - t in [0, 1], 0 is silent",
        "input": _input_text(network),
        "outputs": "logits; spike_times in windows from the output window's start, inf is silent; activations by layer",
    }
    if config.grid is not None:
        metadata["grid"] = json.dumps(config.grid.to_dict())
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def _input_text(network: TTFSNetwork) -> str:
    config = network.config
    if config.encoder == "latency":
        return f"pixels in [0, {config.max_value}]"
    return "pixels as mean and std of the network's configuration expect them; the model normalises"


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


def _hidden_layer(graph: _Graph, name: str, layer: nn.Module, value: str, grid: Grid | None) -> str:
    """Activations behind a layer, under the layer's name; on a grid, rounded to time steps."""
    if isinstance(layer, EarliestSpikePool2d):
        return graph.add("MaxPool", name, value, kernel_shape=layer.kernel_size, strides=layer.stride)
    if isinstance(layer, nn.Flatten):
        return graph.add("Flatten", name, value, axis=1)
    if grid is None:
        return _activations(graph, name, name, layer, value)
    unrounded = _activations(graph, f"{name}.any_time", name, layer, value)
    steps = graph.add("Mul", f"{name}.in_steps", unrounded, graph.number(grid.time_steps))
    if grid.compare_at == "middle":  # rounded to the nearest step
        steps = graph.add("Add", f"{name}.nearest", steps, graph.number(0.5))
    whole = graph.add("Floor", f"{name}.whole", steps)
    return graph.add("Div", name, whole, graph.number(grid.time_steps))


def _activations(graph: _Graph, out: str, name: str, layer: nn.Module, value: str) -> str:
    """What a layer of this name computes, as the value `out`."""
    if isinstance(layer, LatencyEncoder):
        scaled = graph.add("Div", f"{name}.scaled", value, graph.number(layer.max_value))
        return graph.add("Clip", out, scaled, graph.number(0.0), graph.number(1.0))
    if isinstance(layer, AnalogEncoder | SignedEncoder):
        for operator, step, values in (("Sub", "mean", layer.mean), ("Div", "std", layer.std)):
            constant = graph.constant(f"{name}.{step}", values.detach().cpu().numpy())
            value = graph.add(operator, f"{name}.{operator.lower()}_{step}", value, constant)
    if isinstance(layer, ANNConv2d | ANNLinear):
        potential, _ = _contractions(graph, name, layer, value, 0.0)
        return graph.add("Clip", out, potential, graph.number(0.0), graph.number(1.0))
    if isinstance(layer, DFTConv2d | DFTLinear):
        return _fire(graph, out, name, *_contractions(graph, name, layer, value, layer.neuron.psp_persistence))
    raise TypeError(f"to_onnx: layers must be those of ttfs_triton.nn; got {type(layer).__name__} ({name}).")


def _contractions(
    graph: _Graph, name: str, layer: WeightedConv2d | WeightedLinear, value: str, persistence: float
) -> tuple[str, str | None]:
    """A = Σ w·x + b and σ·W, W = Σ w·[x > 0]; no W if σ = 0."""
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
    if persistence == 0:
        return potential, None
    above = graph.add("Greater", f"{name}.fired", value, graph.number(0.0))
    spikes = graph.add("Cast", f"{name}.spikes", above, to=graph.onnx.TensorProto.FLOAT)
    slope = graph.add(operator, f"{name}.slope", spikes, *synapses, **attributes)
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


def _readout(graph: _Graph, readout: Readout, value: str, *, spiking: bool) -> list[str]:
    """Names of the outputs: "logits" and, of spiking networks, "spike_times"."""
    potential, slope = _contractions(graph, "readout", readout, value, readout.neuron.psp_persistence)
    times = _spike_times(graph, readout, potential, slope) if spiking else None
    if isinstance(readout, FirstSpikeReadout):
        assert times is not None, "an analog network has no first spike"
        within = graph.add("Min", "readout.within_window", times, graph.number(readout.window))
        graph.add("Mul", "logits", within, graph.number(-readout.threshold / readout.window))
    elif isinstance(readout, PotentialReadout) and readout.at == "end" and slope is not None:
        graph.add("Add", "logits", potential, slope)
    else:
        graph.add("Identity", "logits", potential)
    return ["logits"] if times is None else ["logits", times]


def _spike_times(graph: _Graph, readout: Readout, potential: str, slope: str | None) -> str:
    """When A + V₀ + W·s meets the ramp θ·(1 − s/S); see `first_spike_times`."""
    threshold, zero = graph.number(readout.threshold), graph.number(0.0)
    start = graph.add("Add", "readout.start", potential, graph.number(readout.initial_potential))
    slope = slope if slope is not None else graph.add("Mul", "readout.no_slope", potential, zero)
    rise = graph.add("Mul", "readout.rise", slope, graph.number(readout.window))
    end = graph.add("Add", "readout.end", start, rise)
    below = graph.add("Less", "readout.below", start, threshold)
    crosses = graph.add("Greater", "readout.crosses", end, zero)
    inside = graph.add("And", "readout.inside", below, crosses)
    closing_speed = graph.add("Add", "readout.closing_speed", slope, graph.number(readout.threshold / readout.window))
    steepness = graph.add("Where", "readout.steepness", inside, closing_speed, graph.number(1.0))
    missing = graph.add("Sub", "readout.missing", threshold, start)
    crossing = graph.add("Div", "readout.crossing", missing, steepness)
    elsewhere = graph.add("Where", "readout.elsewhere", below, graph.number(np.inf), zero)
    if readout.grid is None:
        return graph.add("Where", "spike_times", inside, crossing, elsewhere)
    clock = readout.grid.clock
    steps = graph.number(clock.steps)
    late = graph.add("Mul", "readout.late", graph.add("Where", "readout.any_time", inside, crossing, elsewhere), steps)
    if clock.compare_at == "middle":
        late = graph.add("Sub", "readout.nearest", late, graph.number(0.5))
    stamp = graph.add("Ceil", "readout.stamp", late)
    last = float(clock.step_of(torch.tensor(len(clock.instants(readout.window)))))
    within = graph.add("Less", "readout.within", stamp, graph.number(last))
    time = graph.add("Div", "readout.stamped", graph.add("Max", "readout.not_before", stamp, zero), steps)
    return graph.add("Where", "spike_times", within, time, graph.number(np.inf))
