"""A network as a NIR graph that computes its spike times.

NIR has leaky neurons, fixed thresholds, no maximum and no time-dependent parameter. These parts are enough:

* A ReL-PSP neuron adds its weighted input spikes up twice. That is a `CubaLIF` whose time constants are much longer
  than the run; the error is about windows / `TIME_CONSTANT`, times the gate below.
* The ramp 1 − s is an input spike of weight 1 at the window's start; an initial potential is a spike that raises the
  potential during the window before. Both come from clock channels beside the image (`nir_clock`).
* A neuron fires in its window only: its threshold is raised by a gate G, so far that no potential reaches it. At the
  window's start, a clock spike lifts the potential by G; at the window's end, another stops its rise. G follows from
  the sum of the positive weights. After its spike, the neuron is at 0 and cannot reach the raised threshold again: one
  spike, whether a simulator resets to zero or subtracts the threshold.
* The persistence σ < 1: relay neurons repeat input spikes at the window's start, and take (1 − σ)·w off the slope.
* Delayed spikes of a skip wait in neurons. A spike drives such a neuron to its threshold in exactly one window; then
  the clock takes the slope away, before a second spike would follow.
* Earliest-spike pooling: `SumPool2d`, then neurons that a clock spike lifts so far that the first spike fires them, and
  no later spike can.

Parameters follow the discrete convention that the importers of SpikingJelly, snnTorch and snn-mlir share: a spike is 1
for one step of 0.1 ms, w_in = τ_syn / step, R = τ_mem / step, v_leak = v_reset = 0, one threshold per node. So synapses
keep the trained weights. Neurons that only count spikes, for relays and pools, are a `CubaLIF` with τ_syn = step: an
`IF` would do, but some importers take its R as 1, others as 1 / step.

Without the gate, a threshold would fall all the time, and a neuron would fire whenever its potential meets it: many
spikes of deep layers would come before their window.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn

from ttfs_triton.export.nir_clock import STEP_S, Clock, clock_weights, sampling
from ttfs_triton.export.shared import as_array, metadata, refuse_upsampling, require, synapse_arrays, ungrouped
from ttfs_triton.nn import AnalogEncoder, DFTConv2d, EarliestSpikePool2d, NetworkGraph, Stage, Wire, network_graph
from ttfs_triton.nn.on_chip import psp_persistence
from ttfs_triton.nn.prepare import plain_skip_weights
from ttfs_triton.nn.weighted import skip_step

if TYPE_CHECKING:
    import nir

MOST_STEPS = 4096
# τ of synapses and membranes, in windows, so that neurons do not leak. For CNN1, 10⁴ is as good, 10³ doubles the error
# of spike times, and 10² makes it twelve times as large.
TIME_CONSTANT = 1e6
RESERVED = ("input", "output", "image", "clock", "clock_pixel")  # names of nodes that are no layers


def to_nir(
    network: nn.Module,
    *,
    image_shape: Sequence[int] | None = None,
    steps: int | None = None,
    class_names: Sequence[str] | None = None,
    dataset: str = "",
) -> nir.NIRGraph:
    """Translate a spiking network into a NIR graph.

    Input of a step, [channels, height, width]: the image's spikes, then the clock's, which fill whole planes;
    `ttfs_triton.export.input_frames` makes both. Output of a step, [classes]: spikes of the readout on its ramp. The
    earliest decides, as in the readout's `decide`.

    Spike times are rounded to steps. Rounding errors add up through the layers, and shrink with 1 / `steps`.

    Args:
        network: spiking network that `network_graph` accepts; weight standardisation is folded.
        image_shape: (channels, height, width); see `network_graph`.
        steps: steps in a window, 2 to 4096, of 0.1 ms. Default: as many as the network's grid has, or 64.
        class_names, dataset: see `to_onnx`.
    Returns:
        The graph. Its metadata have clock, configuration and class names, which NIR lacks, and not_expressed: sentences
        (JSON) on what else the graph does not hold.
    Raises:
        ValueError: the network has layers of other packages, layers' names differ in punctuation only, or an option is
            out of range.
        NotImplementedError: a signed encoder, images that are no maps, upsampling, pools in ceil_mode, kernels or pools
            that are not square (nir would infer wrong shapes), or padding that makes maps larger than the image.
        RuntimeError: nir is not installed.
    Source: Wei et al., ICCV 2023, Eq. 2-7; Pedersen et al., "Neuromorphic intermediate representation", 2024.
    """
    graph = network_graph(network, image_shape)
    if steps is None:
        steps = 64 if graph.grid is None else graph.grid.time_steps
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"to_nir: steps must be 2 to {MOST_STEPS}; got {steps}.")
    module = require("to_nir", "nir", "nir")
    analog, shape = graph.encoder.kind == "analog", graph.image_shape
    for refused, rule, got in (
        (graph.encoder.neuron is not None, "encoder must be latency or analog", "signed"),
        (analog and graph.encoder.inputs[0].route, "an analog encoder must read the image itself", "a pool"),
        (len(shape) != 3, "images must be [channels, height, width] for clock channels to lie beside them", shape),
    ):
        if refused:
            raise NotImplementedError(f"to_nir: {rule}; got {got}. Use to_onnx.")
    refuse_upsampling("to_nir", graph)
    channels, height, width = graph.image_shape
    clock = Clock(steps, graph.windows + analog, (channels, height, width), analog)
    about = metadata("to_nir", network, graph, class_names, dataset, **_metadata(graph, clock))
    build = _Build(module, clock, TIME_CONSTANT * steps * STEP_S, graph)
    build.start()
    if not analog:  # a latency encoder has no node: its spikes are the image channels of the input
        name = graph.encoder.name
        build.emitted[name] = build.route(node_name(name), graph.encoder.inputs[0], 0)
    for stage in graph.weighted:
        build.layer(stage, clock.window_of(stage), last=stage is graph.stages[-1])
    return module.NIRGraph(nodes=build.nodes, edges=build.edges, metadata=about)


def node_name(name: str) -> str:
    """A layer's name as an identifier, since importers use node names as attributes."""
    plain = re.sub(r"\W", "_", name)
    return f"layer{plain}" if plain[0].isdigit() or plain in RESERVED else plain


