"""Spikes per layer: active, saturated, silent and never-active neurons, counted on the device.

Every layer of `ttfs_triton.nn` has an attribute `statistics`, None or a `SpikeCounter` made for the shape of its
output. `TTFSNetwork` gives one to each of its layers; in a network of your own, assign
`layer.statistics = SpikeCounter((channels, height, width))`. Counting happens inside the layer's forward, only within
`with record_statistics(model):`, with no transfer to the host and no break in a compiled graph.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Samples counted together on a CPU: of 0.2 to 3 MiB, the fastest on an EPYC with 1 MiB of cache a core.
PART_BYTES = 3 << 19


class SpikeCounter:
    """Counts the spikes of one layer.

    Counts are int64, exact, and deliberately no buffers: distributed training would overwrite them with those of the
    first process at every step, and they have no place in a checkpoint.

    Attributes:
        shape: of one sample's activations, such as (channels, height, width) or (features,).
        output: True for the readout, whose spikes are kept apart from those of hidden layers.
        recording: whether layers count now; set by `record_statistics`.
    """

    def __init__(self, shape: Sequence[int], *, output: bool = False) -> None:
        self.shape, self.output, self.recording = tuple(shape), output, False
        self._spikes = torch.zeros(0, dtype=torch.int64)  # one count per neuron; allocated when recording starts
        self._saturated = torch.zeros((), dtype=torch.int64)
        self._samples = torch.zeros((), dtype=torch.int64)

    def prepare(self, device: torch.device) -> None:
        """Allocate the counts, or move them to `device`."""
        if self._spikes.numel() == 0:
            self._spikes = torch.zeros(math.prod(self.shape), dtype=torch.int64, device=device)
        self._spikes = self._spikes.to(device)
        self._saturated, self._samples = self._saturated.to(device), self._samples.to(device)

    def update(self, activations: Tensor) -> None:
        """Add a batch: [N, *shape] activations in [0, 1], where 0 is silent and 1 fired at the window's start."""
        flat = channels_innermost(activations.detach())
        parts = _parts(flat)
        scratch = torch.empty_like(parts[0])
        for part in parts:
            out = scratch[: len(part)]
            # Float sums of zeros and ones are exact to 2²⁴ and, unlike comparisons, vectorised; nan counts as silent.
            saturated = torch.floor(part, out=out).sum(1, dtype=torch.float32)
            self._saturated.add_(saturated.nan_to_num(0).long().sum())
            active = torch.sign(part, out=out).sum(0, dtype=torch.float32)
            self._spikes.add_(active.nan_to_num(0).long())
        self._samples.add_(flat.shape[0])

    def reset(self) -> None:
        """Set all counts to zero."""
        for count in (self._spikes, self._saturated, self._samples):
            count.zero_()

    def flat(self) -> Tensor:
        """All counts as one int64 vector: saturated spikes, samples, then spikes per neuron."""
        return torch.cat([self._saturated.view(1), self._samples.view(1), self._spikes])


@dataclass(frozen=True)
class LayerStatistics:
    """Spike counts of one layer over all recorded samples.

    Attributes:
        name: of the layer in the model.
        neurons: per sample.
        samples: recorded.
        active: spikes, saturated ones included (a neuron fires at most once per sample).
        saturated: spikes at the window's very start (activation exactly 1).
        never_active: neurons that fired for none of the samples.
        output: True for the readout, False for hidden layers.
    """

    name: str
    neurons: int
    samples: int
    active: int
    saturated: int
    never_active: int
    output: bool = False

    @property
    def silent(self) -> int:
        """Neurons, summed over samples, that did not fire."""
        return self.neurons * self.samples - self.active

    @property
    def active_fraction(self) -> float:
        """Spikes per neuron and sample: the layer's sparsity in the paper's sense, lower is sparser."""
        return _ratio(self.active, self.neurons * self.samples)

    @property
    def saturated_fraction(self) -> float:
        """Fraction of neurons that fired at the window's very start."""
        return _ratio(self.saturated, self.neurons * self.samples)

    @property
    def silent_fraction(self) -> float:
        """Fraction of neurons that did not fire."""
        return _ratio(self.silent, self.neurons * self.samples)

    @property
    def never_active_fraction(self) -> float:
        """Fraction of the layer's neurons that fired for no sample."""
        return _ratio(self.never_active, self.neurons)


