"""Counts of a layer's spikes and of its saturated, silent and never-active neurons, made on the device.

A layer of `ttfs_triton.nn` counts in its `statistics`, a `SpikeCounter` or None. `TTFSNetwork` gives one to all of its
layers; in another network, assign `layer.statistics = SpikeCounter((channels, height, width))`. Layers count only
within `with record_statistics(model):`, without a transfer to the host or a break in a compiled graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from ttfs_triton.table import Cell, Table
from ttfs_triton.wording import small_percent

# Kind of a layer with synapses: an "analog" one reads real values and emits spikes, a "readout" is the output layer.
LayerKind = Literal["analog", "spiking", "readout"]

# Bytes of activations counted together on a CPU: parts that fit its cache take half the time.
PART_BYTES = 3 << 19


@dataclass(eq=False)
class SpikeCounter:
    """Counts the spikes of one layer.

    Counts are exact. They are no buffers: distributed training would overwrite them with process 0's counts.

    Attributes:
        shape: shape of one sample's activations, such as (channels, height, width) or (features,).
        recording: whether the layer counts now; set by `record_statistics`.
        counts: int64, saturated spikes, samples, then spikes per neuron; None until recording starts.
    """

    shape: tuple[int, ...]
    recording: bool = False
    counts: Tensor | None = None

    @torch.inference_mode(False)  # the counts outlive the mode
    def prepare(self, device: torch.device) -> None:
        """Allocate the counts, or move them to `device`."""
        if self.counts is None:
            self.counts = torch.zeros(2 + math.prod(self.shape), dtype=torch.int64, device=device)
        self.counts = self.counts.to(device)

    def update(self, activations: Tensor) -> None:
        """Add a batch of activations [N, ...] in [0, 1]; 0 and nan are silent, 1 fired at the window's start."""
        for part in in_parts(channels_innermost(activations.detach())):
            self.add(part, where_fired(part))

    def add(self, flat: Tensor, fired: Tensor) -> None:
        """Add samples: activations [n, neurons] and, as zeros and ones, which neurons fired."""
        assert self.counts is not None, "record_statistics prepares counters"
        saturated = torch.eq(flat, 1, out=torch.empty_like(flat))
        self.counts[0].add_(saturated.sum(1, dtype=torch.float32).long().sum())
        self.counts[1].add_(len(flat))
        self.counts[2:].add_(fired.sum(0, dtype=torch.float32).long())

    def reset(self) -> None:
        """Set all counts to zero."""
        if self.counts is not None:
            self.counts.zero_()


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Spikes of one layer, summed over samples.

    Attributes:
        name: the layer's name in the model.
        kind: the layer's kind, see `LayerKind`.
        samples: number of samples counted.
        neurons: number of neurons in the layer.
        spikes: spikes before pooling, at most one per neuron and sample, saturated ones included. For a readout, whose
            neurons need not fire for a decision, these are the spikes in its window.
        saturated: spikes at the window's very start (activation exactly 1).
        never_active: neurons that fired for no sample.
    """

    name: str
    kind: LayerKind
    samples: NonNegativeInt
    neurons: NonNegativeInt
    spikes: NonNegativeInt
    saturated: NonNegativeInt
    never_active: NonNegativeInt

    @property
    def silent(self) -> int:
        """Neurons that did not fire, summed over samples."""
        return self.neurons * self.samples - self.spikes

    @property
    def sparsity(self) -> float:
        """Spikes per neuron and sample, in the paper's sense: lower is sparser."""
        return _ratio(self.spikes, self.neurons * self.samples)

    @property
    def saturated_share(self) -> float:
        """Share of neurons that fired at the window's very start."""
        return _ratio(self.saturated, self.neurons * self.samples)

    @property
    def never_active_share(self) -> float:
        """Share of the layer's neurons that fired for no sample."""
        return _ratio(self.never_active, self.neurons)


