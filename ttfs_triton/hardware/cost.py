"""Costs as weighted sums of events, such as spikes and synaptic operations, so that training can lower them.

The same weights multiply a network's exact counts (`Cost.of`) and, in training, the counts of a batch.
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


@dataclass(frozen=True)
class EventWeights:
    """Cost of one event of a layer, for each kind of event.

    Attributes:
        operation: cost of a synaptic operation: a spike at one of the layer's synapses.
        spike: cost of a spike of the layer's neurons, before pooling.
        delivered: cost of delivering such a spike to another layer, after pooling.
        spike_time: cost of a spike's delay after the window's start, for each window of delay.
    """

    operation: float = 0.0
    spike: float = 0.0
    delivered: float = 0.0
    spike_time: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Cost of one sample: a constant plus, for each kind of event, a weight times the number of events.

    Attributes:
        constant: cost of a sample without any spike.
        layers: event weights by layer name, for layers with synapses; the events of a missing layer cost nothing.
        input_spike: cost of one spike of a latency encoder.
    """

    constant: float
    layers: Mapping[str, EventWeights]
    input_spike: float = 0.0

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

    def bounds(self, counts: Counts, graph: NetworkGraph) -> tuple[float, float]:
        """Lower and upper bound on the cost of any network of this shape for these inputs.

        For each bound, every neuron takes the cheapest or the dearest of three choices: stay silent, or fire at its
        window's start or end. A spike may save updates of its own neuron, but causes operations in the next layer.
        """
        first = counts.layers[0]
        fixed = self.weights(first.name).operation * first.synaptic_operations  # set by the images alone
        fixed += self.input_spike * counts.input.spikes
        least = most = self.constant + fixed / counts.samples
        delivered = max(self.weights(layer.name).delivered for layer in counts.layers)
        for layer in counts.layers:
            weights = self.weights(layer.name)
            ways = (0.0, weights.spike, weights.spike + weights.spike_time)
            least, most = least + self._least(graph, graph[layer.name], min(ways)), most + layer.neurons * max(ways)
            if layer is not first:
                most += weights.operation * layer.synapses + delivered * layer.inputs
        return least, most

    def _least(self, graph: NetworkGraph, stage: Stage, spike: float) -> float:
        """Least cost of all neurons of a layer together; `spike` ≤ 0 is the cost that firing adds to one neuron."""
        neurons = math.prod(stage.shape)
        readers = ((other, wire) for other in graph.stages for wire in other.inputs if wire.source == stage.name)
        reader, wire = next(readers, (None, None))
        if reader is None or wire is None or spike == 0:
            return neurons * spike
        shape = stage.shape
        for module in wire.route:
            if not isinstance(module, nn.Flatten):
                shape = tuple(module(torch.zeros(1, *shape)).shape[1:])
        if any(before % after for before, after in zip(stage.shape, shape, strict=True)):
            return neurons * spike  # neurons that pooling leaves out cause no operations
        reached = fan_out(reader.weighted, wire.shape[1:])
        caused = self.weights(reader.name).operation * reached.channels * reached.places
        caused = caused + self.weights(stage.name).delivered
        inputs = math.prod(shape)
        places = (neurons / inputs * spike + caused).clamp_max(0)
        return float(places.mean()) * inputs


def sparsity_cost(counts: Counts, layer: str | None = None) -> Cost:
    """Sparsity as a `Cost`: spikes over neurons, of one hidden layer or of all together (`Counts.sparsity`).

    Only the network's shape in `counts` is used. Raises ValueError if there is no such layer.
    """
    chosen = _chosen("sparsity_cost", [found for found in counts.layers if found.kind != "readout"], layer)
    neurons = sum(found.neurons for found in chosen)
    return Cost(0.0, {found.name: EventWeights(spike=1 / neurons) for found in chosen})


def operations_cost(counts: Counts, layer: str | None = None) -> Cost:
    """Relative operations as a `Cost`: synaptic operations over the dense ANN's products, in layers that read spikes.

    A first layer that reads real values is left out of both: its products do not depend on spikes. Arguments and errors
    are those of `sparsity_cost`; `layer` is the layer whose synapses do the operations, and may be the readout.
    """
    chosen = _chosen("operations_cost", [found for found in counts.layers if found.kind != "analog"], layer)
    synapses = sum(found.synapses for found in chosen)
    return Cost(0.0, {found.name: EventWeights(operation=1 / synapses) for found in chosen})


def energy_cost(counts: Counts, chip: Chip | str | Path, options: RunOptions) -> Cost:
    """Energy as a `Cost`: a sample's energy on a chip in microjoules, the total of `estimate` at nominal prices.

    With gating it is an upper bound: neurons count as awake from their window's start, because the time of a neuron's
    first input is no sum over events.

    Args:
        counts: counts of a spiking network; only its shape is used.
        chip, options: as in `estimate`; `options.activity` is ignored, because it holds for other spikes.
    Raises:
        ValueError: the chip has no price for synaptic operations, or for the multiplications of a first layer that
            reads real values.
    """
    chip, options = as_chip(chip), replace(options, activity=None)
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
        """Cost of one more event: the estimate is linear in the number of each event."""
        layers = list(idle.layers)
        layers[place] = replace(layers[place], **{event: getattr(layers[place], event) + 1.0})
        return energy_uj(replace(idle, layers=tuple(layers))) - base

    keys = ("synaptic_operations", "spikes", "spikes_delivered", "summed_spike_time")  # `EventWeights`
    events = {layer.name: EventWeights(*(more(place, key) for key in keys)) for place, layer in enumerate(idle.layers)}
    first = idle.layers[0]
    constant = base - events[first.name].operation * first.synaptic_operations
    input_spike = energy_uj(replace(idle, input=InputCounts(spikes=1))) - base
    return Cost(constant, events, input_spike)


def _chosen(function: str, layers: Sequence[LayerCounts], name: str | None) -> Sequence[LayerCounts]:
    chosen = [layer for layer in layers if name in (None, layer.name)]
    if not chosen:
        names = ", ".join(layer.name for layer in layers) or "the network's, which has none of this kind"
        raise ValueError(f"{function}: layer must be one of {names}; got {name}.")
    return chosen
