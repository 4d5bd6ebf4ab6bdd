"""Costs that are weighted sums of events, such as spikes and synaptic operations, so that training can lower them.

The same weights multiply the exact counts of a network (`Cost.of`) and, in training, those of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ttfs_triton.hardware.counts.counts import Counts, InputCounts, LayerCounts
from ttfs_triton.hardware.counts.layer_counter import fan_out
from ttfs_triton.hardware.energy.chip import Chip, as_chip
from ttfs_triton.hardware.energy.estimate import RunOptions
from ttfs_triton.hardware.energy.models import estimate
from ttfs_triton.nn.graph import NetworkGraph, Stage
from ttfs_triton.nn.weighted import WeightedConv2d


@dataclass(frozen=True)
class EventWeights:
    """Cost of one event of a layer, by its kind.

    Attributes:
        operation: a synaptic operation: a spike at one of the layer's synapses.
        spike: a spike of the layer, before pooling.
        delivered: a delivery of such a spike to another layer, behind pooling.
        spike_time: a window of delay between the window's start and a spike.
        saturated: added for a spike at the window's start.
    """

    operation: float = 0.0
    spike: float = 0.0
    delivered: float = 0.0
    spike_time: float = 0.0
    saturated: float = 0.0


@dataclass(frozen=True)
class Cost:
    """A cost of one sample: a constant plus a weight times the number of each kind of event.

    Attributes:
        name: in words.
        constant: of a sample without any spike.
        layers: by the names of layers with synapses; a layer that is missing costs nothing.
        input_spike: of a spike of a latency encoder.
    """

    name: str
    constant: float
    layers: Mapping[str, EventWeights]
    input_spike: float = 0.0

    def weights(self, layer: str | None) -> EventWeights:
        """Costs of a layer's events; zero for other names."""
        return self.layers.get(layer or "", EventWeights())

    def of(self, counts: Counts) -> float:
        """The mean cost of a sample."""
        total = self.input_spike * counts.input.spikes
        for layer in counts.layers:
            weights = self.weights(layer.name)
            total += weights.operation * layer.synaptic_operations + weights.delivered * layer.spikes_delivered
            total += weights.spike * layer.spikes + weights.spike_time * layer.summed_spike_time
            total += weights.saturated * layer.saturated
        return self.constant + total / counts.samples

    def bounds(self, counts: Counts, graph: NetworkGraph) -> tuple[float, float]:
        """Lower and upper bound of the cost of any network of this shape for these inputs.

        Each neuron does what costs least, or most: it is silent, or fires at its window's start or end. A spike may
        save updates of its neuron; its operations in the next layer are charged against that.
        """
        first = counts.layers[0]
        fixed = self.weights(first.name).operation * first.synaptic_operations  # of the images
        fixed += self.input_spike * counts.input.spikes
        least = most = self.constant + fixed / counts.samples
        delivered = max(self.weights(layer.name).delivered for layer in counts.layers)
        for layer in counts.layers:
            weights = self.weights(layer.name)
            ways = (0.0, weights.spike + weights.saturated, weights.spike + weights.spike_time)
            least, most = least + self._least(graph, graph[layer.name], min(ways)), most + layer.neurons * max(ways)
            if layer is not first:
                most += weights.operation * layer.synapses + delivered * layer.inputs
        return least, most

    def _least(self, graph: NetworkGraph, stage: Stage, spike: float) -> float:
        """Least cost of all neurons of a layer together; a neuron that fires costs `spike` ≤ 0."""
        neurons = math.prod(stage.shape)
        reader = next((other for other in graph.stages if other.input.source == stage.name), None)
        if reader is None or spike == 0:
            return neurons * spike
        shape = stage.shape
        for module in reader.input.route:
            if not isinstance(module, nn.Flatten):
                shape = tuple(module(torch.zeros(1, *shape)).shape[1:])
        if any(before % after for before, after in zip(stage.shape, shape, strict=True)):
            return neurons * spike  # pooling leaves some neurons out, which cause nothing
        maps = shape[1:] if isinstance(reader.weighted, WeightedConv2d) else ()
        reached = fan_out(reader.weighted, maps)
        caused = self.weights(reader.name).operation * reached.channels * reached.places
        caused = caused + self.weights(stage.name).delivered
        inputs = math.prod(shape)
        places = (neurons / inputs * spike + caused).clamp_max(0)
        return float(places.mean()) * inputs


