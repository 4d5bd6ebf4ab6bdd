"""Counts of one layer while it runs, on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ttfs_triton.hardware.counts import InputCounts, Kind, LayerCounts
from ttfs_triton.hardware.synapses import FanOut, fan_out
from ttfs_triton.nn.ann import ANNConv2d, ANNLinear
from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.statistics import SpikeCounter
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

# Places in `LayerCounter.sums`, in front of the histogram.
FIXED = ("samples", "spikes", "saturated", "inputs_active", "nonzero_macs", "histogram_samples")


class LayerCounter(SpikeCounter):
    """A `SpikeCounter` that also sees what arrives at its layer, sample by sample.

    Attributes:
        name: of the layer.
        layer: whose synapses are counted.
        kind: see `LayerCounts`.
        real_inputs: inputs are real values, not spikes; known when the layer runs first.
        sample_spikes, sample_nonzero_macs: [N] int64 of each batch; empty unless `by_sample`.
    """

    def __init__(
        self, name: str, layer: WeightedLayer, histogram_bins: int, histogram_samples: int, by_sample: bool
    ) -> None:
        super().__init__((), output=isinstance(layer, Readout))
        self.name, self.layer = name, layer
        self.kind: Kind = _kind(layer)
        self.real_inputs = False
        self._bins, self._histogram_samples, self._by_sample = histogram_bins, histogram_samples, by_sample
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.sample_spikes: list[Tensor] = []
        self.sample_nonzero_macs: list[Tensor] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._output: tuple[Tensor, Tensor] | None = None
        # Whether the next layer reads these very outputs, not pooled; seen in the first batch.
        self._read_directly = False
        self._in_histogram = 0
        self._counted = False
        self._fan_out: FanOut | None = None

    def prepare(self, device: torch.device) -> None:
        """Nothing to do before the first batch, which tells the layer's shape."""

    def update(self, activations: Tensor) -> None:
        """Add a batch of outputs; see `SpikeCounter`."""
        if not self._counted:
            self.shape, self._counted = tuple(activations.shape[1:]), True
            super().prepare(activations.device)
            self._summed_activation = torch.zeros((), dtype=torch.float64, device=activations.device)
            self._histogram = torch.zeros(self._bins, dtype=torch.int64, device=activations.device)
        self._parts = []
        super().update(activations)
        spikes, total, by_place = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        self._summed_activation += total.sum(dtype=torch.float64)
        self._output = (activations, by_place)
        if self._by_sample:
            self.sample_spikes.append(spikes.long())
        self._add_to_histogram(activations)

    def add(self, activations: Tensor, active: Tensor) -> None:
        super().add(activations, active)
        by_place = _sum_channels(active, self.shape[0] if self._read_directly else active.shape[1])
        spikes = by_place.sum(1)
        self._parts.append((spikes, activations.sum(1, dtype=torch.float32), by_place))

    def arrive(self, inputs: Tensor, before: LayerCounter | None) -> None:
        """Add a batch of inputs, [N, channels, height, width] or [N, features], behind the layer `before`."""
        if self._fan_out is None:
            self._prepare_synapses(inputs)
        assert self._fan_out is not None
        by_place = None
        if before is not None and before._output is not None and before._output[0] is inputs:
            by_place = before._output[1] if before._read_directly else None
            before._read_directly = True  # not pooled: from the next batch on, counted when they are outputs
        if by_place is None:
            by_place = _nonzero_by_place(self.layer, inputs, self.real_inputs)
        # Sums along a row stay below 2²⁴, where float32 is exact; those over rows need not.
        by_row = by_place.view(len(by_place), len(self._rows), -1)
        operations = ((by_row * self._columns).sum(2).double() @ self._rows).long() * self._fan_out.channels
        self._inputs_active += by_row.sum(2).long().sum()
        self._nonzero_macs += operations.sum()
        if self._by_sample:
            self.sample_nonzero_macs.append(operations)

    def forget_output(self) -> None:
        """Let go of the last batch."""
        self._output = None

    def _prepare_synapses(self, inputs: Tensor) -> None:
        convolution = isinstance(self.layer, WeightedConv2d)
        self._fan_out = fan_out(self.layer, tuple(inputs.shape[2:]) if convolution else ())
        self._rows = self._fan_out.rows.to(inputs.device, torch.float64)
        self._columns = self._fan_out.columns.to(inputs.device, torch.float32)
        self._inputs_per_sample = math.prod(inputs.shape[1:])
        self._inputs_active = torch.zeros((), dtype=torch.int64, device=inputs.device)
        self._nonzero_macs = torch.zeros_like(self._inputs_active)

    def _add_to_histogram(self, activations: Tensor) -> None:
        room = min(self._histogram_samples - self._in_histogram, len(activations)) if self._bins else 0
        if room <= 0:
            return
        some = activations[:room].detach().double()
        # Zeros, the silent neurons, fall into the bin of the latest spikes.
        counts = torch.histc(some, self._bins, 0.0, 1.0).long()
        counts[0] -= (some == 0).sum()
        self._histogram += counts.flip(0)
        self._in_histogram += room

    def sums(self) -> Tensor:
        """All sums as one int64 vector: `FIXED`, the histogram, then spikes per neuron."""
        fixed = [self._samples, self._spikes.sum(), self._saturated, self._inputs_active, self._nonzero_macs]
        fixed.append(torch.full_like(self._samples, self._in_histogram))
        return torch.cat([torch.stack(fixed), self._histogram.view(-1), self._spikes])

    def summed_spike_time(self) -> Tensor:
        """Σ over spikes of 1 − activation, float64."""
        return self._spikes.sum().double() - self._summed_activation

    def read(self, sums: Sequence[int], summed_spike_time: float, spikes_delivered: int) -> LayerCounts:
        """Counts from `sums()`, of one process or added up over several."""
        assert self._fan_out is not None
        found = dict(zip(FIXED, sums, strict=False))
        samples, operations = found["samples"], found["nonzero_macs"]
        histogram, spikes = sums[len(FIXED) : len(FIXED) + self._bins], sums[len(FIXED) + self._bins :]
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
            never_active_per_sample=sum(count == 0 for count in spikes),
            summed_spike_time=summed_spike_time,
            histogram=tuple(histogram),
            histogram_samples=found["histogram_samples"],
        )


