"""Counts of one layer while it runs, on its device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttfs_triton.hardware.counts.counts import InputCounts, Kind, LayerCounts
from ttfs_triton.hardware.counts.histogram import spike_histogram
from ttfs_triton.hardware.counts.masks import WORDS, SpikeMasks, add_bytes
from ttfs_triton.hardware.counts.scratch import scratch
from ttfs_triton.hardware.counts.synapses import FanOut, fan_out
from ttfs_triton.nn.ann import ANNConv2d, ANNLinear
from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.statistics import SpikeCounter, channels_innermost, samples_at_once
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

# Places in `LayerCounter.sums`, in front of the histogram.
FIXED = ("samples", "spikes", "saturated", "inputs_active", "nonzero_macs", "histogram_samples")
# Batches whose sums by sample wait to be added up together: behind a layer, with cold caches, an operation takes a CPU
# 10 to 40 µs however little it does.
BATCHES = 16


class LayerCounter(SpikeCounter):
    """A `SpikeCounter` that also sees what arrives at its layer, sample by sample.

    Attributes:
        name: of the layer.
        layer: whose synapses are counted.
        kind: see `LayerCounts`.
        real_inputs: inputs are real values, not spikes; known when the layer runs first.
    """

    def __init__(
        self,
        name: str,
        layer: WeightedLayer,
        histogram_bins: int,
        histogram_samples: int,
        by_sample: bool,
    ) -> None:
        super().__init__((), output=isinstance(layer, Readout))
        self.name, self.layer = name, layer
        self.kind: Kind = _kind(layer)
        self.real_inputs = False
        self._bins, self._histogram_samples, self._by_sample = histogram_bins, histogram_samples, by_sample
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._inputs: list[Tensor] = []
        self._spikes_by_sample: list[Tensor] = []
        self._operations_by_sample: list[Tensor] = []
        self._in_histogram = 0
        self._masks: SpikeMasks | None = None
        self._fan_out: FanOut | None = None

    def prepare(self, device: torch.device) -> None:
        """Nothing to do before the first batch, which tells the layer's shape."""

    def update(self, activations: Tensor) -> None:
        """Add a batch of outputs; see `SpikeCounter`. `nan` counts as a spike."""
        flat = channels_innermost(activations.detach())
        size = max(1, min(WORDS, samples_at_once(flat), len(flat)))
        if self._masks is None:
            self.shape = tuple(activations.shape[1:])
            super().prepare(flat.device)
            self._summed_activation = torch.zeros((), dtype=torch.float64, device=flat.device)
            self._histogram = torch.zeros(self._bins, dtype=torch.int64, device=flat.device)
        if self._masks is None or len(self._masks) < size:
            self._masks = SpikeMasks(size, self._spikes)
        activation = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
        masks = torch.empty(2, len(flat), self._masks.groups, dtype=torch.int64, device=flat.device)
        for part, total, *sums in zip(*(tensor.split(size) for tensor in (flat, activation, *masks)), strict=True):
            torch.sum(part, 1, dtype=torch.float32, out=total)
            self._masks.add(part, *sums)
        self._masks.flush()
        self._outputs.append((activation, masks))
        room = min(self._histogram_samples - self._in_histogram, len(flat)) if self._bins else 0
        if room > 0:
            self._histogram += spike_histogram(flat[:room], self._bins)
            self._in_histogram += room
        if len(self._outputs) == BATCHES:
            self._add_up()

    def arrive(self, inputs: Tensor) -> None:
        """Add a batch of inputs, [N, channels, height, width] or [N, features]."""
        if self._fan_out is None:
            self._prepare_synapses(inputs)
        if isinstance(self.layer, AnalogEncoder):
            inputs = inputs - self.layer.mean  # what its synapses read
        flat = channels_innermost(inputs.detach())
        size = min(samples_at_once(flat), max(1, len(flat)))
        memory = scratch(size, flat.shape[1], torch.float32, flat.device)
        sums = torch.empty(1 if self._reach is None else 2, len(flat), dtype=self._exact, device=flat.device)
        for part, *out in zip(*(tensor.split(size) for tensor in (flat, *sums)), strict=True):
            active = torch.ne(part, 0, out=memory[: len(part)])
            torch.sum(active, 1, dtype=self._exact, out=out[0])
            if self._reach is not None:
                torch.sum(active.mul_(self._reach), 1, dtype=self._exact, out=out[1])
        self._inputs.append(sums)

    def _add_up(self) -> None:
        """Add the sums that wait to the counts."""
        if self._outputs:
            activation, masks = zip(*self._outputs, strict=True)
            spikes, saturated = add_bytes(torch.cat(masks, 1)).sum(2)
            self._samples += len(spikes)
            self._saturated += saturated.sum()
            self._summed_activation += torch.cat(activation).sum(dtype=torch.float64)
            if self._by_sample:
                self._spikes_by_sample.append(spikes)
        if self._inputs:
            assert self._fan_out is not None
            sums = torch.cat(self._inputs, 1).long()
            operations = sums[-1] * self._fan_out.channels
            self._inputs_active += sums[0].sum()
            self._nonzero_macs += operations.sum()
            if self._by_sample:
                self._operations_by_sample.append(operations)
        self._outputs, self._inputs = [], []

    def _prepare_synapses(self, inputs: Tensor) -> None:
        convolution = isinstance(self.layer, WeightedConv2d)
        found = self._fan_out = fan_out(self.layer, tuple(inputs.shape[2:]) if convolution else ())
        # Fan-out of each input, channels innermost, divided by `channels`; None where that is 1 throughout.
        self._reach: Tensor | None = None
        if convolution:
            by_place = torch.outer(found.rows, found.columns).flatten()
            self._reach = by_place.repeat_interleave(found.inputs).to(inputs.device, torch.float32)
        # Below 2²⁴, sums of integers are exact in float32.
        self._exact = torch.float32 if found.synapses < found.channels << 24 else torch.float64
        self._inputs_per_sample = math.prod(inputs.shape[1:])
        self._inputs_active = torch.zeros((), dtype=torch.int64, device=inputs.device)
        self._nonzero_macs = torch.zeros_like(self._inputs_active)

    def flat(self) -> Tensor:
        self._add_up()
        return super().flat()

    def sums(self) -> Tensor:
        """All sums as one int64 vector: `FIXED`, the histogram, then spikes per neuron."""
        self._add_up()
        fixed = [self._samples, self._spikes.sum(), self._saturated, self._inputs_active, self._nonzero_macs]
        fixed.append(torch.full_like(self._samples, self._in_histogram))
        return torch.cat([torch.stack(fixed), self._histogram.view(-1), self._spikes])

    def summed_spike_time(self) -> Tensor:
        """Σ over spikes of 1 − activation, float64."""
        self._add_up()
        return self._spikes.sum().double() - self._summed_activation

    def spikes_by_sample(self) -> Tensor:
        """[samples] int64, in the order of counting; for counters that keep it."""
        self._add_up()
        return torch.cat(self._spikes_by_sample)

    def operations_by_sample(self) -> Tensor:
        """[samples] int64, products with inputs that are not zero, in the order of counting."""
        self._add_up()
        return torch.cat(self._operations_by_sample)

    def read(self, sums: Tensor, summed_spike_time: float, spikes_delivered: int) -> LayerCounts:
        """Counts from `sums()`, of one process or added up over several, on the CPU."""
        assert self._fan_out is not None
        fixed, histogram, spikes = sums.split([len(FIXED), self._bins, len(sums) - len(FIXED) - self._bins])
        found = dict(zip(FIXED, fixed.tolist(), strict=True))
        samples, operations = found["samples"], found["nonzero_macs"]
        dense = self._fan_out.synapses * samples
        return LayerCounts(
            name=self.name,
            kind=self.kind,
            samples=samples,
            neurons_per_sample=len(spikes),
            inputs_per_sample=self._inputs_per_sample,
            synapses=self._fan_out.synapses,
            weights=self.layer.weight.numel(),
            biases=0 if self.layer.bias is None else self.layer.bias.numel(),
            spikes=found["spikes"],
            spikes_delivered=spikes_delivered,
            inputs_active=found["inputs_active"],
            synaptic_operations=0 if self.real_inputs else operations,
            nonzero_macs=operations,
            analog_macs=dense if self.real_inputs else 0,
            dense_macs=dense,
            saturated=found["saturated"],
            never_active_per_sample=int((spikes == 0).sum()),
            summed_spike_time=summed_spike_time,
            histogram=tuple(histogram.tolist()),
            histogram_samples=found["histogram_samples"],
        )