def _metadata(graph: NetworkGraph, clock: Clock) -> dict[str, str]:
    """Metadata on clock, input and output."""
    steps, last = clock.steps, clock.windows
    image = "spike of pixel p in step round((1 - p) S), at most S - 1; none if p = 0"
    if clock.analog:
        image = "(pixel - mean) / std in step 0, minus that in step S"
    return {
        "producer": "ttfs-triton",
        "step_s": repr(STEP_S),
        "window_s": repr(steps * STEP_S),
        "input": f"[channels, height, width] in each step, S = {steps}. Image channels: {image}. Behind them clock "
        f"channels, whole planes: border k = 0 to {last} spikes in step k S, after k = 1 to {last} in step k S + 1",
        "output": f"spikes of the classes from step {last * steps} to {clock.total_steps - 1}, where a run "
        "ends; the earliest decides",
        "not_expressed": json.dumps(_not_expressed(graph), ensure_ascii=False),
        "clock": json.dumps(vars(clock)),
    }


def _not_expressed(graph: NetworkGraph) -> list[str]:
    """Sentences on what a NIR graph of a network does not hold."""
    said = [
        "Windows: NIR has none. The graph needs the clock spikes that its metadata describe, beside the image.",
        "Time is in steps: spike times are rounded to the nearest one.",
    ]
    if graph.grid is not None:
        rounded = "weights are the rounded ones, but potentials are no integers, and do not saturate."
        said.append(f"The grid, {graph.grid.text()}: {rounded}")
    if graph.encoder.kind == "latency":
        said.append("The latency encoder: the input is spikes; pixel p fires 1 - p windows late.")
    else:
        shown = "shown in the first step and taken back in the first step of the next window; real numbers, not spikes."
        said.append(f"Normalisation: the input is (pixel - mean) / std, {shown}")
    at_ramp = "the readout fires on its ramp and the earliest spike decides, as decide() does."
    told = "they are minus the spike times of the output." if graph.readout.at == "first_spike" else at_ramp
    undecided = "Without any output spike, decide() takes the highest potential; the graph stays undecided."
    return [*said, f"Logits: {told}", undecided]