@contextmanager
def record_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block, count spikes in every forward pass of a network whose layers have counters.

    Counts add up over blocks until `reset_statistics`. A compiled model has two graphs, with and without counting.
    """
    counters = [(counter, counter.recording) for _, _, counter in _counters(model)]
    device = next(model.parameters()).device
    for counter, _ in counters:
        counter.prepare(device)
        counter.recording = True
    try:
        yield
    finally:
        for counter, recording in counters:
            counter.recording = recording


def reset_statistics(model: nn.Module) -> None:
    """Set the counts of every layer of `model` to zero."""
    for _, _, counter in _counters(model):
        counter.reset()


def collect_statistics(model: nn.Module, reduce: Callable[[Tensor], Tensor] | None = None) -> list[LayerStatistics]:
    """Read the counts of every layer that recorded something, in the model's order, in one transfer to the host.

    Args:
        model: a network whose layers have counters; it may be wrapped (DistributedDataParallel, torch.compile).
        reduce: sums an int64 vector over processes, for example `lambda t: accelerator.reduce(t, "sum")`. Called once.
            A neuron then counts as never active if it fired in no process. All processes must have recorded.
    Returns:
        One entry per layer, the readout last; an empty list if nothing was recorded.
    """
    named = [(name, layer, counter.counts) for name, layer, counter in _counters(model) if counter.counts is not None]
    if not named:
        return []
    counts = torch.cat([part for _, _, part in named])
    counts = (reduce(counts) if reduce is not None else counts).cpu().split([len(part) for _, _, part in named])
    statistics, names = [], short_names([name for name, _, _ in named])
    for name, (_, layer, _), part in zip(names, named, counts, strict=True):
        (saturated, samples), spikes = part[:2].tolist(), part[2:]
        statistics.append(
            LayerStatistics(
                name=name,
                kind=layer.kind,
                samples=samples,
                neurons=len(spikes),
                spikes=int(spikes.sum()),
                saturated=saturated,
                never_active=int((spikes == 0).sum()),
            )
        )
    return statistics


def sparsity(statistics: Sequence[LayerStatistics]) -> float:
    """Spikes per neuron and sample over the hidden layers, before pooling; lower is sparser.

    Args:
        statistics: from `collect_statistics`.
    Returns:
        A fraction in [0, 1]; nan if nothing was recorded.
    """
    layers = [layer for layer in statistics if layer.kind != "readout"]
    return _ratio(sum(layer.spikes for layer in layers), sum(layer.neurons * layer.samples for layer in layers))


def _counters(model: nn.Module) -> list[tuple[str, Any, SpikeCounter]]:
    """Name, layer and counter of every layer that has one."""
    layers = [(name, module, getattr(module, "statistics", None)) for name, module in model.named_modules()]
    return [(name, module, counter) for name, module, counter in layers if isinstance(counter, SpikeCounter)]


def channels_innermost(activations: Tensor) -> Tensor:
    """[N, channels, ...] as [N, neurons], channels last; a view if stored so. A CPU sums these eight times as fast."""
    return activations if activations.dim() == 2 else activations.movedim(1, -1).flatten(1)


def where_fired(flat: Tensor) -> Tensor:
    """1 where a neuron fired, 0 where it did not or is nan, in the type of the activations [N, neurons].

    Float sums of zeros and ones are exact to 2²⁴ and five times as fast as sums of bool.
    """
    return torch.gt(flat, 0, out=torch.empty_like(flat))


def in_parts(flat: Tensor) -> Sequence[Tensor]:
    """[N, neurons] in parts that fit a CPU's cache; on other devices, and in compiled graphs, in one part."""
    if flat.device.type != "cpu" or torch.compiler.is_compiling():
        return (flat,)
    return flat.split(max(1, PART_BYTES // max(1, flat.element_size() * flat.shape[1])))


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the components that wrappers and containers add: "module.features.conv1" → "conv1".

    All names stay unchanged if shortening would make two names equal or one empty.
    """
    wrappers = {"module", "_orig_mod", "features", "network"}
    short = [".".join(part for part in name.split(".") if part not in wrappers) for name in names]
    return short if len(set(short)) == len(names) and all(short) else list(names)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


def layer_table(layers: Sequence[LayerStatistics], title: str = "") -> Table:
    """Table of layers: neurons, spikes per sample, shares of active, saturated and never active neurons."""
    headers = ("layer", "neurons", "spikes an image", "active", "saturated", "never active")
    rows = list[Sequence[Cell]]()
    for layer in layers:
        shares = map(small_percent, (layer.saturated_share, layer.never_active_share))
        spikes = f"{layer.spikes / max(1, layer.samples):,.1f}"
        rows.append((layer.name, f"{layer.neurons:,}", spikes, layer.sparsity, *shares))
    return Table(title, headers, rows)
