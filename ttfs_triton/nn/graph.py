"""A network as the graph of its layers: the windows in which they fire, and their inputs.

Counts, simulation, export, files and training read this one description, which `network_graph` traces from a module.
Modules that it cannot describe are refused there, by name, and nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.prepare import plain_synapses
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.statistics import LayerKind, SpikeCounter, short_names
from ttfs_triton.nn.trace import SAMPLES, Call, NetworkError, Recorder, image_shape_of, label_of, remedy_for, unwrapped
from ttfs_triton.nn.weighted import WeightedLayer

StageKind = LayerKind | Literal["latency"]
LAYERS = (LatencyEncoder, AnalogEncoder, SignedEncoder, DFTConv2d, DFTLinear, Readout)
# Modules of torch.nn that may stand between our layers; they run in evaluation mode.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
BETWEEN = (nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, *_DROPOUTS)
# Remedies and rules for the ends of a network.
_BEGIN = (
    "Put LatencyEncoder() in front of layers that read spikes, or begin with an AnalogEncoder, once.",
    "begin with its only encoder",
)
_END = ("Append a Readout, once, and hand on its output.", "end with its only readout")


@dataclass(frozen=True)
class Wire:
    """A connection into a layer: the stage whose spikes it reads, and pooling, upsampling and flattening on the way.

    Attributes:
        source: name of the stage whose spikes arrive; None: the images.
        route: modules between source and layer, in order: pools, upsampling, flattening; no window, no synapses.
        shape: shape of the spikes that arrive for one image.
    """

    source: str | None
    route: tuple[nn.Module, ...]
    shape: tuple[int, ...]

    def deliver(self, emitted: Mapping[str | None, Tensor]) -> Tensor:
        """The source's activations as they reach the layer, [N, *shape]; `emitted` has those of all sources."""
        spikes = emitted[self.source]
        for module in self.route:
            spikes = module(spikes)
        return spikes

    def routed(self, module: nn.Module) -> Wire:
        """The wire with one more module at its end, which treats channels separately."""
        shape = module(torch.empty((1, *self.shape), device="meta")).shape[1:]
        return Wire(self.source, (*self.route, module), tuple(shape))


@dataclass(frozen=True)
class Stage:
    """A layer whose neurons fire in one window.

    Attributes:
        name: the layer's name in the model, as in `collect_statistics` and `count`.
        kind: "latency" (a `LatencyEncoder`), "analog" (an `AnalogEncoder` or `SignedEncoder`), "spiking" or "readout".
        layer: the module.
        window: number of the window in which its neurons fire; 0 for the encoder.
        inputs: the connections that its synapses read, concatenated along the channels (or features) in this order.
        skip: the connection from an earlier stage whose delayed spikes reach its neurons one to one, or None.
        shape: shape of its neurons for one image, before pooling.
    """

    name: str
    kind: StageKind
    layer: nn.Module
    window: int
    inputs: tuple[Wire, ...]
    skip: Wire | None
    shape: tuple[int, ...]

    @property
    def wires(self) -> tuple[Wire, ...]:
        """All connections into the layer, its skip last."""
        return self.inputs if self.skip is None else (*self.inputs, self.skip)

    @property
    def weighted(self) -> WeightedLayer:
        """The layer, for stages with synapses, so not for a latency encoder."""
        assert isinstance(self.layer, WeightedLayer)
        return self.layer

    @property
    def neuron(self) -> Neuron | None:
        """How its neurons fire; None for a `LatencyEncoder`, or an `AnalogEncoder` without a neuron."""
        return getattr(self.layer, "neuron", None)

    def synapses(self) -> tuple[Tensor, Tensor | None]:
        """Weights [C_out, ...] and initial potentials [C_out] or None as hardware gets them; see `plain_synapses`."""
        return plain_synapses(self.weighted)

    def activations(self, inputs: Tensor, skip: Tensor | None) -> Tensor:
        """Activations of the layer's neurons, from the inputs that `NetworkGraph.run` delivers."""
        if skip is None:
            return self.layer(inputs)
        return self.layer(inputs, skip=skip[:, : self.weighted.skip])