class InputCounter:
    """Spikes of a latency encoder."""

    def __init__(self) -> None:
        self._neurons, self._sums = 0, torch.zeros(2, dtype=torch.int64)

    def update(self, activations: Tensor) -> None:
        """Add a batch of activations [N, ...]."""
        flat = activations.detach().flatten(1)
        self._neurons = flat.shape[1]
        size = min(samples_at_once(flat), max(1, len(flat)))
        memory = scratch(size, self._neurons, flat.dtype, flat.device)
        sums = torch.empty(2, len(flat), dtype=torch.float32, device=flat.device)
        for part, *out in zip(*(tensor.split(size) for tensor in (flat, *sums)), strict=True):
            torch.sum(torch.ceil(part, out=memory[: len(part)]), 1, dtype=torch.float32, out=out[0])
            torch.sum(torch.floor(part, out=memory[: len(part)]), 1, dtype=torch.float32, out=out[1])
        self._sums = self._sums.to(flat.device) + sums.nan_to_num_(0).long().sum(1)

    def sums(self) -> Tensor:
        """[2] int64: spikes, saturated ones."""
        return self._sums

    def read(self, sums: Tensor) -> InputCounts:
        """Counts from `sums()`, of one process or added up over several."""
        return InputCounts(self._neurons, *sums.tolist())


def _kind(layer: WeightedLayer) -> Kind:
    if isinstance(layer, Readout):
        return "readout"
    if isinstance(layer, AnalogEncoder):
        return "analog"
    return "ann" if isinstance(layer, ANNConv2d | ANNLinear) else "spiking"
