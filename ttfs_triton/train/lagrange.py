"""A Lagrange multiplier that drives a network's cost to its goal during training.

The loss becomes L + λ·c/s, with a cost c and its setpoint s. Dual ascent changes λ, which may be negative: it grows
while the cost is above its setpoint. A term proportional to the error damps λ, as in an augmented Lagrangian. The
state lives on the device and is the same in all processes, so that the host reads nothing in a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ttfs_triton.data.images import draw_images
from ttfs_triton.energy import counting
from ttfs_triton.energy.counter import neurons_reached
from ttfs_triton.evaluate import Evaluation, sum_over_processes
from ttfs_triton.nn import NetworkGraph, Stage
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.data import RunData
from ttfs_triton.train.target import TARGET_IMAGES, TOLERANCE, CostedNetwork, make_target

# Tested with networks that answer fast and slowly.
ASCENT = 20.0  # growth of λ over a whole run at twice the setpoint
DAMPING = 2.0  # damping part of λ at twice the setpoint
MOST_EAGER = 10.0  # after the approach, ASCENT and DAMPING grow as the learning rate falls, at most by this factor
SMOOTHING = 0.8  # decay of the average of costs that is compared with the setpoint
MOST_ERROR = 0.5  # bound on the relative error, so that λ does not wind up while a network cannot follow
APPROACH = 0.3  # share of the steps in which the setpoint goes from the initial cost to the goal
SETTLED = 0.35  # share of the steps after which the cost is steady enough to be compared with validation
LONG_SMOOTHING = 0.97  # least decay of the average of costs in that comparison
MOST_CORRECTION = 2.0  # largest factor by which that comparison changes the goal
MEASURED_IMAGES = 2000  # training images on which costs are measured without validation images
JUMP = 0.01  # silent channels that could add this share of a layer's spikes are held silent: goals are met within 2 %


class LagrangeMultiplier:
    """The Lagrange multiplier of a cost. The floor is subtracted from all costs: training cannot change it.

    Attributes:
        approach: steps until the setpoint reaches the goal. The moving average of weights then starts anew, so that it
            holds no weights of a network that cost more.
        pressure: float64 scalar, factor on the gradient of the relative cost in the next step.
        state: [quantities, 1], float64, everything that a checkpoint must keep.
    """

    def __init__(self, goal: float, floor: float, accelerator: Accelerator, steps: int, ema_decay: float) -> None:
        self.accelerator = accelerator
        self.approach, self._settled = math.ceil(APPROACH * steps), math.ceil(SETTLED * steps)
        self._ascent, self._ema_decay = ASCENT / steps, ema_decay
        self._floor = floor
        self._wanted = torch.tensor(goal - floor, dtype=torch.float64, device=accelerator.device)
        self.state = torch.zeros(8, 1, dtype=torch.float64, device=accelerator.device)
        self.pressure, self._multiplier, self._cost, self._scored, self._start, *others = self.state[:, 0].unbind()
        self._goal, self._setpoint, self._step = others
        self._goal.copy_(self._wanted)
        self._setpoint.copy_(self._wanted)
        self._observed = torch.zeros_like(self._goal)
        self._eager = torch.ones_like(self._goal)

    def prepare(self, step: int, rate: float) -> bool:
        """Called after `step` steps; returns whether the moving average of weights starts anew with the next one."""
        # `rate` is the learning rate over the peak rate: a network that learns slowly answers slowly.
        self._eager.fill_(1.0 if step < self.approach else 1 / max(rate, 1 / MOST_EAGER))
        return step == self.approach

    def penalty(self, cost: Tensor, micro_batches: int) -> Tensor:
        """Term to add to the loss of a micro-batch with this cost, a scalar; `micro_batches` of them make a step."""
        self._observed.add_(cost.detach(), alpha=1 / micro_batches)
        return (self.pressure / self._setpoint).to(cost.dtype) * cost

    def update(self) -> None:
        """Update setpoint and multiplier from the cost of a step, after its last micro-batch."""
        observed = self._observed
        if self.accelerator.num_processes > 1:
            observed = sum_over_processes(self.accelerator, observed) / self.accelerator.num_processes
        cost = torch.maximum(observed - self._floor, self._wanted / 100)
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

    def correct(self, measured: float) -> None:
        """Correct the goal by the cost measured in evaluation, which has no augmentation and may average weights."""
        ratio = self._scored / (self._wanted / 100).clamp_min(measured - self._floor)
        corrected = self._wanted * ratio.clamp(1 / MOST_CORRECTION, MOST_CORRECTION)
        self._goal.copy_(torch.where(self._step >= self._settled, corrected, self._goal))

    @property
    def value(self) -> float:
        """The multiplier λ."""
        return self._multiplier.item()


class SilentChannels:
    """Stops whole channels from switching on at once on uniform background, which makes the cost oscillate.

    Where images are empty, neurons of a convolution stay at the initial potential of their channel. When an update
    takes it past 0, all of them begin to fire at once: one channel of CNN1 is 8 % of an activity of 0.3 on MNIST. A
    multiplier then drives the potential to and fro across 0, and the cost meets its goal on average, but in no step.
    While channels are held, silent ones stay silent; others may fall silent. `layers` are those in which one channel
    can add more than 1 % of the layer's spikes at once, on some training images by the weights that the run began with.
    """

    def __init__(self, graph: NetworkGraph, images: Tensor) -> None:
        self.layers: list[str] = []
        self._graph = graph
        self._was_silent: list[Tensor] = []
        self._held = torch.zeros((), dtype=torch.bool, device=images.device)

        def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
            activations = stage.activations(inputs, skip)
            reached = neurons_reached(stage.weighted, inputs, skip) if stage.kind == "spiking" else None
            if reached is not None and stage.weighted.bias is not None:
                jump = (reached == 0).sum() / (activations > 0).sum().clamp_min(1)
                if jump > JUMP:
                    self.layers.append(stage.name)
            return activations

        with torch.no_grad():
            graph.run(images, fire)

    def attach(self, optimizer: Optimizer) -> None:
        """Hold silent channels silent in the steps of this optimizer, while `hold` says so."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def hold(self, held: bool) -> None:
        """Hold silent channels silent from now on, or release them."""
        self._held.fill_(held)

    def _initial_potentials(self) -> list[Tensor]:
        potentials = [self._graph[name].weighted.bias for name in self.layers]
        return [potential for potential in potentials if potential is not None]

    def _before(self, *_: object) -> None:
        self._was_silent = [(potential.detach() <= 0) & self._held for potential in self._initial_potentials()]

    @torch.no_grad()
    def _after(self, *_: object) -> None:
        for potential, silent in zip(self._initial_potentials(), self._was_silent, strict=True):
            potential.copy_(torch.where(silent, potential.clamp_max(0), potential))


