"""Lagrange multipliers that bring what a network costs to a goal while it trains.

The loss becomes L + λ·c/s, with a cost c and its setpoint s. The multiplier λ, of either sign, follows by dual ascent:
it grows while the cost is above its setpoint. A part in proportion to the error damps that, as an augmented Lagrangian
does. All of it lives on the device and is the same on all processes, so that no step is read by the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ttfs_triton.data.images import draw_images
from ttfs_triton.hardware import Counts, counting
from ttfs_triton.hardware.counts.synapses import neurons_reached
from ttfs_triton.nn import NetworkGraph, Stage
from ttfs_triton.run_records import EpochLine
from ttfs_triton.scoring import Evaluation, sum_over_processes
from ttfs_triton.train.build import RunData
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.target import TARGET_IMAGES, TOLERANCE, CostedNetwork, make_target

# These together bring networks to their goals whether they answer fast or slowly; see the tests of this file.
ASCENT = 20.0  # growth of λ over a whole run at twice the setpoint
DAMPING = 2.0  # what that error adds to λ at once
MOST_EAGER = 10.0  # factor on both, by which a learning rate below its peak is made up for, behind the approach
SMOOTHING = 0.8  # decay of the average of costs that they look at
# A relative error counts for this much at most, so that no λ is wound up by a network that cannot follow.
MOST_ERROR = 0.5
# Share of the steps in which the setpoint goes from what the network costs at the start to the goal, and after which it
# is steady enough to be compared with validation.
APPROACH = 0.3
SETTLED = 0.35
# Decay, at least, of the average of costs that is compared; and how far that may move the goal.
LONG_SMOOTHING = 0.97
MOST_CORRECTION = 2.0
# Training images on which costs are measured after an epoch, where there are no validation images.
MEASURED_IMAGES = 2000
# A jump of a layer's spikes, by one channel, that is too large for a goal that is to be met within 2 %.
JUMP = 0.01


class LagrangeMultipliers:
    """The multipliers of a run, one for each cost. What no training changes of a cost is left out of all ratios.

    Args:
        goals, floors: of each cost: what it is to become, and the least that it could be.
        accelerator: device and processes.
        steps: optimiser steps of the run.
        ema_decay: of the weights that will be scored.
    Attributes:
        approach: steps until the setpoint has come to the goal. A moving average that starts anew then keeps nothing of
            a network that costs more.
        pressure: [costs], float64, what the gradient of each relative cost is multiplied with in the next step.
    """

    def __init__(
        self, goals: Sequence[float], floors: Sequence[float], accelerator: Accelerator, steps: int, ema_decay: float
    ) -> None:
        self.accelerator = accelerator
        self.approach, self._settled = math.ceil(APPROACH * steps), math.ceil(SETTLED * steps)
        self._ascent, self._ema_decay = ASCENT / steps, ema_decay
        self._floors = torch.tensor(floors, dtype=torch.float64, device=accelerator.device)
        self._wanted = torch.tensor(goals, dtype=torch.float64, device=accelerator.device) - self._floors
        # One tensor in checkpoints: a row for each of these.
        self._state = torch.zeros(8, len(goals), dtype=torch.float64, device=accelerator.device)
        self.pressure, self._multiplier, self._cost, self._scored, self._start, *others = self._state.unbind()
        self._goal, self._setpoint, self._step = others
        self._goal.copy_(self._wanted)
        self._setpoint.copy_(self._wanted)
        self._observed = torch.zeros_like(self._goal)
        self._eager = torch.ones_like(self._goal)

    def prepare(self, step: int, rate: float) -> bool:
        """What the host tells before each step; returns whether the moving average of weights starts anew with it.

        Args:
            step: optimiser steps done.
            rate: learning rate over the peak rate: a network that learns slowly answers slowly.
        """
        self._eager.fill_(1.0 if step < self.approach else 1 / max(rate, 1 / MOST_EAGER))
        return step == self.approach

    def penalty(self, costs: Tensor, micro_batches: int) -> Tensor:
        """What a micro-batch, one of so many, adds to its loss; its costs [costs] are remembered."""
        self._observed.add_(costs.detach(), alpha=1 / micro_batches)
        return (self.pressure / self._setpoint).to(costs.dtype) @ costs

    def update(self) -> None:
        """Follow the costs of a step; behind its micro-batches."""
        observed = self._observed
        if self.accelerator.num_processes > 1:
            observed = sum_over_processes(self.accelerator, observed) / self.accelerator.num_processes
        cost = torch.maximum(observed - self._floors, self._wanted / 100)
        first = self._step == 0
        torch.where(first, cost, self._start, out=self._start)
        torch.where(first, cost, self._cost.lerp(cost, 1 - SMOOTHING), out=self._cost)
        fresh = first | (self._step == self.approach)
        averaged = torch.where(self._step < self.approach, self._step, self._step - self.approach)
        share = (9 / (10 + averaged)).clamp(1 - max(LONG_SMOOTHING, self._ema_decay), 1 - LONG_SMOOTHING)
        torch.where(fresh, cost, self._scored.lerp(cost, share), out=self._scored)
        progress = (self._step / self.approach).clamp_(max=1)
        torch.mul(self._start ** (1 - progress), self._goal**progress, out=self._setpoint)
        error = (self._cost / self._setpoint - 1).clamp_(-MOST_ERROR, MOST_ERROR)
        error.mul_(self._eager)
        self._multiplier.add_(error, alpha=self._ascent)
        torch.add(self._multiplier, error, alpha=DAMPING, out=self.pressure)
        self._step.add_(1)
        self._observed.zero_()

    def correct(self, measured: Sequence[float]) -> None:
        """Aim at what is scored, not at what is trained: it may be an average of weights, and images are not augmented.

        Args:
            measured: costs of the scored network by its exact counts, in the order of the goals.
        """
        scored = torch.tensor(measured, dtype=torch.float64, device=self._state.device) - self._floors
        ratio = self._scored / torch.maximum(scored, self._wanted / 100)
        corrected = self._wanted * ratio.clamp(1 / MOST_CORRECTION, MOST_CORRECTION)
        self._goal.copy_(torch.where(self._step >= self._settled, corrected, self._goal))

    def values(self) -> list[float]:
        """λ of each cost; the host waits for the device."""
        return self._multiplier.tolist()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, [quantities, costs]."""
        return {"state": self._state}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self._state.copy_(state["state"])


