"""A network that says, while it is trained, what it costs."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ttfs_triton.hardware.cost import EventWeights
from ttfs_triton.hardware.counts.synapses import fan_out
from ttfs_triton.nn import SignedEncoder, TTFSNetwork
from ttfs_triton.nn.activity import count_spikes
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer
from ttfs_triton.train.target import Target

EVENTS = tuple(field.name for field in dataclasses.fields(EventWeights))


class MeteredNetwork(nn.Module):
    """A network that also says what its activations cost, differentiably.

    Input [N, channels, height, width], output the logits [N, classes] and the costs [costs], float32, means over the
    samples. Pools are computed behind their layers, since neurons are seen before them.

    Args:
        network: on its device.
        target: whose costs are meant.
    Attributes:
        network, target: as given.
        config: of the network.
    """

    def __init__(self, network: TTFSNetwork, target: Target) -> None:
        super().__init__()
        self.network, self.target, self.config = network, target, network.config
        neuron, device = network.config.neuron, network.readout.weight.device
        self._width = neuron.surrogate_width if neuron.has_surrogate else 1.0
        seen: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            size = network.config.in_channels, *network.config.image_size
            features = network.hidden(torch.zeros(1, *size, device=device), seen)
        layers = {name: layer for name, layer in network.features.named_children() if isinstance(layer, WeightedLayer)}
        layers["readout"] = network.readout
        # Of each layer, the events that cost something, and the fan-out of its inputs.
        self._events: list[list[str]] = []
        self._fan_out: list[Tensor | int] = []
        weights: list[list[float]] = []
        for (name, layer), x in zip(layers.items(), [*(inputs for inputs, _ in seen), features], strict=True):
            of_costs = [cost.layers.get(name, EventWeights()) for cost in target.costs]
            self._events.append([event for event in EVENTS if any(getattr(each, event) for each in of_costs)])
            weights += [[getattr(each, event) for each in of_costs] for event in self._events[-1]]
            maps = tuple(x.shape[2:]) if isinstance(layer, WeightedConv2d) else ()
            found = fan_out(layer, maps)
            places = (found.places * found.channels).float().view(maps).to(device) if maps else found.channels
            self._fan_out.append(places)
        self._weights = torch.tensor(weights, device=device).view(-1, len(target.costs))
        self._constants = torch.tensor([cost.constant for cost in target.costs], device=device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[tuple[Tensor, Tensor]] = []
        features = self.network.hidden(images, seen)
        logits = self.network.readout(features)
        events = []
        for place, kinds in enumerate(self._events):
            inputs, activations = seen[place] if place < len(seen) else (features, features)
            events += [self._count(kind, place, inputs, activations) for kind in kinds]
        return logits, self._constants + (torch.stack(events)[:, None] * self._weights).sum(0) / len(images)

    def _count(self, kind: str, place: int, inputs: Tensor, activations: Tensor) -> Tensor:
        """One kind of event in one layer, summed over the samples."""
        if kind == "spike":
            return count_spikes(activations, width=self._width)
        if kind == "spike_time":
            return count_spikes(activations, width=self._width) - activations.sum(dtype=torch.float32)
        if kind == "saturated":
            return (activations.detach() == 1).sum(dtype=torch.float32)
        first = self.network.features[0]
        if place == 0 and isinstance(first, SignedEncoder):
            inputs = first.normalise(inputs)
        if kind == "arriving":
            return count_spikes(inputs, width=self._width)
        fan_out = self._fan_out[place]
        if isinstance(fan_out, int):
            return count_spikes(inputs, width=self._width) * fan_out
        return count_spikes(inputs, fan_out, width=self._width)