class InputCounter:
    """Spikes of a latency encoder."""

    def __init__(self) -> None:
        self._neurons, self._sums = 0, torch.zeros(2, dtype=torch.int64)

    def update(self, activations: Tensor) -> None:
        """Add a batch of activations [N, ...]."""
        self._neurons = math.prod(activations.shape[1:])
        found = torch.stack([activations.sign().sum(dtype=torch.float64), activations.floor().sum(dtype=torch.float64)])
        self._sums = self._sums.to(found.device) + found.long()

    def sums(self) -> Tensor:
        """[2] int64: spikes, saturated ones."""
        return self._sums

    def read(self, sums: Sequence[int]) -> InputCounts:
        """Counts from `sums()`, of one process or added up over several."""
        return InputCounts(self._neurons, sums[0], sums[1])


def _kind(layer: WeightedLayer) -> Kind:
    if isinstance(layer, Readout):
        return "readout"
    if isinstance(layer, AnalogEncoder):
        return "analog"
    return "ann" if isinstance(layer, ANNConv2d | ANNLinear) else "spiking"


def _nonzero_by_place(layer: WeightedLayer, inputs: Tensor, real: bool) -> Tensor:
    """Non-zero inputs, [N, height · width] or [N, 1] float32, channels added up."""
    if isinstance(layer, AnalogEncoder):
        inputs = inputs - layer.mean  # what its synapses read
    active = inputs.sign()
    if real:
        active = active.abs_()
    return _sum_channels(rearrange(active, "n c ... -> n (... c)"), active.shape[1])


def _sum_channels(active: Tensor, channels: int) -> Tensor:
    """Zeros and ones [N, places · channels], channels innermost, to sums [N, places] float32."""
    by_place = active.view(len(active), -1, channels)
    if active.dtype == torch.float32:
        return by_place @ active.new_ones(channels)  # exact whatever the products' precision; faster than a sum
    return by_place.sum(2, dtype=torch.float32)