class SilentChannels:
    """Stops whole channels from switching on at once on uniform background, which makes the cost oscillate.

    Where images are empty, a convolution's neurons are left at the initial potential of their channel. When an update
    takes it past 0, all of them begin to fire at once: one channel of CNN1 is 8 % of an activity of 0.3 on MNIST. A
    multiplier then drives it to and fro over 0, and the cost is right on average over the steps, but of no network.
    While they are held, silent channels of that kind stay silent; that one falls silent is always allowed. Everything
    happens on the device.

    Args:
        graph: of the network, on its device.
        images: [N, *image_shape] there, some that it is trained with.
    Attributes:
        layers: names of those of which a channel would jump by more than 1 % of what the layer fires now.
    """

    def __init__(self, graph: NetworkGraph, images: Tensor) -> None:
        self.layers: list[str] = []
        self._potentials: list[nn.Parameter] = []
        self._was_silent: list[Tensor] = []
        self._held = torch.zeros((), dtype=torch.bool, device=images.device)

        def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
            activations = stage.activations(inputs, skip)
            reached = neurons_reached(stage.weighted, inputs, skip) if stage.kind == "spiking" else None
            if reached is not None and stage.weighted.bias is not None:
                jump = (reached == 0).sum() / (activations > 0).sum().clamp_min(1)
                if jump > JUMP:
                    self.layers.append(stage.name)
                    self._potentials.append(stage.weighted.bias)
            return activations

        with torch.no_grad():
            graph.run(images, fire)

    def attach(self, optimizer: Optimizer) -> None:
        """Watch each step of the optimizer of these weights."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def hold(self, held: bool) -> None:
        """Whether channels are held from now on; the host does not wait."""
        self._held.fill_(held)

    def _before(self, *_: object) -> None:
        self._was_silent = [(potential.detach() <= 0) & self._held for potential in self._potentials]

    @torch.no_grad()
    def _after(self, *_: object) -> None:
        for potential, silent in zip(self._potentials, self._was_silent, strict=True):
            potential.copy_(torch.where(silent, potential.clamp_max(0), potential))


class TargetTraining:
    """What a run that has a target does about it.

    Args:
        config: of the run, with a target.
        accelerator: device and processes.
        network: moved to the device.
        graph: of the network.
        data: images and splits.
        steps: optimiser steps of the run.
    Attributes:
        target: what the network may cost.
        model: the network that also says what it costs.
        multipliers: of its costs.
        silent_channels: held once the goals have been approached.
        measured: costs of the scored network after the last epoch.
    Raises:
        ValueError: the target cannot be reached.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        network: nn.Module,
        graph: NetworkGraph,
        data: RunData,
        steps: int,
    ) -> None:
        assert config.target is not None
        some = draw_images(data.train, TARGET_IMAGES, config.seed, data.train_indices).to(accelerator.device)
        self.target = make_target(config.target, network.to(accelerator.device), some, config.target_steps)
        self.model = CostedNetwork(network, graph, self.target)
        goals, floors = self.target.goals, self.target.floors
        self.multipliers = LagrangeMultipliers(goals, floors, accelerator, steps, config.ema_decay)
        self.silent_channels = SilentChannels(graph, some)
        self.accelerator, self._data, self._image_shape = accelerator, data, graph.image_shape
        self.measured: list[float] = []

    def prepare(self, step: int, rate: float) -> bool:
        """As `LagrangeMultipliers.prepare`, before each step."""
        self.silent_channels.hold(step >= self.multipliers.approach)
        return self.multipliers.prepare(step, rate)

    def validate(self, score: Callable[[Tensor], Evaluation], network: nn.Module) -> Evaluation | None:
        """Measure a network's costs on the validation images and score it there; None if there are none.

        Then some training images tell the costs, without augmentation.

        Args:
            score: scores the training images of these indices, one by one, as they are.
            network: which.
        """
        own, held_out = self._data.train_indices, self._data.validation_indices
        indices = held_out if len(held_out) else own[:: max(1, len(own) // MEASURED_IMAGES)]
        with counting(network, image_shape=self._image_shape, histogram_bins=0, by_sample=False) as counter:
            evaluation = score(indices)
        self.measured = self.target.measure(counter.counts(self.accelerator))
        return evaluation if len(held_out) else None

    def after_epoch(self) -> dict[str, Any]:
        """Correct the goal by what was measured; what of that belongs into metrics."""
        self.multipliers.correct(self.measured)
        named = self.target.named
        return {"cost": named(self.measured), "multiplier": named(self.multipliers.values())}

    def result(self, metrics: Sequence[EpochLine], best: EpochLine, test: Counts) -> dict[str, Any]:
        """What was wanted and what was reached, for the summary.

        Args:
            metrics: a line an epoch.
            best: that of the best one.
            test: counts of its weights on the test images.
        """
        stalled = self.target.stalled([list((line.cost or {}).values()) for line in metrics])
        validation = None if best.val_accuracy is None else best.cost
        return self.target.to_dict(validation, self.target.measure(test), stalled)

    @property
    def miss(self) -> float:
        """By how much the goals are missed after the last epoch, beyond half the tolerance: test images differ."""
        return max(0.0, self.target.miss(self.measured) - TOLERANCE / 2)
