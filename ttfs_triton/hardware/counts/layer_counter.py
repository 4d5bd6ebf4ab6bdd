"""Counts of one layer while it runs, on its device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttfs_triton.hardware.counts.counts import InputCounts, LayerCounts
from ttfs_triton.hardware.counts.synapses import FanOut, described, fan_out, neurons_without_input
from ttfs_triton.nn.coding import AnalogEncoder, SignedEncoder
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.statistics import SpikeCounter, channels_innermost, in_parts, where_fired
from ttfs_triton.nn.weighted import WeightedConv2d

# Places in `LayerCounter.sums`, in front of the histogram.
FIXED = (
    *("samples", "spikes", "saturated", "active_inputs", "nonzero_macs", "synaptic_operations", "without_input"),
    *("histogram_samples", "skipped"),
)


class LayerCounter(SpikeCounter):
    """A `SpikeCounter` that also sees what arrives at its layer, sample by sample.

    Attributes:
        stage: the layer in its network.
        layer: whose synapses are counted.
        real_inputs: inputs are real values, not spikes.
    """

    def __init__(
        self, stage: Stage, real_inputs: bool, histogram_bins: int, histogram_samples: int, by_sample: bool
    ) -> None:
        super().__init__(())
        self.stage, self.layer, self.real_inputs = stage, stage.weighted, real_inputs
        self._bins, self._histogram_samples, self._by_sample = histogram_bins, histogram_samples, by_sample
        self.reset()

    def reset(self) -> None:
        super().reset()
        device = self.layer.weight.device
        self._summed_activation = torch.zeros((), dtype=torch.float64, device=device)
        self._histogram = torch.zeros(self._bins, dtype=torch.int64, device=device)
        (
            self._active_inputs,
            self._nonzero_macs,
            self._synaptic_operations,
            self._without_input,
            self._skipped,
        ) = torch.zeros(5, dtype=torch.int64, device=device)
        self._spikes_by_sample: list[Tensor] = []
        self._operations_by_sample: list[Tensor] = []
        self._in_histogram = 0
        self._fan_out: FanOut | None = None

    def prepare(self, device: torch.device) -> None:
        """Nothing to do before the first batch, which tells the layer's shape."""

    def update(self, activations: Tensor) -> None:
        """Add a batch of outputs; see `SpikeCounter`. Of samples that do not count, the layer's inputs know nothing."""
        if self.counted is not None:
            raise NotImplementedError("counting: batches must not be padded; got one that is. Count images alone.")
        if not self.shape:
            self.shape = tuple(activations.shape[1:])
            super().prepare(activations.device)
        flat = channels_innermost(activations.detach())
        for part in in_parts(flat):
            fired = where_fired(part)
            self.add(part, fired)
            self._summed_activation += part.sum(1, dtype=torch.float32).sum(dtype=torch.float64)
            if self._by_sample:
                self._spikes_by_sample.append(fired.sum(1, dtype=torch.float32).long())
        room = min(self._histogram_samples - self._in_histogram, len(flat)) if self._bins else 0
        for part in in_parts(flat[:room]):
            self._histogram += spike_histogram(part, self._bins)
        self._in_histogram += room

    def arrive(self, inputs: Tensor, skip: Tensor | None = None) -> None:
        """Add a batch of inputs, [N, channels, height, width] or [N, features], and of the layer's delayed spikes."""
        if skip is not None:
            skip = self.layer.arriving(skip.detach(), self.stage.shape)
        if self._fan_out is None:
            self._prepare_synapses(inputs)
        assert self._fan_out is not None
        signed = isinstance(self.layer, SignedEncoder)
        if isinstance(self.layer, AnalogEncoder | SignedEncoder):
            inputs = inputs - self.layer.mean  # what its synapses read, but for a factor
        elif self.layer.kind == "spiking":
            self._without_input += neurons_without_input(self.layer, inputs.detach(), skip)
        flat = channels_innermost(inputs.detach())
        for part in in_parts(flat):
            active = torch.ne(part, 0, out=torch.empty_like(part, dtype=torch.float32))
            self._active_inputs += active.sum(1).long().sum()
            products = self._products(active)
            operations = self._products(where_fired(part).float()) if signed else products
            self._nonzero_macs += products.sum()
            if self.adds_to_slope:
                self._synaptic_operations += operations.sum()
            if self._by_sample:
                self._operations_by_sample.append(operations)
        if skip is not None:
            self._arrive_late(skip)

    def _arrive_late(self, skip: Tensor) -> None:
        """Add delayed spikes [N, ...], each of which meets one synapse, to a batch that has arrived."""
        each = torch.count_nonzero(skip.flatten(1), 1)
        spikes = each.sum()
        self._skipped += spikes
        self._active_inputs += spikes
        self._nonzero_macs += spikes
        if self.adds_to_slope:
            self._synaptic_operations += spikes
        if self._by_sample:
            operations = torch.cat(self._operations_by_sample)
            operations[-len(each) :] += each
            self._operations_by_sample = [operations]

    @property
    def arrived(self) -> bool:
        """Whether anything has."""
        return self._fan_out is not None

    @property
    def adds_to_slope(self) -> bool:
        """Whether inputs add weights to a slope: spikes do, and bright pixels of a signed encoder."""
        return not self.real_inputs or isinstance(self.layer, SignedEncoder)

    def _products(self, chosen: Tensor) -> Tensor:
        """[n] int64: fan-out of the inputs that are 1 in `chosen`, [n, inputs] float32, which is changed."""
        assert self._fan_out is not None
        reached = chosen if self._reach is None else chosen.mul_(self._reach)
        return reached.sum(1, dtype=self._exact).long() * self._fan_out.channels

    def _prepare_synapses(self, inputs: Tensor) -> None:
        convolution = isinstance(self.layer, WeightedConv2d)
        found = self._fan_out = fan_out(self.layer, tuple(inputs.shape[2:]) if convolution else ())
        # Fan-out of each input, channels innermost, divided by `channels`; None where that is 1 throughout.
        self._reach: Tensor | None = None
        if convolution:
            self._reach = found.places.repeat_interleave(found.inputs).to(inputs.device, torch.float32)
        # Below 2²⁴, sums of integers are exact in float32.
        self._exact = torch.float32 if found.synapses < found.channels << 24 else torch.float64
        self._described = described(self.layer, found, inputs)

    def sums(self) -> Tensor:
        """All sums as one int64 vector: `FIXED`, the histogram, then spikes per neuron."""
        fixed = [self._samples, self._spikes.sum(), self._saturated, self._active_inputs, self._nonzero_macs]
        fixed += [self._synaptic_operations, self._without_input, torch.full_like(self._samples, self._in_histogram)]
        fixed += [self._skipped]
        return torch.cat([torch.stack(fixed), self._histogram, self._spikes])

    def summed_spike_time(self) -> Tensor:
        """Σ over spikes of 1 − activation, float64."""
        return self._spikes.sum().double() - self._summed_activation

    def spikes_by_sample(self) -> Tensor:
        """[samples] int64, in the order of counting; for counters that keep it."""
        return torch.cat(self._spikes_by_sample)

    def operations_by_sample(self) -> Tensor:
        """[samples] int64, synaptic operations, in the order of counting; for layers that have some."""
        return torch.cat(self._operations_by_sample)

    def read(self, sums: Tensor, summed_spike_time: float, spikes_delivered: int) -> LayerCounts:
        """Counts from `sums()`, of one process or added up over several, on the CPU."""
        assert self._fan_out is not None
        fixed, histogram, spikes = sums.split([len(FIXED), self._bins, len(sums) - len(FIXED) - self._bins])
        found = dict(zip(FIXED, fixed.tolist(), strict=True))
        found.pop("skipped")
        dense = self._described["synapses"] * found["samples"]
        return LayerCounts(
            name=self.stage.name,
            neurons=len(spikes),
            **self._described,
            **found,
            spikes_delivered=spikes_delivered,
            analog_macs=dense if self.real_inputs else 0,
            dense_macs=dense,
            never_active=int((spikes == 0).sum()),
            summed_spike_time=summed_spike_time,
            histogram=tuple(histogram.tolist()),
        )


