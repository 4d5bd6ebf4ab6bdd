"""A network that says, while it is trained, what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.hardware.cost import Cost
from ttfs_triton.hardware.counts.synapses import fan_out, neurons_reached
from ttfs_triton.nn import NetworkGraph, SignedEncoder, Stage
from ttfs_triton.nn.activity import count_spikes
from ttfs_triton.train.target import Target

_OWN = ("operation", "spike", "spike_time", "saturated")  # events of a layer itself; spikes arrive at another


class MeteredNetwork(nn.Module):
    """A network that also says what its activations cost, differentiably.

    Input [N, ...] as the network takes it, output the logits [N, classes] and the costs [costs], float32, means over
    the samples. To be called within `watching`. Pools are computed behind their layers, since neurons are seen before
    them.

    Args:
        network: on its device.
        graph: of the network.
        target: whose costs are meant.
    Attributes:
        network, target: as given.
    """

    def __init__(self, network: nn.Module, graph: NetworkGraph, target: Target) -> None:
        super().__init__()
        self.network, self.target = network, target
        device = graph.readout.weight.device
        maps: dict[str, tuple[int, ...]] = {}

        def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
            maps[stage.name] = tuple(inputs.shape[2:])
            return stage.activations(inputs, skip)

        with torch.no_grad():
            graph.run(torch.zeros(1, *graph.image_shape, device=device), fire)
        self._meters = [_Meter(stage, maps[stage.name], target.costs, device) for stage in graph.stages]
        self._weights = torch.cat([meter.weights for meter in self._meters])
        self._constants = torch.tensor([cost.constant for cost in target.costs], device=device)
        self._counted: list[Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within its block, layers are seen at work; a copy of the network that is made outside is not."""
        handles = [
            meter.stage.layer.register_forward_hook(partial(self._see, meter), with_kwargs=True)
            for meter in self._meters
            if meter.events
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(
        self, meter: _Meter, _: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any], activations: Tensor
    ) -> None:
        if self._counted is not None:
            self._counted.extend(meter.count(inputs[0], options.get("skip"), activations))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._counted = counted = []
        logits = self.network(images)
        self._counted = None
        return logits, self._constants + (torch.stack(counted)[:, None] * self._weights).sum(0) / len(images)


class _Meter:
    """Counts those events of one layer that cost something.

    Attributes:
        stage: the layer in its network.
        events: their names.
        weights: [events, costs].
    """

    def __init__(self, stage: Stage, maps: tuple[int, ...], costs: Sequence[Cost], device: torch.device) -> None:
        self.stage = stage
        weights = {event: [getattr(cost.weights(stage.name), event) for cost in costs] for event in _OWN}
        if stage.kind == "latency":
            weights["spike"] = [cost.input_spike for cost in costs]
        for event, wire in (("arrived", stage.input), ("skipped", stage.skip)):
            if wire is not None:
                weights[event] = [cost.weights(wire.source).delivered for cost in costs]
        chosen = {event: values for event, values in weights.items() if any(values)}
        self.events = list(chosen)
        self.weights = torch.tensor(list(chosen.values()), device=device).view(-1, len(costs))
        neuron = getattr(stage.layer, "neuron", None)
        self._width = neuron.surrogate_width if neuron is not None and neuron.has_surrogate else 1.0
        self._fan_out: Tensor | int = 0
        if "operation" in chosen:
            found = fan_out(stage.weighted, maps)
            self._fan_out = (found.places * found.channels).float().view(maps).to(device) if maps else found.channels

    def count(self, inputs: Tensor, skip: Tensor | None, activations: Tensor) -> list[Tensor]:
        """Events in a batch, in the order of `events`: what the layer read, and what its neurons did."""
        layer = self.stage.layer
        if isinstance(layer, SignedEncoder):
            inputs = layer.normalise(inputs)
        if skip is not None:
            skip = self.stage.weighted.arriving(skip, self.stage.shape)
        return [self._count(event, inputs, skip, activations) for event in self.events]

    def _count(self, event: str, inputs: Tensor, skip: Tensor | None, activations: Tensor) -> Tensor:
        if event in ("spike", "spike_time"):
            reached = neurons_reached(self.stage.weighted, inputs, skip) if self.stage.kind == "spiking" else None
            spikes = count_spikes(activations, None, reached, width=self._width)
            return spikes if event == "spike" else spikes - activations.sum(dtype=torch.float32)
        if event == "saturated":
            return (activations.detach() == 1).sum(dtype=torch.float32)
        if event == "arrived":
            return self._spikes(inputs)
        if event == "skipped":
            assert skip is not None
            return self._spikes(skip)
        weight = self._fan_out
        operations = self._spikes(inputs) * weight if isinstance(weight, int) else self._spikes(inputs, weight)
        return operations if skip is None else operations + self._spikes(skip)  # one synapse a delayed spike

    def _spikes(self, activations: Tensor, weight: Tensor | None = None) -> Tensor:
        return count_spikes(activations, weight, width=self._width)