class TargetTraining:
    """Training towards a target; `measured` is the cost of the scored network after the last epoch."""

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
        goal, floor = config.target.goal, self.target.floor
        self.multiplier = LagrangeMultiplier(goal, floor, accelerator, steps, config.ema_decay)
        self.silent_channels = SilentChannels(graph, some)
        self.accelerator, self._data, self._image_shape = accelerator, data, graph.image_shape
        self.measured = math.nan

    def prepare(self, step: int, rate: float) -> bool:
        """As `LagrangeMultiplier.prepare`, before each step."""
        self.silent_channels.hold(step >= self.multiplier.approach)
        return self.multiplier.prepare(step, rate)

    def resume(self, held_layers: list[str] | None) -> None:
        """Go on from the restored state of the multiplier, with the layers whose silent channels were held."""
        if held_layers is None or bool((self.multiplier.state[2:] < 0).any()):  # only multipliers may be negative
            raise ValueError("dial: state must hold a multiplier, costs and goals, with held_layers beside it")
        self.silent_channels.layers = held_layers

    def validate(self, score: Callable[[Tensor], Evaluation], network: nn.Module) -> Evaluation | None:
        """Measure a network's cost on the validation images, and return its scores there; without any, measure it on
        some training images. `score` runs the network on the training images at the given indices.
        """
        own, held_out = self._data.train_indices, self._data.validation_indices
        indices = held_out if len(held_out) else own[:: max(1, len(own) // MEASURED_IMAGES)]
        with counting(network, image_shape=self._image_shape, histogram_bins=0) as counter:
            evaluation = score(indices)
        self.measured = self.target.cost.of(counter.counts(self.accelerator))
        return evaluation if len(held_out) else None

    def after_epoch(self) -> dict[str, Any]:
        """Correct the goal by the measured cost; returns cost and multiplier for metrics.jsonl."""
        self.multiplier.correct(self.measured)
        return {"cost": {"network": self.measured}, "multiplier": {"network": self.multiplier.value}}

    @property
    def miss(self) -> float:
        """Relative distance from the goal after the last epoch, less half the tolerance: test images differ."""
        return max(0.0, self.target.miss(self.measured) - TOLERANCE / 2)