class InputCounter:
    """Spikes of a latency encoder."""

    def __init__(self, device: torch.device) -> None:
        self._neurons, self._sums = 0, torch.zeros(2, dtype=torch.int64, device=device)

    def update(self, activations: Tensor) -> None:
        """Add a batch of activations [N, ...]."""
        flat = activations.detach().flatten(1)
        self._neurons = flat.shape[1]
        self._sums[0] += torch.count_nonzero(flat > 0)
        self._sums[1] += torch.count_nonzero(flat == 1)

    def sums(self) -> Tensor:
        """[2] int64: spikes, saturated ones."""
        return self._sums

    def read(self, sums: Tensor) -> InputCounts:
        """Counts from `sums()`, of one process or added up over several."""
        return InputCounts(self._neurons, *sums.tolist())


def spike_histogram(flat: Tensor, bins: int) -> Tensor:
    """[bins] int64, spikes by time from the window's start, 1 − activation, in equal bins over the window.

    Every spike is in one bin, no silent neuron in any. A spike at a border of bins belongs to the earlier one; as near
    to it as float32 can tell, to either.

    Args:
        flat: [n, neurons] in [0, 1]; `nan` counts as silent.
        bins: at least 1.
    """
    # Place 0 takes the silent, place k up to `bins` the activations in [(k − 1)/bins, k/bins), the last one those of 1:
    # ⌈a · bins⌉, but for a scale that is a little larger, so that borders go up.
    scale = torch.nextafter(torch.tensor(float(bins)), torch.tensor(math.inf)).item()
    place = (flat.float() * scale).ceil_().nan_to_num_(0.0)
    if place.is_cpu:  # four times as fast; a GPU's host would have to wait for the largest place
        found = torch.bincount(place.view(-1).int(), minlength=bins + 2)
    else:
        found = torch.histc(place, bins + 2, 0.0, float(bins + 2)).long()
    found[bins] += found[bins + 1]
    return found[1 : bins + 1].flip(0)