@dataclass(frozen=True)
class NetworkGraph:
    """The layers of a network, in the order in which they run: an encoder first, a readout last.

    Attributes:
        stages: one for every layer that fires.
        image_shape: shape of one input image, such as (channels, height, width).
    """

    stages: tuple[Stage, ...]
    image_shape: tuple[int, ...]

    def __getitem__(self, name: str) -> Stage:
        """The stage with this name; KeyError without one."""
        return {stage.name: stage for stage in self.stages}[name]

    @property
    def encoder(self) -> Stage:
        """The first stage."""
        return self.stages[0]

    @property
    def weighted(self) -> tuple[Stage, ...]:
        """The stages with synapses: all but a latency encoder."""
        return tuple(stage for stage in self.stages if stage.kind != "latency")

    def delay(self, stage: Stage, wire: Wire) -> int:
        """Windows by which a wire into a stage delays its spikes, so that all spikes arrive in one window."""
        return 0 if wire.source is None else stage.window - 1 - self[wire.source].window

    @property
    def readout(self) -> Readout:
        """The output layer."""
        layer = self.stages[-1].layer
        assert isinstance(layer, Readout)
        return layer

    @property
    def grid(self) -> Grid | None:
        """Grid of the chip that the network was trained or calibrated for; None: real numbers."""
        return self.readout.grid

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.readout.out_features

    @property
    def persistences(self) -> tuple[float, ...]:
        """Distinct values of σ in the network, ascending."""
        return tuple(sorted({stage.neuron.psp_persistence for stage in self.stages if stage.neuron is not None}))

    @property
    def windows(self) -> int:
        """Number of the readout's firing window, counted from 0; so many windows pass before it."""
        return self.stages[-1].window

    def prepare_statistics(self) -> None:
        """Give every layer with synapses a `SpikeCounter`, if it has none."""
        for stage in self.weighted:
            if stage.weighted.statistics is None:
                stage.weighted.statistics = SpikeCounter(stage.shape)

    def run(self, images: Tensor, fire: Callable[[Stage, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Run the stages in order and return the readout's outputs; other outputs are freed after their last reader.

        Args:
            fire: called with a stage, its pooled and flattened inputs, and its delayed spikes (one per neuron) or None.
                Returns the neurons' outputs [N, *shape]: activations, or other numbers for which 0 means silent.
        """
        last_reader = {wire.source: stage for stage in self.stages for wire in stage.wires}
        emitted: dict[str | None, Tensor] = {None: images}
        for stage in self.stages:
            skip = None if stage.skip is None else stage.skip.deliver(emitted)
            if skip is not None:
                skip = stage.weighted.read_skip(skip, stage.shape)
            inputs = delivered(stage.inputs, emitted)
            for wire in stage.wires:
                if last_reader[wire.source] is stage:
                    emitted.pop(wire.source, None)
            emitted[stage.name] = fire(stage, inputs, skip)
        return emitted[self.stages[-1].name]

    def describe(self) -> list[str]:
        """A line for every stage: name, shape, layer, and where its inputs come from; equal for equal graphs."""
        return [_line(stage) for stage in self.stages]


def delivered(inputs: Sequence[Wire], emitted: Mapping[str | None, Tensor]) -> Tensor:
    """Inputs that several wires deliver, concatenated along the channels; `emitted` as in `Wire.deliver`."""
    spikes = [wire.deliver(emitted) for wire in inputs]
    return spikes[0] if len(spikes) == 1 else torch.cat(spikes, 1)


def _line(stage: Stage) -> str:
    ways = []
    for wire in stage.wires:
        route = "".join(f" → {module}" for module in wire.route)
        ways.append(f"{'skip ' if wire is stage.skip else ''}{wire.source or 'images'}{route}")
    shape, layer = "×".join(map(str, stage.shape)), str(stage.layer)
    if isinstance(stage.layer, DFTConv2d):  # in files, sizes are in pixels
        layer = layer.replace(stage.layer.sizes_text(stage.layer.average), stage.layer.sizes_text(1))
    return f"{stage.name} [{shape}]: {layer} reads {', '.join(ways)}"


def network_graph(model: nn.Module, image_shape: Sequence[int] | None = None) -> NetworkGraph:
    """The graph of a network of `ttfs_triton.nn` layers; the one place where a network is checked.

    Args:
        model: any module that runs one encoder first, then layers of `ttfs_triton.nn`, none of them twice, and returns
            the output of its only readout: `TTFSNetwork`, an `nn.Sequential`, or a class of yours, in any mode, on any
            device, compiled or distributed. Between layers, modules or your `forward` may pool spikes
            (`EarliestSpikePool2d`, `nn.MaxPool2d`, `F.max_pool2d`), upsample (`SpikeUpsample2d`, `nn.Upsample`,
            `F.interpolate`), flatten, drop out, and concatenate them along the channels (`torch.cat`).
        image_shape: shape of one image, such as (channels, height, width). Default: the model's `image_shape`.
    Returns:
        The stages in the order in which they run.
    Raises:
        NetworkError: the module does something else; the message says what, and what to use instead.
        ValueError: image_shape is not given, and the model has none.
    Example:
        >>> from ttfs_triton.nn import DFTLinear, LatencyEncoder, Readout
        >>> network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 8), Readout(8, 2))
        >>> graph = network_graph(network, (1, 8, 8))
        >>> [(stage.name, stage.window, stage.shape) for stage in graph.stages]
        [('0', 0, (1, 8, 8)), ('2', 1, (8,)), ('3', 2, (2,))]
    """
    bare = unwrapped(model)
    shape = image_shape_of(bare, image_shape)
    recorder = _NetworkRecorder(bare)
    return recorder.graph(recorder.trace(shape), shape)


class _NetworkRecorder(Recorder):
    """Turns recorded calls into stages while the network runs; layers return empty tensors of their output shapes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        forwards = {kind.forward for kind in LAYERS}  # subclasses may have the same
        named = [(name, module) for name, module in model.named_modules() if type(module).forward in forwards]
        names = short_names([name for name, _ in named])
        self._layers: dict[object, str] = {module: name for (_, module), name in zip(named, names, strict=True)}
        self._stages, self._readouts = dict[str | None, Stage](), list[str | None]()
        self._wires: dict[Call, tuple[Wire, ...]] = {}  # wires that start at a call; several after a concatenation

    def leaf(self, module: nn.Module, label: str) -> Callable[..., Any] | None:
        if module in self._layers:
            return functools.partial(self._fire, module)
        run = super().leaf(module, label)
        if run is None or isinstance(module, BETWEEN):
            return run
        return lambda *_, **__: _refuse(label, remedy_for(type(module).__name__))

    def hear(self, call: Call, output: Any) -> None:
        """Note which wires lead through a call: from a layer that it runs, or those of its inputs, routed further."""
        if call.target == "images" or call.target in self._layers:
            self._wires[call] = (Wire(self._layers.get(call.target), (), call.shape or ()),)
            return
        wires = tuple(wire for source in call.inputs for wire in self._wires[source])
        joined = call.concatenated is not None and all(wire.source is not None for wire in wires)
        route = nn.Identity() if joined else call.route
        if route is None and wires[0].source is None and not wires[0].route:
            _refuse(call.label, "Pass images as they are, and give mean and std to an AnalogEncoder.")
        if not isinstance(route, nn.Identity) and any(wire.source in self._readouts for wire in wires):
            _refuse(call.label, "Hand on the readout's output as it is.")
        if route is None:
            _refuse(call.label, remedy_for(call.target if isinstance(call.target, str) else type(call.target).__name__))
        self._wires[call] = wires if isinstance(route, nn.Identity) else tuple(wire.routed(route) for wire in wires)

    def _fire(self, layer: Any, x: Tensor, *, skip: Any = None) -> Tensor:
        """Run a layer: add its stage, and return an empty tensor of its output's shape."""
        name, kind = self._layers[layer], layer.kind
        label, wires = label_of(layer, name), self._wires.get(self.maker(x))
        skips = () if skip is None else self._wires.get(self.maker(skip))
        if name in self._stages:
            _refuse(f"{name}, which runs twice", "Use another layer for the second window.")
        if wires is None or skips is None:
            _refuse(f"{label}, which reads neither images nor spikes of a layer", "Hand it a layer's output.")
        reads_images = wires[0].source is None
        if (kind in ("latency", "analog")) != reads_images or (reads_images and self._stages):
            _refuse(f"{label}, which reads {'images' if reads_images else 'spikes'}", *_BEGIN)
        if self._readouts:
            _refuse(f"{label} behind it", *_END)
        window = 1 + max(-1 if wire.source is None else self._stages[wire.source].window for wire in wires)
        try:
            if isinstance(layer, WeightedLayer):
                layer.delayed(skip, x)
            shape = layer.output_shape(tuple(x.shape[1:]))
        except ValueError as error:
            raise NetworkError(f"network_graph: layers must fit each other; got {label}: {error}") from None
        if len(skips) > 1:
            _refuse(f"{label}, whose skip is a concatenation", "Skip from one layer, or concatenate the inputs.")
        if any(wire.source is None or self._stages[wire.source].window >= window for wire in skips):
            _refuse(f"{label}, whose skip is from no earlier layer", "Skip from a layer that fires before its input.")
        self._readouts += [name] if kind == "readout" else []
        self._stages[name] = Stage(name, kind, layer, window, wires, next(iter(skips), None), shape)
        return torch.empty((SAMPLES, *shape), dtype=x.dtype, device="meta")

    def graph(self, output: object, image_shape: tuple[int, ...]) -> NetworkGraph:
        """The traced network. It must begin with an encoder and end with a readout."""
        stages, made = tuple(self._stages.values()), self.maker(output)
        if not stages:
            _refuse("no layers of ttfs_triton.nn", *_BEGIN)
        layers, last = ", ".join(type(stage.layer).__name__ for stage in stages), stages[-1]
        if last.kind != "readout":
            _refuse(layers, *_END)
        if not isinstance(made, Call) or self._wires[made] != (Wire(last.name, (), last.shape),):
            _refuse(f"{layers}, and another output", *_END)
        return NetworkGraph(stages, image_shape)


def _refuse(what: str, remedy: str, rule: str = "consist of layers of ttfs_triton.nn that hand on spikes") -> NoReturn:
    raise NetworkError(f"network_graph: model must {rule}; got {what}. {remedy}")
