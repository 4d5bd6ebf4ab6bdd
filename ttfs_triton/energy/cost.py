"""Costs as weighted sums of events, such as spikes and synaptic operations, so that training can lower them.

The same weights multiply a network's exact counts (`Cost.of`) and, in training, the counts of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ttfs_triton.energy.chip import Chip, load_chip
from ttfs_triton.energy.counts import Counts, InputCounts
from ttfs_triton.energy.estimate import RunOptions
from ttfs_triton.energy.models import estimate


@dataclass(frozen=True)
class EventWeights:
    """Cost of one event of a layer, by kind of event."""

    operation: float = 0.0  # a spike at one of the layer's synapses
    spike: float = 0.0  # of the layer's neurons, before pooling
    delivered: float = 0.0  # such a spike reaches another layer, after pooling
    spike_time: float = 0.0  # per window that a spike comes after its window's start


@dataclass(frozen=True)
class Cost:
    """Cost of one sample: a constant, plus weights of events times their numbers."""

    constant: float
    layers: Mapping[str, EventWeights]  # by name; the events of a missing layer cost nothing
    input_spike: float = 0.0  # of a latency encoder

    def weights(self, layer: str | None) -> EventWeights:
        """Event weights of a layer; zero for names that are not in `layers`."""
        return self.layers.get(layer or "", EventWeights())

    def of(self, counts: Counts) -> float:
        """Mean cost of a sample."""
        total = self.input_spike * counts.input.spikes
        for layer in counts.layers:
            weights = self.weights(layer.name)
            total += weights.operation * layer.synaptic_operations + weights.delivered * layer.spikes_delivered
            total += weights.spike * layer.spikes + weights.spike_time * layer.summed_spike_time
        return self.constant + total / counts.samples

    def of_images(self, counts: Counts) -> float:
        """Mean cost of a sample if no neuron spiked: the cost of these images alone."""
        first = counts.layers[0]
        fixed = self.weights(first.name).operation * first.synaptic_operations + self.input_spike * counts.input.spikes
        return self.constant + fixed / counts.samples


def sparsity_cost(counts: Counts) -> Cost:
    """Sparsity as a `Cost`: spikes over neurons of the hidden layers (`Counts.sparsity`).

    Only the network's shape in `counts` is used. Raises ValueError if there is no hidden layer.
    """
    hidden = [layer for layer in counts.layers if layer.kind != "readout"]
    if not hidden:
        raise ValueError("sparsity_cost: counts must be of a network with hidden layers; got none. Choose operations.")
    neurons = sum(layer.neurons for layer in hidden)
    return Cost(0.0, {layer.name: EventWeights(spike=1 / neurons) for layer in hidden})


def operations_cost(counts: Counts) -> Cost:
    """Relative operations as a `Cost`: synaptic operations over the dense ANN's products, in layers that read spikes.

    A first layer that reads real values is left out of both: its products do not depend on spikes. Only the network's
    shape in `counts` is used.
    """
    chosen = [layer for layer in counts.layers if layer.kind != "analog"]
    synapses = sum(layer.synapses for layer in chosen)
    return Cost(0.0, {layer.name: EventWeights(operation=1 / synapses) for layer in chosen})


def energy_cost(counts: Counts, chip: Chip | str | Path, options: RunOptions) -> Cost:
    """Energy as a `Cost`: a sample's energy on a chip in microjoules, the total of `estimate` at nominal prices.

    With gating, the cost is an upper bound: neurons count as awake from their window's start, because the time of a
    neuron's first input is no sum over events. Only the network's shape in `counts` is used; `options.activity` is not.
    """
    chip, options = load_chip(chip), replace(options, activity=None)
    unpriced = {
        f"{term.name} of {term.layer}"
        for term in estimate(counts, chip, options).unpriced
        if "operations" in term.name or "multiply" in term.name
    }
    if unpriced:
        raise ValueError(
            f"energy_cost: chip must price synaptic operations and multiplications; got {chip.name}, which has no "
            f"price for {', '.join(sorted(unpriced))}. Choose another chip."
        )
    layers = tuple(replace(layer, driven_time=None, undriven_time=None) for layer in counts.averages())
    one = replace(counts, samples=1, layers=layers, input=InputCounts())
    idle = one.firing_more(0.0)

    def energy_uj(changed: Counts) -> float:
        total = estimate(changed, chip, options).total
        return 0.0 if total is None else total.nominal * 1e-6

    base = energy_uj(idle)

    def more(place: int, event: str) -> float:
        """Cost of one more event: the estimate is linear in the numbers of events."""
        layers = list(idle.layers)
        layers[place] = replace(layers[place], **{event: getattr(layers[place], event) + 1.0})
        return energy_uj(replace(idle, layers=tuple(layers))) - base

    keys = ("synaptic_operations", "spikes", "spikes_delivered", "summed_spike_time")  # `EventWeights`
    events = {layer.name: EventWeights(*(more(place, key) for key in keys)) for place, layer in enumerate(idle.layers)}
    first = idle.layers[0]
    constant = base - events[first.name].operation * first.synaptic_operations
    input_spike = energy_uj(replace(idle, input=InputCounts(spikes=1))) - base
    return Cost(constant, events, input_spike)