def sparsity_cost(counts: Counts, layer: str | None = None) -> Cost:
    """Spikes divided by neurons: of all hidden layers together, as `Counts.sparsity`, or of one layer.

    Only the shape in `counts` is used. A layer that is not there is a ValueError.
    """
    chosen = _chosen("sparsity_cost", [found for found in counts.layers if found.kind != "readout"], layer)
    neurons = sum(found.neurons for found in chosen)
    return Cost("sparsity", 0.0, {found.name: EventWeights(spike=1 / neurons) for found in chosen})


def operations_cost(counts: Counts, layer: str | None = None) -> Cost:
    """Synaptic operations divided by the dense ANN's multiplications: of all layers that read spikes, or of one.

    A first layer that reads real values multiplies them densely, whatever fires, and is on neither side. Arguments and
    errors are those of `sparsity_cost`; `layer` is the one in which the operations are, the readout included.
    """
    chosen = _chosen("operations_cost", [found for found in counts.layers if found.kind != "analog"], layer)
    synapses = sum(found.synapses for found in chosen)
    return Cost("operations", 0.0, {found.name: EventWeights(operation=1 / synapses) for found in chosen})


def energy_cost(counts: Counts, chip: Chip | str | Path, options: RunOptions) -> Cost:
    """Energy of a sample on a chip in microjoules: the total of `estimate` at nominal prices.

    An upper bound with gating: here neurons are awake from their window's start on, since when their first input comes
    is no sum over events.

    Args:
        counts: of a spiking network; only its shape is used.
        chip, options: as of `estimate`; no `activity`.
    Raises:
        ValueError: a chip without a price for synaptic operations, or for multiplications of a first layer that reads
            real values.
    """
    chip = as_chip(chip)
    unpriced = {
        f"{term.name} of {term.layer}"
        for term in estimate(counts, chip, options).unpriced
        if "operations" in term.name or "multiply" in term.name
    }
    if unpriced:
        raise ValueError(
            f"energy_cost: chip must price synaptic operations and multiplications; {chip.name} has no price for "
            f"{', '.join(sorted(unpriced))}. Choose another chip."
        )
    layers = tuple(replace(layer, driven_time=None, undriven_time=None) for layer in counts.averages())
    one = replace(counts, samples=1, layers=layers, input=InputCounts())
    idle = one.firing_more(0.0)

    def energy_uj(changed: Counts) -> float:
        total = estimate(changed, chip, options).total
        return 0.0 if total is None else total.nominal * 1e-6

    base = energy_uj(idle)

    def more(place: int, event: str) -> float:
        """Cost of one more event: the estimate is linear in all of them."""
        layers = list(idle.layers)
        layers[place] = replace(layers[place], **{event: getattr(layers[place], event) + 1.0})
        return energy_uj(replace(idle, layers=tuple(layers))) - base

    keys = ("synaptic_operations", "spikes", "spikes_delivered", "summed_spike_time", "saturated")  # `EventWeights`
    events = {layer.name: EventWeights(*(more(place, key) for key in keys)) for place, layer in enumerate(idle.layers)}
    first = idle.layers[0]
    constant = base - events[first.name].operation * first.synaptic_operations
    input_spike = energy_uj(replace(idle, input=InputCounts(spikes=1))) - base
    return Cost(f"energy on {chip.name}", constant, events, input_spike)


def _chosen(function: str, layers: Sequence[LayerCounts], name: str | None) -> Sequence[LayerCounts]:
    chosen = [layer for layer in layers if name in (None, layer.name)]
    if not chosen:
        names = ", ".join(layer.name for layer in layers)
        raise ValueError(f"{function}: layer must be one of {names}; got {name}.")
    return chosen
