"""Counts of a simulated layer, summed on its device: spikes, and the work of clock-driven neurons."""

import torch
from torch import Tensor

from ttfs_triton.hardware.counts.counts import LayerActivity, LayerCounts
from ttfs_triton.hardware.counts.layer_counter import SUMS, SynapseCounter
from ttfs_triton.nn.clock import Clock
from ttfs_triton.nn.weighted import WeightedLayer


class ClockedCounter:
    """Sums of one layer over batches; read once, at the end.

    Attributes:
        synapses: what arrived.
        spikes_by_sample: [n] int64 of each batch.
    """

    def __init__(self, name: str, layer: WeightedLayer, clock: Clock, window: float, gating: bool) -> None:
        self._name, self._gating = name, gating
        self._clock, self._never = clock, len(clock.instants(window))
        self._window_steps = clock.steps * window
        device = layer.weight.device
        self.synapses = SynapseCounter(layer, layer.kind == "analog")
        self.spikes_by_sample: list[Tensor] = []
        self._histogram = torch.zeros(self._never + 1, dtype=torch.int64, device=device)
        self._work = torch.zeros(3, dtype=torch.int64, device=device)
        self._integration, self._firing, self._compares = self._work
        self._ever = torch.zeros(0, dtype=torch.bool, device=device)

    def add_integration(self, earliest: Tensor, channels: int) -> None:
        """Add the integration window's updates: `earliest_input`, each for so many channels."""
        cycles = earliest.sum(dtype=torch.float64).long() if self._gating else earliest.numel() * self._clock.steps
        self._integration += cycles * channels

    def add_spikes(self, instant: Tensor) -> None:
        """Add a batch of spikes [N, ...], by the indices of their instants."""
        flat = instant.flatten()
        self._histogram.scatter_add_(0, flat, self._histogram.new_ones(1).expand_as(flat))
        fired = (instant < self._never).flatten(1)
        self._ever = fired.any(0) | self._ever if self._ever.numel() else fired.any(0)
        self.spikes_by_sample.append(fired.sum(1))

    def add_firing(self, instant: Tensor, slope: Tensor | None) -> None:
        """Add the firing window's compares and updates.

        Args:
            instant: [N, C, ...] indices of the instants at which neurons fire, and rest from then on.
            slope: `earliest_input`, 0 where a neuron has no slope; None if no neuron's slope persists.
        """
        compares = (instant + 1).clamp_max_(self._never) if self._gating else torch.full_like(instant, self._never)
        self._compares += compares.sum()
        if slope is not None:
            updates = compares.sub_(1).unflatten(1, (slope.shape[1], -1)).sum(2)
            self._firing += (updates.masked_fill_(slope == 0, 0) if self._gating else updates).sum()

    def add_end_of_window(self, slope: Tensor, channels: int) -> None:
        """Add updates to the firing window's end of neurons that do not compare; arguments as of `add_integration`."""
        neurons = (slope > 0).sum() if self._gating else slope.numel()
        self._firing += neurons * channels * self._clock.steps

    def counts(self, samples: int) -> tuple[LayerCounts, int]:
        """Counts of so many samples, and delayed spikes that arrived; for `network_counts`."""
        steps = self._clock.step_of(torch.arange(self._never)).tolist()
        histogram = [0] * (max(steps) + 1)
        for step, spikes in zip(steps, self._histogram[:-1].tolist(), strict=True):
            histogram[step] += spikes
        sums = self.synapses.sums.tolist()
        driven, undriven = self.synapses.times.tolist()
        found = self.synapses.counts(
            sums,
            (driven / self._clock.steps, undriven),
            samples,
            name=self._name,
            neurons=self._ever.numel(),
            spikes=sum(histogram),
            saturated=histogram[0],
            never_active=int((~self._ever).sum()),
            summed_spike_time=sum(step * spikes for step, spikes in enumerate(histogram)) / self._window_steps,
            histogram=tuple(histogram),
            histogram_samples=samples,
        )
        return found, sums[SUMS.index("skipped")]

    def activity(self) -> LayerActivity:
        """Cycles and state accesses."""
        operations = int(self.synapses.sums[SUMS.index("synaptic_operations")])
        integration, firing, compares = self._work.tolist()
        # An update of the firing window shares its read of the potential with the compare that follows it; updates of
        # a potential that is only read out have none.
        reads = operations + 2 * integration + firing + max(compares, firing)
        return LayerActivity(self._name, integration, firing, compares, reads, operations + integration + firing)
