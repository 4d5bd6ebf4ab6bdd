"""A network as the graph of its layers: the window in which each fires, and its inputs.

Counts, simulation, export, files and training read this one description, which `ttfs_triton.nn.trace.network_graph`
makes from a module. Modules that it cannot describe are refused there, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.nn.folding import plain_synapses
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.statistics import LayerKind, SpikeCounter
from ttfs_triton.nn.weighted import WeightedLayer

StageKind = LayerKind | Literal["latency"]


class NetworkError(ValueError):
    """A module is no network of `ttfs_triton.nn` layers; the message names what was found, and what to use instead."""


@dataclass(frozen=True)
class Wire:
    """A connection into a layer: the stage whose spikes it reads, and the pooling, upsampling and flattening between.

    Attributes:
        source: name of the stage whose spikes arrive; None: the images.
        route: modules between source and layer, in order: pools, upsampling, flattening, without time and synapses.
        shape: shape of the spikes that it delivers for one image.
    """

    source: str | None
    route: tuple[nn.Module, ...]
    shape: tuple[int, ...]

    def deliver(self, emitted: Mapping[str | None, Tensor]) -> Tensor:
        """The source's activations, as they reach the layer, [N, *shape]; `emitted` holds all sources'."""
        spikes = emitted[self.source]
        for module in self.route:
            spikes = module(spikes)
        return spikes

    def routed(self, module: nn.Module) -> Wire:
        """The wire with one more module, which treats each channel by itself."""
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
        """The layer; TypeError for a latency encoder, which has no synapses."""
        if not isinstance(self.layer, WeightedLayer):
            raise TypeError(f"Stage.weighted: stage must have synapses; got {self.name}, a {self.kind} encoder.")
        return self.layer

    @property
    def neuron(self) -> Neuron | None:
        """How its neurons fire; None for a `LatencyEncoder`, or an `AnalogEncoder` without one."""
        found = getattr(self.layer, "neuron", None)
        return found if isinstance(found, Neuron) else None

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
        stages: one for each layer that fires.
        image_shape: shape of one input image, such as (channels, height, width).
    """

    stages: tuple[Stage, ...]
    image_shape: tuple[int, ...]

    def __getitem__(self, name: str) -> Stage:
        """The stage with this name; KeyError without one."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(f"NetworkGraph: name must be one of {', '.join(s.name for s in self.stages)}; got {name}.")

    @property
    def encoder(self) -> Stage:
        """The first stage."""
        return self.stages[0]

    @property
    def weighted(self) -> tuple[Stage, ...]:
        """The stages with synapses: all but a latency encoder."""
        return tuple(stage for stage in self.stages if stage.kind != "latency")

    def delay(self, stage: Stage, wire: Wire) -> int:
        """Windows by which a wire into a stage delays its spikes, so that they arrive together with the others."""
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
        """Number of the readout's firing window, counted from 0: as many windows pass before it."""
        return self.stages[-1].window

    def prepare_statistics(self) -> None:
        """Give each layer with synapses a `SpikeCounter`, if it has none."""
        for stage in self.weighted:
            if stage.weighted.statistics is None:
                stage.weighted.statistics = SpikeCounter(stage.shape)

    def run(
        self, images: Tensor, fire: Callable[[Stage, Tensor, Tensor | None], Tensor], *, silent: float = 0.0
    ) -> Tensor:
        """Run the stages in order and return the readout's outputs; other outputs are freed after their last reader.

        Args:
            images: [N, *image_shape].
            fire: called with a stage, its pooled and flattened inputs, and its delayed spikes (one per neuron) or None.
                Returns the neurons' outputs [N, *shape]: activations, or other numbers for which larger means earlier.
            silent: the number that stands for no spike.
        """
        last_reader = {wire.source: stage for stage in self.stages for wire in stage.wires}
        emitted: dict[str | None, Tensor] = {None: images}
        for stage in self.stages:
            skip = None if stage.skip is None else stage.skip.deliver(emitted)
            if skip is not None:
                skip = stage.weighted.read_skip(skip, stage.shape, silent=silent)
            inputs = delivered(stage.inputs, emitted)
            for wire in stage.wires:
                if last_reader[wire.source] is stage:
                    emitted.pop(wire.source, None)
            emitted[stage.name] = fire(stage, inputs, skip)
        return emitted[self.stages[-1].name]

    def describe(self) -> list[str]:
        """A line for each stage: name, shape, layer, and where its inputs come from; equal for equal graphs."""
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
