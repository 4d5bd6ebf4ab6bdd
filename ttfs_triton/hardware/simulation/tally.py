"""What a simulated layer did, summed on its device: spikes, deliveries, and the cycles of clock-driven neurons."""

from typing import Any

import torch
from torch import Tensor

from ttfs_triton.hardware.counts.counts import LayerActivity, LayerCounts
from ttfs_triton.hardware.counts.synapses import described, fan_out, neurons_without_input
from ttfs_triton.nn.clock import Clock
from ttfs_triton.nn.coding import SignedEncoder
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer


class LayerTally:
    """Sums of one layer over batches; read once, at the end."""

    def __init__(self, name: str, layer: WeightedLayer, clock: Clock, window: float, gating: bool) -> None:
        self.name, self.layer, self.gating = name, layer, gating
        self._clock, self._never = clock, len(clock.instants(window))
        self._window_steps = clock.steps * window
        device = layer.weight.device
        self.histogram = torch.zeros(self._never + 1, dtype=torch.int64, device=device)
        # Spikes add to a slope, and bright pixels of a signed encoder.
        self.adds_to_slope = layer.kind != "analog" or isinstance(layer, SignedEncoder)
        (
            self.active_inputs,
            self.products,
            self.operations,
            self.without_input,
            self.integration,
            self.firing,
            self.compares,
            self.skipped,
        ) = torch.zeros(8, 1, dtype=torch.int64, device=device)
        self.ever = torch.zeros(0, dtype=torch.bool, device=device)
        self.sample_spikes: list[Tensor] = []
        self.sample_operations: list[Tensor] = []
        self.samples = 0
        self._reach, self._described = torch.zeros(0), dict[str, Any]()

    def add_inputs(self, inputs: Tensor, skip: Tensor | None = None) -> None:
        """Add a batch of inputs [N, ...], and of delayed spikes, one a neuron: what is not zero meets the synapses."""
        if not self.samples:
            reach = fan_out(self.layer, tuple(inputs.shape[2:]) if isinstance(self.layer, WeightedConv2d) else ())
            self._reach = (reach.places * reach.channels).to(inputs.device)
            self._described = described(self.layer, reach, inputs)
        self.samples += len(inputs)
        if self.layer.kind == "spiking":
            self.without_input += neurons_without_input(self.layer, inputs, skip)
        places = (inputs != 0).sum(1).reshape(len(inputs), -1)
        operations = products = (places * self._reach).sum(1)
        if isinstance(self.layer, SignedEncoder):
            operations = ((inputs > 0).sum(1).reshape(len(inputs), -1) * self._reach).sum(1)
        if skip is not None:
            late = torch.count_nonzero(skip.flatten(1), 1)
            operations, products = operations + late, products + late
            self.skipped += late.sum()
            self.active_inputs += late.sum()
        self.active_inputs += places.sum()
        self.products += products.sum()
        if self.adds_to_slope:
            self.operations += operations.sum()
            self.sample_operations.append(operations)

    def add_integration(self, earliest: Tensor, channels: int) -> None:
        """Add the integration window's updates: `ClockedLayer.earliest_input`, each for so many channels."""
        cycles = earliest.sum(dtype=torch.float64).long() if self.gating else earliest.numel() * self._clock.steps
        self.integration += cycles * channels

    def add_spikes(self, instant: Tensor) -> None:
        """Add a batch of spikes [N, ...], by the indices of their instants."""
        flat = instant.flatten()
        self.histogram.scatter_add_(0, flat, self.histogram.new_ones(1).expand_as(flat))
        fired = (instant < self._never).flatten(1)
        self.ever = fired.any(0) | self.ever if self.ever.numel() else fired.any(0)
        self.sample_spikes.append(fired.sum(1))

    def add_firing(self, instant: Tensor, slope: Tensor | None) -> None:
        """Add the firing window's compares and updates.

        Args:
            instant: [N, C, ...] indices of the instants at which neurons fire, and rest from then on.
            slope: `ClockedLayer.earliest_input`, 0 where a neuron has no slope; None if no neuron's slope persists.
        """
        compares = (instant + 1).clamp_max_(self._never) if self.gating else torch.full_like(instant, self._never)
        self.compares += compares.sum()
        if slope is not None:
            updates = compares.sub_(1).unflatten(1, (slope.shape[1], -1)).sum(2)
            self.firing += (updates.masked_fill_(slope == 0, 0) if self.gating else updates).sum()

    def add_end_of_window(self, slope: Tensor, channels: int) -> None:
        """Add updates to the firing window's end of neurons that do not compare; arguments as of `add_integration`."""
        neurons = (slope > 0).sum() if self.gating else slope.numel()
        self.firing += neurons * channels * self._clock.steps

    def counts(self, delivered: int) -> LayerCounts:
        """Counts, given how many of this layer's spikes reached the next."""
        steps = self._clock.step_of(torch.arange(self._never)).tolist()
        at_instant = self.histogram[:-1].tolist()
        histogram = [0] * (max(steps) + 1)
        for step, spikes in zip(steps, at_instant, strict=True):
            histogram[step] += spikes
        products, dense = int(self.products), self._described["synapses"] * self.samples
        real = self.layer.kind == "analog"
        return LayerCounts(
            name=self.name,
            samples=self.samples,
            neurons=self.ever.numel(),
            **self._described,
            spikes=sum(histogram),
            spikes_delivered=delivered,
            active_inputs=int(self.active_inputs),
            synaptic_operations=int(self.operations),
            nonzero_macs=products,
            analog_macs=dense if real else 0,
            dense_macs=dense,
            saturated=histogram[0],
            never_active=int((~self.ever).sum()),
            summed_spike_time=sum(step * spikes for step, spikes in enumerate(histogram)) / self._window_steps,
            histogram=tuple(histogram),
            histogram_samples=self.samples,
            without_input=int(self.without_input),
        )

    def activity(self) -> LayerActivity:
        """Cycles and state accesses."""
        synaptic_operations = int(self.operations)
        integration, firing, compares = int(self.integration), int(self.firing), int(self.compares)
        # An update of the firing window shares its read of the potential with the compare that follows it; updates of
        # a potential that is only read out have none.
        reads = synaptic_operations + 2 * integration + firing + max(compares, firing)
        return LayerActivity(
            self.name, integration, firing, compares, reads, synaptic_operations + integration + firing
        )
