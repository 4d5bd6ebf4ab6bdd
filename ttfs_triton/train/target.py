"""Targets: a goal for a network's cost, and the differentiable cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.energy import RunOptions, count
from ttfs_triton.energy.cost import Cost, energy_cost, operations_cost, sparsity_cost
from ttfs_triton.energy.counter import fan_out, neurons_reached
from ttfs_triton.nn import AnalogEncoder, NetworkGraph, Stage
from ttfs_triton.nn.statistics import channels_innermost, in_parts, where_fired
from ttfs_triton.run_records import EpochLine
from ttfs_triton.train.options import Kind, Wanted


def count_spikes(
    activations: Tensor, weight: Tensor | None = None, reached: Tensor | None = None, *, width: float = 1.0
) -> Tensor:
    """Number of neurons that fired, weighted by place: Σ weight·[a > 0] over all samples, a float32 scalar.

    Args:
        activations: [N, features] or [N, channels, height, width], in [0, 1]; 0 and nan are silent.
        weight: [height, width], the cost of a spike at each place; None: 1.
        reached: 1 for neurons that some input reaches, else 0; broadcasts with the activations. None: all are reached.
        width: δ of the surrogate, positive.
    Gradient: weight·max(0, 1 − a/δ), as the surrogate of a mask [a > 0] in `ttfs_kernels.Neuron`. Neurons without input
    get no gradient towards more spikes; otherwise a whole channel switches on at once.
    """
    return _CountSpikes.apply(activations, weight, reached, width)  # pyright: ignore[reportReturnType]


class _CountSpikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activations: Tensor, weight: Tensor | None, reached: Tensor | None, width: float) -> Tensor:
        ctx.save_for_backward(activations, weight, reached)
        ctx.width = width
        fired = [where_fired(part).sum(0, dtype=torch.float32) for part in in_parts(channels_innermost(activations))]
        of_neurons = sum(fired[1:], fired[0])
        if weight is None:
            return of_neurons.sum()
        return of_neurons.view(weight.numel(), -1).sum(1) @ weight.flatten()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        activations, weight, reached = ctx.saved_tensors
        scale = grads[0].to(activations.dtype)
        near = torch.mul(activations, -1 / ctx.width).add_(1).clamp_min_(0).mul_(scale)
        if weight is not None:
            near.mul_(weight)
        if reached is not None:
            near.mul_(torch.where(scale > 0, 1, reached))
        return near, None, None, None


TOLERANCE = 0.02
"""Relative distance from a goal within which it counts as reached."""
TARGET_IMAGES = 128
"""Training images for `make_target`, which needs only the activity at the input of the first layer."""
HARDLY = 0.2  # a run has stalled if its second half removed less than this share of what is still missing
UNITS: Mapping[Kind, str] = {"sparsity": "", "operations": "", "energy": " µJ"}
_OWN = ("operation", "spike", "spike_time")  # events whose price is a cost weight of the layer itself


@dataclass(frozen=True)
class Target:
    """A cost of a network, with its goal; `floor` is the cost of a network that never spikes."""

    wanted: Wanted
    cost: Cost
    floor: float

    def miss(self, measured: float) -> float:
        """Relative distance from the goal."""
        return abs(measured / self.wanted.goal - 1)

    def result(self, metrics: Sequence[EpochLine], best: EpochLine, test: float) -> dict[str, Any]:
        """Goal and measured costs, for the summary; `test`: cost of the best epoch's weights on the test images."""
        misses = [self.miss(line.cost["network"]) for line in metrics if line.cost]
        before, after = misses[(len(misses) - 1) // 2], misses[-1]
        return {
            "kind": self.wanted.kind,
            "chip": self.wanted.chip,
            "goal": {"network": self.wanted.goal},
            "validation": None if best.val_accuracy is None else best.cost,
            "test": {"network": test},
            "tolerance": TOLERANCE,
            "reached": self.miss(test) <= TOLERANCE,
            "stalled": len(misses) > 1 and after > TOLERANCE and before - after < HARDLY * after,
        }


def make_target(wanted: Wanted, network: nn.Module, images: Tensor, steps: int) -> Target:
    """The target of a network, by some training images; `steps`: time steps in a window, for energy."""
    with torch.no_grad():
        counts = count(network, [images], histogram_bins=0)
    key = f"target_{wanted.kind}"
    try:
        if wanted.chip is not None:
            cost = energy_cost(counts, wanted.chip, RunOptions(steps=steps))
        else:
            cost = (sparsity_cost if wanted.kind == "sparsity" else operations_cost)(counts)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    floor = cost.of_images(counts)
    if wanted.goal <= floor:
        raise ValueError(
            f"{key} must be above {floor:.4g}{UNITS[wanted.kind]}, the cost of a network that never spikes; "
            f"got {wanted.goal:g}. Choose a higher goal or a smaller network."
        )
    return Target(wanted, cost, floor)


class CostedNetwork(nn.Module):
    """A network that also returns its differentiable cost, a float32 scalar, a mean; to be called within `watching`."""

    def __init__(self, network: nn.Module, graph: NetworkGraph, target: Target) -> None:
        super().__init__()
        self.network, self.target = network, target
        device = graph.readout.weight.device
        self._counters = [_EventCounter(stage, target.cost, device) for stage in graph.stages]
        self._weights = torch.cat([counter.weights for counter in self._counters])
        self._counted: list[Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the `with` block, hooks count the layers' events. Copies of the network have no hooks."""
        handles = [
            counter.stage.layer.register_forward_hook(partial(self._see, counter), with_kwargs=True)
            for counter in self._counters
            if counter.events
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(
        self,
        counter: _EventCounter,
        _: nn.Module,
        inputs: tuple[Tensor, ...],
        options: dict[str, Any],
        activations: Tensor,
    ) -> None:
        if self._counted is not None:
            self._counted.extend(counter.count(inputs[0], options.get("skip"), activations))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._counted = counted = []
        logits = self.network(images)
        self._counted = None
        return logits, self.target.cost.constant + (torch.stack(counted) * self._weights).sum() / len(images)


class _EventCounter:
    """Counts the events of one layer that have a price: `events`, and prices in `weights` [events]."""

    def __init__(self, stage: Stage, cost: Cost, device: torch.device) -> None:
        self.stage = stage
        weights: dict[str | int, float] = {event: getattr(cost.weights(stage.name), event) for event in _OWN}
        if stage.kind == "latency":
            weights["spike"] = cost.input_spike
        for place, wire in enumerate(stage.wires):  # the event of a spike that arrives on this wire
            weights[place] = cost.weights(wire.source).delivered
        self._channels = [wire.shape[0] for wire in stage.inputs]
        chosen = {event: price for event, price in weights.items() if price}
        self.events = list(chosen)
        self.weights = torch.tensor(list(chosen.values()), device=device)
        neuron = stage.neuron
        self._width = neuron.surrogate_width if neuron is not None and neuron.has_surrogate else 1.0
        self._fan_out: Tensor | int = 0
        if "operation" in chosen:
            maps = stage.inputs[0].shape[1:]
            places, channels = fan_out(stage.weighted, maps)
            self._fan_out = (places * channels).float().view(maps).to(device) if maps else channels

    def count(self, inputs: Tensor, skip: Tensor | None, activations: Tensor) -> list[Tensor]:
        """Numbers of events in a batch, in the order of `events`."""
        layer = self.stage.layer
        if isinstance(layer, AnalogEncoder) and layer.neuron is not None:
            inputs = layer.normalise(inputs)
        if skip is not None:
            skip = self.stage.weighted.read_skip(skip, self.stage.shape)
        return [self._count(event, inputs, skip, activations) for event in self.events]

    def _count(self, event: str | int, inputs: Tensor, skip: Tensor | None, activations: Tensor) -> Tensor:
        if event in ("spike", "spike_time"):
            reached = neurons_reached(self.stage.weighted, inputs, skip) if self.stage.kind == "spiking" else None
            spikes = count_spikes(activations, None, reached, width=self._width)
            return spikes if event == "spike" else spikes - activations.sum(dtype=torch.float32)
        if isinstance(event, int):
            by_wire = [*inputs.split(self._channels, 1), *([] if skip is None else [skip])]
            return self._spikes(by_wire[event])
        weight = self._fan_out
        operations = self._spikes(inputs) * weight if isinstance(weight, int) else self._spikes(inputs, weight)
        return operations if skip is None else operations + self._spikes(skip)  # one synapse a delayed spike

    def _spikes(self, activations: Tensor, weight: Tensor | None = None) -> Tensor:
        return count_spikes(activations, weight, width=self._width)