class _Spikes(NamedTuple):
    """Spikes that a layer emits or reads: their node, and their shape for one image."""

    node: str
    shape: tuple[int, ...]


class _Path(NamedTuple):
    """Spikes that reach a layer, their weights (a vector: one synapse per neuron), and a convolution's stride, ..."""

    spikes: _Spikes
    weight: np.ndarray
    geometry: dict[str, Any]


@dataclass
class _Build:
    """A graph under construction; `emitted` has the spikes of layers by name, and those of the images under None."""

    nir: Any
    clock: Clock
    tau_s: float
    graph: NetworkGraph
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    emitted: dict[str | None, _Spikes] = field(default_factory=dict)

    def add(self, name: str, node: Any, *sources: str) -> str:
        if name in self.nodes:
            rule = f"layer names must differ in more than punctuation; got two for the node {name}"
            raise ValueError(f"to_nir: {rule}. Rename a layer.")
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def start(self) -> None:
        """Add the input, its image channels, and the clock as a vector, for layers without maps."""
        channels, height, width = self.clock.image_shape
        everything = np.eye(self.clock.channels, dtype=np.float32)
        self.add("input", self.nir.Input(np.array([self.clock.channels, height, width])))
        image = self.add("image", self.sampled(everything[:channels], (height, width)), "input")
        self.emitted[None] = _Spikes(image, self.clock.image_shape)
        self.add("clock_pixel", self.sampled(everything, (1, 1)), "input")
        self.add("clock", self.flatten((self.clock.channels, 1, 1)), "clock_pixel")

    def layer(self, stage: Stage, window: int, *, last: bool) -> None:
        layer, name, shape = stage.weighted, node_name(stage.name), stage.shape
        skips = {} if stage.skip is None else {f"{name}_skip": self.skip(stage, window)}
        (weight, bias), geometry = synapse_arrays(layer), dict[str, Any]()
        if isinstance(layer, DFTConv2d):
            weight = ungrouped(weight, layer.groups)
            geometry = {key: getattr(layer, key) for key in ("stride", "padding", "dilation")}
        bias = (np.zeros(len(weight), np.float32) if bias is None else bias) + np.float32(layer.initial_potential)
        persistence, height = psp_persistence(layer), layer.threshold
        graded = isinstance(layer, AnalogEncoder)
        excitation = _graded_excitation(layer, weight) if graded else _excitation(weight, skips)
        paths, inputs, start = {}, [], 0
        for place, wire in enumerate(stage.inputs):  # concatenated inputs have separate synapses
            way = f"{name}_input{place}" if place else name
            spikes = self.arrive(way, stage, wire, window)
            columns = slice(start, start := start + spikes.shape[0])
            paths[way] = _Path(spikes, weight[:, columns], geometry)
        for way, path in (paths | skips).items():
            inputs.append(self.connect(way, path))
            if persistence < 1 and not graded:  # `input_frames` takes graded inputs back
                # Relays fire at the window's start if, and only if, their input has spiked.
                relays = self.counters(f"{way}_relay", path.spikes, window, lift=1)
                taken = path._replace(spikes=relays, weight=-np.float32(1 - persistence) * path.weight)
                inputs.append(self.connect(f"{way}_persistence", taken))
        steepest = persistence * excitation + height
        gate = _gate(max(excitation + max(0.0, float(bias.max())), steepest) - height)
        stop = None if last else steepest
        weights = clock_weights(self.clock, window, bias, height, gate, stop)
        threshold = (height + gate) * self.clock.steps
        spikes = self.neurons(f"{name}_neuron", shape, weights, threshold, self.tau_s, *inputs)
        self.emitted[stage.name] = spikes
        if last:
            self.add("output", self.nir.Output(np.array(shape)), spikes.node)

    def skip(self, stage: Stage, window: int) -> _Path:
        """Add the neurons that delay a skip's spikes; these arrive in the window before the layer's."""
        weight = plain_skip_weights(stage.weighted)
        assert stage.skip is not None
        assert weight is not None
        spikes = self.arrive(f"{node_name(stage.name)}_skip", stage, stage.skip, window)
        steps = skip_step(spikes.shape, stage.shape)
        assert steps is not None, "network_graph has checked it"
        return _Path(spikes, as_array(weight), {"stride": steps} if steps else {})

    def arrive(self, name: str, stage: Stage, wire: Wire, window: int) -> _Spikes:
        """Add the pooling, flattening and delay of a wire; its spikes arrive in the window before the layer's."""
        delay = self.graph.delay(stage, wire)
        fired = window - 1 - delay
        spikes = self.route(name, wire, fired)
        for wait in range(1, delay + 1):
            spikes = self.delay(f"{name}_delay{wait}_neuron", spikes, fired + wait - 1)
        return spikes

    def delay(self, name: str, spikes: _Spikes, window: int) -> _Spikes:
        """Add neurons that repeat a window's spikes one window later: a spike raises a potential by 1 in every step."""
        stop = self.at_border(window + 2, -1)  # after the last repeated spike, and before a second spike
        return self.neurons(name, spikes.shape, stop, self.clock.steps + 0.5, self.tau_s, spikes.node)

    def connect(self, name: str, path: _Path) -> str:
        """Add a path's synapses; returns their node."""
        (source, shape), weight, geometry = path
        if weight.ndim == 1:
            matrix = np.zeros((len(weight), shape[0]), np.float32)
            np.fill_diagonal(matrix, weight[: shape[0]])
            weight = matrix[:, :, None, None] if geometry else matrix
        node = self.convolution(weight, shape[1:], **geometry) if geometry else self.nir.Linear(weight=weight)
        return self.add(name, node, source)

    def route(self, layer: str, wire: Wire, window: int) -> _Spikes:
        """Add the pooling and flattening in front of a layer, for spikes that come in `window`."""
        spikes = self.emitted[wire.source]
        for place, module in enumerate(wire.route, 1):
            name = f"{layer}_route{place}"
            if isinstance(module, EarliestSpikePool2d):
                spikes = self.pool(name, spikes, module, window)
            elif isinstance(module, nn.Flatten) and len(spikes.shape) > 1:
                flat = self.add(name, self.flatten(spikes.shape), spikes.node)
                spikes = _Spikes(flat, (math.prod(spikes.shape),))
        return spikes

    def pool(self, name: str, spikes: _Spikes, pool: EarliestSpikePool2d, window: int) -> _Spikes:
        kernel, (channels, *size) = pool.kernel_size, spikes.shape
        if pool.ceil_mode or kernel[0] != kernel[1]:
            raise NotImplementedError(f"to_nir: pools must read whole, square patches; got {pool}. Use to_onnx.")
        if any(pool.padding):  # which importers leave out
            ones = ungrouped(np.ones((channels, 1, *kernel), np.float32), channels)
            node = self.convolution(ones, size, pool.stride, pool.padding)
        else:
            node = self.nir.SumPool2d(np.array(kernel), np.array(pool.stride), np.array(pool.padding))
        summed = _Spikes(self.add(name, node, spikes.node), pool.output_shape(spikes.shape))
        return self.counters(f"{name}_neuron", summed, window, lift=math.prod(kernel))

    def counters(self, name: str, spikes: _Spikes, window: int, *, lift: int) -> _Spikes:
        """Add neurons that add their input up once; the clock lifts them so far that one more spike fires them."""
        return self.neurons(name, spikes.shape, self.at_border(window, lift), lift + 0.5, STEP_S, spikes.node)

    def at_border(self, window: int, weight: float) -> np.ndarray:
        """Weights [channels] from the clock that are 0 except at the border where a window begins."""
        weights = np.zeros(self.clock.channels, np.float32)
        weights[self.clock.border(window)] = weight
        return weights

    def sampled(self, weights: np.ndarray, places: tuple[int, int]) -> Any:
        """A convolution from the input channels to maps of size `places`; one tap, since clock planes are constant."""
        size = self.clock.image_shape[1:]
        side, stride, tap = sampling(size, places)
        kernel = np.zeros((*weights.shape, side, side), np.float32)
        kernel[:, :, tap[0], tap[1]] = weights
        return self.convolution(kernel, size, stride, padding=tap)

    def convolution(
        self,
        weight: np.ndarray,
        size: Sequence[int],
        stride: tuple[int, ...],
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
    ) -> Any:
        """A convolution without bias from maps of `size`."""
        if weight.shape[2] != weight.shape[3]:
            raise NotImplementedError(f"to_nir: kernels must be square; got {weight.shape[2:]}. Use to_onnx.")
        bias = np.zeros(len(weight), np.float32)
        return self.nir.Conv2d(tuple(size), weight, stride, padding, dilation, groups=1, bias=bias)

    def flatten(self, shape: tuple[int, ...]) -> Any:
        return self.nir.Flatten(input_type={"input": np.array(shape)}, start_dim=-len(shape), end_dim=-1)

    def neurons(
        self, name: str, shape: tuple[int, ...], clock: np.ndarray, threshold: float, tau_syn_s: float, *sources: str
    ) -> _Spikes:
        """Add neurons that read `sources` and, by the weights `clock` [C_out or 1, channels], the clock.

        Neurons add their input up twice, to a slope and then to a potential; only once if `tau_syn_s` is one step.
        """
        weights = np.broadcast_to(clock, (shape[0], self.clock.channels)).copy()
        if len(shape) == 1:
            ticks = self.add(f"{name}_clock", self.nir.Linear(weight=weights), "clock")
        else:
            ticks = self.add(f"{name}_clock", self.sampled(weights, (shape[1], shape[2])), "input")

        def full(value: float) -> np.ndarray:
            return np.full(shape, value, np.float64)  # float32 would put τ_syn below a step, which is refused

        neurons = self.nir.CubaLIF(
            tau_syn=full(tau_syn_s),
            tau_mem=full(self.tau_s),
            r=full(self.tau_s / STEP_S),
            v_leak=full(0),
            v_threshold=full(threshold),
            v_reset=full(0),
            w_in=full(tau_syn_s / STEP_S),
        )
        return _Spikes(self.add(name, neurons, *sources, ticks), shape)


def _excitation(weight: np.ndarray, skips: Mapping[str, _Path] = {}) -> float:
    """Upper bound on what inputs and delayed spikes add to a slope, and so to the potential in a window."""
    delayed = sum(np.clip(path.weight, 0, None) for path in skips.values())
    return float((np.clip(weight, 0, None).reshape(len(weight), -1).sum(1) + delayed).max())


def _graded_excitation(layer: AnalogEncoder, weight: np.ndarray) -> float:
    """`_excitation` of a layer that reads pixels in [0, 1], normalised by mean and std."""
    mean, std = (values.detach().cpu().flatten().numpy() for values in (layer.mean, layer.std))
    largest = np.maximum(np.abs(0 - mean), np.abs(1 - mean)) / std
    return _excitation(np.abs(weight) * largest[:, None, None])


def _gate(above_threshold: float) -> float:
    """Gate G, a power of two; `above_threshold` is the most by which potentials exceed the bare threshold.

    Outside its window, a potential stays at least 1 below the threshold with the gate.
    """
    return 2.0 ** math.ceil(math.log2(max(above_threshold, 0.0) + 1))
