"""The dial: training under a multiplier that brings what a network costs to a goal.

The loss becomes L + λ·c/s, with a cost c and its setpoint s. The multiplier λ, of either sign, follows by dual ascent:
it grows while the cost is above its setpoint. A proportional part on top of it damps that (an augmented Lagrangian).
All of it lives on the device and is the same on all processes, so that steps stay free of readings by the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.hardware.cost import EventWeights
from ttfs_triton.hardware.counts.synapses import fan_out
from ttfs_triton.nn import SignedEncoder, TTFSNetwork
from ttfs_triton.nn.activity import count_spikes
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer
from ttfs_triton.scoring import sum_over_processes
from ttfs_triton.train.target import Target

# Share of the steps in which the setpoint goes from what the network costs at the start to the goal.
APPROACH = 0.3
# λ by a whole run at twice the setpoint.
ASCENT = 20.0
DAMPING = 2.0
# Decay of the moving averages of costs: of the multiplier's, and at least of those that are compared with validation.
SMOOTHING = 0.8
LONG_SMOOTHING = 0.97
MOST_CORRECTION = 1.25
# A relative error counts for this much at most, so that no λ is wound up by a network that cannot follow.
MOST_ERROR = 0.5


class MeteredNetwork(nn.Module):
    """A network that also says what its activations cost, differentiably.

    Input [N, channels, height, width], output the logits [N, classes] and the costs [costs], float32, means over the
    samples. Pools are computed behind their layers, since neurons are seen before them.

    Args:
        network: on its device.
        target: whose costs are meant.
    Attributes:
        network, target: as given.
    """

    def __init__(self, network: TTFSNetwork, target: Target) -> None:
        super().__init__()
        self.network, self.target = network, target
        neuron = network.config.neuron
        self._width = neuron.surrogate_width if neuron.has_surrogate else 1.0
        device = network.readout.weight.device
        images = torch.zeros(1, network.config.in_channels, *network.config.image_size, device=device)
        seen: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            features = network.hidden(images, seen)
        layers = [module for module in network.features if isinstance(module, WeightedLayer)]
        names = [name for name, module in network.features.named_children() if isinstance(module, WeightedLayer)]
        # Events that cost nothing anywhere are not counted.
        self._events: list[list[str]] = []
        self._fan_out: list[Tensor | int] = []
        columns: list[list[float]] = []
        inputs = [pair[0] for pair in seen] + [features]
        for name, layer, x in zip([*names, "readout"], [*layers, network.readout], inputs, strict=True):
            weights = [cost.layers.get(name, EventWeights()) for cost in target.costs]
            events = [event for event in EventWeights.__dataclass_fields__ if any(getattr(w, event) for w in weights)]
            self._events.append(events)
            columns += [[getattr(w, event) for w in weights] for event in events]
            found = fan_out(layer, tuple(x.shape[2:]) if isinstance(layer, WeightedConv2d) else ())
            places = (found.places * found.channels).view(x.shape[2:]) if isinstance(layer, WeightedConv2d) else None
            self._fan_out.append(found.channels if places is None else places.float().to(device))
        self._weights = torch.tensor(columns, device=device).view(len(columns), len(target.costs))
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


class Dial:
    """The multipliers of a run, one for each cost.

    Args:
        target: costs and goals.
        accelerator: device and processes.
        steps: optimiser steps of the run.
        ema_decay: of the weights that will be scored.
    Attributes:
        approach: steps until the setpoint has come to the goal. A moving average of weights starts anew then, so that
            it keeps nothing of a network that costs more.
        pressure: [costs], float64, what the gradient of each relative cost is multiplied with in this step.
    """

    def __init__(self, target: Target, accelerator: Accelerator, steps: int, ema_decay: float) -> None:
        self.accelerator, self._goals = accelerator, target.goals
        self.approach, self._rate = math.ceil(APPROACH * steps), ASCENT / steps
        self._settled, self._decay = self.approach + 0.05 * steps, max(LONG_SMOOTHING, ema_decay)
        # One tensor, so that a checkpoint has one: rows as below.
        self._state = torch.zeros(7, len(target.goals), dtype=torch.float64, device=accelerator.device)
        self._state[6] = torch.tensor(target.goals, dtype=torch.float64)
        self._multiplier, self.pressure, self._cost, self._scored_cost, self._start, self._step, self._goal = (
            self._state.unbind()
        )
        self._setpoint = self._goal.clone()
        self._observed = torch.zeros_like(self._multiplier)

    def penalty(self, costs: Tensor, micro_batches: int) -> Tensor:
        """What a micro-batch adds to its loss; its costs [costs] are remembered."""
        self._observed.add_(costs.detach(), alpha=1 / micro_batches)
        return (self.pressure / self._setpoint).to(costs.dtype) @ costs

    def update(self) -> None:
        """Follow the costs of a step; behind its micro-batches."""
        cost = self._observed
        if self.accelerator.num_processes > 1:
            cost = sum_over_processes(self.accelerator, cost) / self.accelerator.num_processes
        first = self._step == 0
        torch.where(first, cost, self._cost.lerp(cost, 1 - SMOOTHING), out=self._cost)
        scored = self._scored_cost.lerp(cost, 1 - self._decay)
        torch.where(first | (self._step == self.approach), cost, scored, out=self._scored_cost)
        torch.where(first, cost, self._start, out=self._start)
        progress = (self._step / self.approach).clamp_(max=1)
        torch.mul(self._start.clamp_min(1e-9) ** (1 - progress), self._goal**progress, out=self._setpoint)
        error = (self._cost / self._setpoint - 1).clamp_(-MOST_ERROR, MOST_ERROR)
        self._multiplier.add_(error, alpha=self._rate)
        torch.add(self._multiplier, error, alpha=DAMPING, out=self.pressure)
        self._step.add_(1)
        self._observed.zero_()

    def correct(self, measured: Sequence[float]) -> None:
        """Aim at what the scored network costs: it may be an average, and images are not augmented there.

        Args:
            measured: costs of the scored network by its exact counts.
        """
        ratio = self._scored_cost / torch.tensor(measured, dtype=torch.float64, device=self._state.device).clamp_min(1e-9)
        goals = torch.tensor(self._goals, dtype=torch.float64, device=self._state.device)
        corrected = goals * ratio.clamp(1 / MOST_CORRECTION, MOST_CORRECTION)
        self._goal.copy_(torch.where(self._step >= self._settled, corrected, goals))

    def multipliers(self) -> list[float]:
        """λ of each cost; the host waits for the device."""
        return self._multiplier.tolist()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        return {"state": self._state, "setpoint": self._setpoint}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self._state.copy_(state["state"])
        self._setpoint.copy_(state["setpoint"])