@contextmanager
def record_statistics(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Count spikes in every forward pass inside the `with` block (or, with enabled=False, in none of them).

    Counts add up over blocks until `reset_statistics`. A compiled model has two graphs, with and without counting.
    """
    counters = [(counter, counter.recording) for _, counter in _counters(model)]
    device = next(model.parameters()).device
    for counter, _ in counters:
        if enabled:
            counter.prepare(device)
        counter.recording = enabled
    try:
        yield
    finally:
        for counter, before in counters:
            counter.recording = before


def reset_statistics(model: nn.Module) -> None:
    """Set the counts of every layer of `model` to zero."""
    for _, counter in _counters(model):
        counter.reset()


def collect_statistics(model: nn.Module, reduce: Callable[[Tensor], Tensor] | None = None) -> list[LayerStatistics]:
    """Read the counts of every layer that recorded something, in the order of the model; the one host transfer.

    Args:
        model: a network whose layers have counters; it may be wrapped (DistributedDataParallel, torch.compile).
        reduce: sums an int64 vector over processes, for example `lambda t: accelerator.reduce(t, "sum")`. Called once.
            A neuron then counts as never active if it fired in no process. All processes must have recorded.
    Returns:
        One entry per layer, the readout last; an empty list if nothing was recorded.
    """
    named = [(name, counter) for name, counter in _counters(model) if counter._spikes.numel() > 0]
    if not named:
        return []
    counts = torch.cat([counter.flat() for _, counter in named])
    counts = (reduce(counts) if reduce is not None else counts).cpu()
    statistics, names = [], short_names([name for name, _ in named])
    for name, (_, counter) in zip(names, named, strict=True):
        neurons = counter._spikes.numel()
        (saturated, samples), spikes, counts = counts[:2].tolist(), counts[2 : 2 + neurons], counts[2 + neurons :]
        never_active = neurons - int(torch.count_nonzero(spikes))
        active = int(spikes.sum())
        statistics.append(LayerStatistics(name, neurons, samples, active, saturated, never_active, counter.output))
    return statistics


def sparsity(statistics: Sequence[LayerStatistics], *, with_outputs: bool = False) -> float:
    """Spikes per neuron and sample over the hidden layers, before pooling; lower is sparser.

    Args:
        statistics: from `collect_statistics`.
        with_outputs: count the output layer's neurons and spikes too.
    Returns:
        A fraction in [0, 1]; nan if nothing was recorded.
    """
    layers = [layer for layer in statistics if with_outputs or not layer.output]
    return _ratio(sum(layer.active for layer in layers), sum(layer.neurons * layer.samples for layer in layers))


def _counters(model: nn.Module) -> list[tuple[str, SpikeCounter]]:
    found = []
    for name, module in model.named_modules():
        counter = getattr(module, "statistics", None)
        if isinstance(counter, SpikeCounter):
            found.append((name, counter))
    return found


def channels_innermost(activations: Tensor) -> Tensor:
    """[N, channels, ...] as [N, neurons]: a view of channels-last ones, whose sums are eight times as fast on a CPU."""
    return activations if activations.dim() == 2 else activations.movedim(1, -1).flatten(1)


def samples_at_once(flat: Tensor) -> int:
    """How many samples of [N, neurons] to read together: as many as a CPU's cache holds, since they are read several
    times; elsewhere all.
    """
    if flat.device.type != "cpu":
        return max(1, len(flat))
    return max(1, PART_BYTES // max(1, flat.element_size() * flat.shape[1]))


def _parts(flat: Tensor) -> Sequence[Tensor]:
    return (flat,) if torch.compiler.is_compiling() else flat.split(samples_at_once(flat))


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the components that wrappers and containers add: "module.features.conv1" → "conv1"."""
    wrappers = {"module", "_orig_mod", "features"}
    return [".".join(part for part in name.split(".") if part not in wrappers) for name in names]


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
