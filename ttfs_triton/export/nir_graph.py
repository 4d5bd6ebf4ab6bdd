"""A network as a NIR graph that computes its spike times; over 400 lines, since the circuit is one idea.

NIR has leaky neurons, fixed thresholds, no maximum and no time-dependent parameter. These parts are enough:

* A ReL-PSP neuron adds its weighted input spikes up twice. That is a `CubaLIF` whose time constants are much longer
  than the run; the error is about windows / `TIME_CONSTANT`, times the gate below.
* The ramp 1 − s is an input spike of weight 1 at the window's start; an initial potential is one that builds up during
  the window before. Both come from clock channels beside the image (`nir_clock`).
* A neuron fires in its window only: its threshold is higher by a gate G than it can ever reach, a clock spike lifts the
  potential by G at the window's start, another stops its rise at the window's end. G follows from the sum of the
  positive weights. After its spike the neuron is at 0 and cannot reach the raised threshold again: one spike, whether
  a simulator resets to zero or subtracts the threshold.
* The persistence σ < 1: relay neurons repeat each input spike at the window's start, and take (1 − σ)·w off the slope.
* Spikes that skip layers wait in neurons that each spike drives to their threshold in exactly one window; the clock
  takes the slope away before a second spike would follow.
* Earliest-spike pooling: `SumPool2d`, then neurons that a clock spike lifts so far that the first spike fires them, and
  no later spike can.

Parameters follow the discrete convention that the importers of SpikingJelly, snnTorch and snn-mlir share: a spike is 1
for one step of 0.1 ms, w_in = τ_syn / step, R = τ_mem / step, v_leak = v_reset = 0, one threshold a node. So synapses
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

from ttfs_triton.export.nir_clock import STEP_S, Axis, Clock, clock_weights, places_of, sampling, square
from ttfs_triton.export.shared import as_array, metadata, refuse_upsampling, require, synapse_arrays
from ttfs_triton.nn.coding import AnalogEncoder, SignedEncoder
from ttfs_triton.nn.folding import plain_skip_weights
from ttfs_triton.nn.graph import NetworkGraph, Stage, Wire
from ttfs_triton.nn.layers import EarliestSpikePool2d
from ttfs_triton.nn.on_chip import psp_persistence
from ttfs_triton.nn.sizes import skip_step
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.nn.weighted import WeightedConv2d

if TYPE_CHECKING:
    import nir

MOST_STEPS = 4096
# τ of synapses and membranes, in windows, so that neurons do not leak. For CNN1, 10⁴ is as good, 10³ doubles the error
# of spike times, and 10² makes it twelve times as large.
TIME_CONSTANT = 1e6
RESERVED = ("input", "output", "image", "clock", "clock_pixel")  # nodes that are no layers


def to_nir(
    network: nn.Module,
    *,
    image_shape: Sequence[int] | None = None,
    steps: int | None = None,
    class_names: Sequence[str] | None = None,
    dataset: str = "",
) -> nir.NIRGraph:
    """Translate a spiking network into a NIR graph.

    Input of each step, [channels, height, width]: the image's spikes, then the clock's, each of which fills its plane;
    `ttfs_triton.export.input_frames` makes both. Output of each step, [classes]: spikes of the readout on its own ramp.
    The earliest decides, as in the readout's `decide`.

    Spike times are rounded to steps, and rounding errors add up through the layers: they shrink with 1 / `steps`.

    Args:
        network: spiking network that `network_graph` accepts; weight standardisation is folded.
        image_shape: (channels, height, width); see `network_graph`.
        steps: steps in a window, 2 to 4096, of 0.1 ms. Default: as many as the network's grid has, or 64.
        class_names, dataset: see `to_onnx`.
    Returns:
        The graph. Its metadata hold clock, configuration and class names, which NIR lacks, and `not_expressed`.
    Raises:
        ValueError: the network has layers of other packages, or an option is out of range.
        NotImplementedError: a signed encoder, images that are no maps, upsampling, pools in ceil_mode, kernels of one
            odd side and one even (nir would infer wrong shapes), or padding that makes maps larger than the image.
        RuntimeError: nir is not installed.
    Source: Wei et al., ICCV 2023, Eq. 2-7; Pedersen et al., "Neuromorphic intermediate representation", 2024.
    """
    graph = network_graph(network, image_shape)
    if steps is None:
        steps = 64 if graph.grid is None else graph.grid.time_steps
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"to_nir: steps must be 2 to {MOST_STEPS}; got {steps}.")
    module = require("to_nir", "nir", "nir")
    if isinstance(graph.encoder.layer, SignedEncoder):
        raise NotImplementedError(
            "to_nir: encoder must be latency or analog; got signed, whose pixels drive potential and slope apart. "
            "Use to_onnx."
        )
    refuse_upsampling("to_nir", graph)
    analog = graph.encoder.kind == "analog"
    if analog and any(wire.route for wire in graph.encoder.inputs):
        raise NotImplementedError("to_nir: an analog encoder must read the image itself; got a pool. Use to_onnx.")
    if len(graph.image_shape) != 3:
        raise NotImplementedError(
            f"to_nir: images must be [channels, height, width] for clock channels to lie beside them; got "
            f"{graph.image_shape}. Use to_onnx."
        )
    channels, height, width = graph.image_shape
    clock = Clock(steps, graph.windows + analog, (channels, height, width), analog)
    about = metadata("to_nir", network, graph, class_names, dataset, **_metadata(graph, clock))
    build = _Build(module, clock, TIME_CONSTANT * steps * STEP_S, graph)
    build.start()
    if not analog:
        build.encode(graph.encoder)
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
        "not_expressed": json.dumps(not_expressed(graph), ensure_ascii=False),
        "clock": json.dumps(vars(clock)),
    }


def not_expressed(network: nn.Module | NetworkGraph, image_shape: Sequence[int] | None = None) -> list[str]:
    """Sentences on what a NIR graph of a network does not hold; arguments as of `network_graph`, or its result."""
    graph = network if isinstance(network, NetworkGraph) else network_graph(network, image_shape)
    said = [
        "Windows: NIR has none. The graph needs the clock spikes that its metadata describe, beside the image.",
        "Time is in steps: spike times are rounded to the nearest one.",
    ]
    if graph.grid is not None:
        said.append(
            f"The grid, {graph.grid.text()}: weights are the rounded ones, but potentials are no integers, and "
            "do not saturate."
        )
    if graph.encoder.kind == "latency":
        said.append("The latency encoder: the input is spikes; pixel p fires 1 - p windows late.")
    else:
        said.append(
            "Normalisation: the input is (pixel - mean) / std, shown in the first step and taken back in the first "
            "step of the next window; real numbers, not spikes."
        )
    if graph.readout.at != "first_spike":
        said.append("Logits: the readout fires on its ramp and the earliest spike decides, as decide() does.")
    else:
        said.append("Logits: they are minus the spike times of the output.")
    said.append("Without any output spike, decide() takes the highest potential; the graph stays undecided.")
    return said


class _Path(NamedTuple):
    """Spikes that reach a layer: their node and shape, weights (a vector is one to one), and axes of a convolution."""

    value: str
    shape: tuple[int, ...]
    weight: np.ndarray
    axes: Sequence[Axis]


@dataclass
class _Build:
    """A graph under construction.

    Attributes:
        emitted: node and shape of each layer's spikes, by the layer's name; None for the images.
        value: node whose spikes the present layer reads.
        shape: shape of those spikes.
    """

    nir: Any
    clock: Clock
    tau_s: float
    graph: NetworkGraph
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    emitted: dict[str | None, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    value: str = ""
    shape: tuple[int, ...] = ()

    def add(self, name: str, node: Any, *sources: str) -> str:
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def start(self) -> None:
        """Add the input, its image channels, and the clock as a vector, for layers without maps."""
        channels, height, width = self.clock.image_shape
        everything = np.eye(self.clock.channels, dtype=np.float32)
        self.add("input", self.nir.Input(np.array([self.clock.channels, height, width])))
        image = self.add("image", self.sampled(everything[:channels], (height, width)), "input")
        self.emitted[None] = image, self.clock.image_shape
        self.add("clock_pixel", self.sampled(everything, (1, 1)), "input")
        self.add("clock", self.flatten((self.clock.channels, 1, 1)), "clock_pixel")

    def encode(self, stage: Stage) -> None:
        """A latency encoder has no node: its spikes are the image channels of the input."""
        self.route(node_name(stage.name), stage.inputs[0], 0)
        self.emitted[stage.name] = self.value, self.shape

    def layer(self, stage: Stage, window: int, *, last: bool) -> None:
        layer, name, shape = stage.weighted, node_name(stage.name), stage.shape
        late = {} if stage.skip is None else {f"{name}_skip": self.skip(stage, window)}
        weight, bias = synapse_arrays(layer)
        axes = []
        if isinstance(layer, WeightedConv2d):
            weight = ungrouped(weight, layer.groups)
            axes = [Axis(*of_axis) for of_axis in zip(layer.stride, layer.padding, layer.dilation, strict=True)]
        bias = (np.zeros(len(weight), np.float32) if bias is None else bias) + np.float32(layer.initial_potential)
        persistence, height = psp_persistence(layer), layer.threshold
        graded = isinstance(layer, AnalogEncoder)
        excitation = _graded_excitation(layer, weight) if graded else _excitation(weight, late)
        paths, inputs, start = {}, [], 0
        for place, wire in enumerate(stage.inputs):  # concatenated inputs have synapses of their own
            way = f"{name}_input{place}" if place else name
            self.arrive(way, stage, wire, window)
            own = slice(start, start := start + self.shape[0])
            paths[way] = _Path(self.value, self.shape, weight[:, own], axes)
        for way, path in (paths | late).items():
            inputs.append(self.connect(way, path, path.weight, path.value))
            if persistence < 1 and not graded:  # graded inputs are taken back by the host
                # Relays fire at the window's start if, and only if, their input has spiked.
                relays = self.counters(f"{way}_relay", path.value, window, path.shape, lift=1)
                taken = -np.float32(1 - persistence) * path.weight
                inputs.append(self.connect(f"{way}_persistence", path, taken, relays))
        steepest = persistence * excitation + height
        gate = _gate(max(excitation + max(0.0, float(bias.max())), steepest) - height)
        stop = None if last else steepest
        weights = clock_weights(self.clock, window, bias, height, gate, stop)
        inputs.append(self.from_clock(f"{name}_clock", weights, shape))
        neuron = self.neurons(shape, (height + gate) * self.clock.steps, self.tau_s)
        self.emitted[stage.name] = self.add(f"{name}_neuron", neuron, *inputs), shape
        if last:
            self.add("output", self.nir.Output(np.array(shape)), self.emitted[stage.name][0])

    def skip(self, stage: Stage, window: int) -> _Path:
        """Add the wait of a skip's delayed spikes; they arrive in the window before the layer's."""
        weight = plain_skip_weights(stage.weighted)
        assert stage.skip is not None
        assert weight is not None
        self.arrive(f"{node_name(stage.name)}_skip", stage, stage.skip, window)
        steps = skip_step(self.shape, stage.shape)
        assert steps is not None, "network_graph has checked it"
        return _Path(self.value, self.shape, as_array(weight), [Axis(step, 0) for step in steps])

    def arrive(self, name: str, stage: Stage, wire: Wire, window: int) -> None:
        """Add the pooling, flattening and waiting on a wire; its spikes arrive in the window before the layer's."""
        delay = self.graph.delay(stage, wire)
        fired = window - 1 - delay
        self.route(name, wire, fired)
        for wait in range(1, delay + 1):
            self.delay(f"{name}_delay{wait}", fired + wait - 1)

    def delay(self, name: str, window: int) -> None:
        """Add neurons that repeat spikes of a window one window later: a spike raises a potential by 1 each step."""
        weights = np.zeros((self.shape[0], self.clock.channels), np.float32)
        weights[:, self.clock.border(window + 2)] = -1  # behind the last repeated spike, before a second
        stop = self.from_clock(f"{name}_clock", weights, self.shape)
        neurons = self.neurons(self.shape, self.clock.steps + 0.5, self.tau_s)
        self.value = self.add(f"{name}_neuron", neurons, self.value, stop)

    def connect(self, name: str, path: _Path, weight: np.ndarray, source: str) -> str:
        """Add synapses with these weights, from a node whose spikes have the path's shape."""
        if weight.ndim == 1:
            matrix = np.zeros((len(weight), path.shape[0]), np.float32)
            np.fill_diagonal(matrix, weight[: path.shape[0]])
            weight = matrix[:, :, None, None] if path.axes else matrix
        if not path.axes:
            return self.add(name, self.nir.Linear(weight=weight), source)
        return self.add(name, self.convolution(weight, path.shape[1:], path.axes), source)

    def route(self, layer: str, wire: Wire, window: int) -> None:
        """Add the pooling and flattening in front of a layer, for spikes that come in `window`."""
        self.value, self.shape = self.emitted[wire.source]
        for place, module in enumerate(wire.route, 1):
            name = f"{layer}_route{place}"
            if isinstance(module, EarliestSpikePool2d):
                self.pool(name, module, window)
            elif isinstance(module, nn.Flatten) and len(self.shape) > 1:
                self.value = self.add(name, self.flatten(self.shape), self.value)
                self.shape = (math.prod(self.shape),)

    def pool(self, name: str, pool: EarliestSpikePool2d, window: int) -> None:
        kernel, stride, padding = pool.kernel_size, pool.stride, pool.padding
        channels, size = self.shape[0], self.shape[1:]
        if pool.ceil_mode:
            raise NotImplementedError(f"to_nir: pools must read whole patches; got {pool}. Use to_onnx.")
        if kernel[0] == kernel[1] and not any(padding):
            node = self.nir.SumPool2d(kernel_size=np.array(kernel), stride=np.array(stride), padding=np.array(padding))
        else:  # importers pool squares only, and leave padding out
            ones = ungrouped(np.ones((channels, 1, *kernel), np.float32), channels)
            node = self.convolution(ones, size, list(map(Axis, stride, padding)))
        self.shape = (channels, *map(places_of, size, kernel, stride, padding))
        summed = self.add(name, node, self.value)
        self.value = self.counters(f"{name}_neuron", summed, window, self.shape, lift=math.prod(kernel))

    def counters(self, name: str, source: str, window: int, shape: tuple[int, ...], *, lift: int) -> str:
        """Add neurons that add their input up once; the clock lifts them so far that one more spike fires them."""
        weights = np.zeros((shape[0], self.clock.channels), np.float32)
        weights[:, self.clock.border(window)] = lift
        start = self.from_clock(f"{name}_clock", weights, shape)
        return self.add(name, self.neurons(shape, lift + 0.5, STEP_S), source, start)

    def from_clock(self, name: str, weights: np.ndarray, shape: tuple[int, ...]) -> str:
        """Add weights [C_out, channels] from the clock to every place of a map."""
        if len(shape) == 1:
            return self.add(name, self.nir.Linear(weight=weights), "clock")
        return self.add(name, self.sampled(weights, (shape[1], shape[2])), "input")

    def sampled(self, weights: np.ndarray, places: tuple[int, int]) -> Any:
        """From the input's channels to maps of `places`: a convolution with one tap, as clock planes are constant."""
        size = self.clock.image_shape[1:]
        kernel, down, across = sampling(size, places)
        taps = np.zeros((*weights.shape, kernel, kernel), np.float32)
        taps[:, :, down.padding, across.padding] = weights
        return self.convolution(taps, size, [down, across])

    def convolution(self, weight: np.ndarray, size: tuple[int, ...], axes: Sequence[Axis]) -> Any:
        """A convolution without bias on maps of a size. Its kernel is made square, since nir reads one side only.

        Raises:
            NotImplementedError: no square kernel gives as many places.
        """
        found = square(weight.shape[2:], size, axes)
        if found is None:
            raise NotImplementedError(
                f"to_nir: kernels must be odd in both sides or even in both, since nir infers shapes of squares only, "
                f"to which kernels are padded; got {weight.shape[2:]}. Use to_onnx."
            )
        side, front = found
        padded = np.zeros((*weight.shape[:2], side, side), np.float32)
        rows, columns = (slice(start, start + taps) for start, taps in zip(front, weight.shape[2:], strict=True))
        padded[:, :, rows, columns] = weight
        padding = tuple(axis.padding + before * axis.dilation for axis, before in zip(axes, front, strict=True))
        stride, dilation = (tuple(getattr(axis, name) for axis in axes) for name in ("stride", "dilation"))
        return self.nir.Conv2d(
            size, padded, stride, padding, dilation, groups=1, bias=np.zeros(len(weight), np.float32)
        )

    def flatten(self, shape: tuple[int, ...]) -> Any:
        return self.nir.Flatten(input_type={"input": np.array(shape)}, start_dim=-len(shape), end_dim=-1)

    def neurons(self, shape: tuple[int, ...], threshold: float, tau_syn_s: float) -> Any:
        """Neurons that add their input up twice, to a slope and then to a potential; once if `tau_syn_s` is a step."""

        def full(value: float) -> np.ndarray:
            return np.full(shape, value, np.float64)  # float32 would put τ_syn below a step, which is refused

        return self.nir.CubaLIF(
            tau_syn=full(tau_syn_s),
            tau_mem=full(self.tau_s),
            r=full(self.tau_s / STEP_S),
            v_leak=full(0),
            v_threshold=full(threshold),
            v_reset=full(0),
            w_in=full(tau_syn_s / STEP_S),
        )


def ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights [C_out, C_in / groups, ...] as weights of one group, [C_out, C_in, ...]: importers know no groups."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    dense = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), np.float32)
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        dense[own, group * inputs : (group + 1) * inputs] = weight[own]
    return dense


def _excitation(weight: np.ndarray, late: Mapping[str, _Path] = {}) -> float:
    """Upper bound on the sum that inputs, delayed ones too, add to a slope, and so to the potential in a window."""
    skips = sum(np.clip(path.weight, 0, None) for path in late.values())
    return float((np.clip(weight, 0, None).reshape(len(weight), -1).sum(1) + skips).max())


def _graded_excitation(layer: AnalogEncoder, weight: np.ndarray) -> float:
    """`_excitation` by pixels in [0, 1], normalised by mean and std."""
    mean, std = (values.detach().cpu().flatten().numpy() for values in (layer.mean, layer.std))
    largest = np.maximum(np.abs(0 - mean), np.abs(1 - mean)) / std
    return _excitation(np.abs(weight) * largest[:, None, None])


def _gate(above_threshold: float) -> float:
    """Gate G, a power of two; `above_threshold` is the most by which potentials exceed the bare threshold.

    Outside its window, a potential stays at least 1 below the threshold with the gate.
    """
    return 2.0 ** math.ceil(math.log2(max(above_threshold, 0.0) + 1))
