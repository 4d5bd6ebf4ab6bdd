"""Targets: a goal for a network's cost, the differentiable cost, and the Lagrange multiplier that drives it there.

The loss becomes L + λ·c/s, with a cost c and its setpoint s. Dual ascent changes λ: it grows while the cost is above
its setpoint, and may become negative. A term proportional to the error damps λ, as in an augmented Lagrangian. The
state lives on the device and is the same in all processes, so that the host reads nothing in a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ttfs_triton.data.images import draw_images
from ttfs_triton.energy import RunOptions, count, counting
from ttfs_triton.energy.cost import Cost, energy_cost, operations_cost, sparsity_cost
from ttfs_triton.energy.counter import fan_out, neurons_reached
from ttfs_triton.evaluate import Evaluation, sum_over_processes
from ttfs_triton.nn import AnalogEncoder, Grid, NetworkGraph, Stage
from ttfs_triton.nn.statistics import channels_innermost, in_parts, where_fired
from ttfs_triton.run_records import EpochLine
from ttfs_triton.train.config import TrainConfig
from ttfs_triton.train.data import RunData
from ttfs_triton.training_options import Goal


def count_spikes(
    activations: Tensor, weight: Tensor | None = None, reached: Tensor | None = None, *, width: float = 1.0
) -> Tensor:
    """Number of neurons that fired, weighted by place: Σ weight·[a > 0] over all samples, a float32 scalar.

    Args:
        activations: [N, features] or [N, channels, height, width], in [0, 1]; 0 and nan are silent.
        weight: [height, width], the cost of a spike by place; None: 1.
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
        with torch.autocast(activations.device.type, enabled=False):  # a product in 16 bits would overflow or round
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
"""Number of training images for `make_target`, which needs only the activity at the first layer's input."""
UNITS = {"sparsity": "", "operations": "", "energy": " µJ"}
_LAYER_EVENTS = ("operation", "spike", "spike_time")  # events priced by the cost weights of the layer where they occur


@dataclass(frozen=True)
class Target:
    """A cost of a network, with its goal; `floor` is the cost of a network that never spikes."""

    goal: Goal
    cost: Cost
    floor: float

    def miss(self, measured: float) -> float:
        """Relative distance from the goal."""
        return abs(measured / self.goal.amount - 1)

    def result(self, best: EpochLine, test: float) -> dict[str, Any]:
        """Goal and measured costs, for the summary; `test`: cost of the best epoch's weights on the test images."""
        return {
            "kind": self.goal.kind,
            "chip": self.goal.chip,
            "goal": {"network": self.goal.amount},
            "validation": None if best.val_accuracy is None else best.cost,
            "test": {"network": test},
            "tolerance": TOLERANCE,
            "reached": self.miss(test) <= TOLERANCE,
        }


def make_target(goal: Goal, network: nn.Module, images: Tensor, options: RunOptions) -> Target:
    """The target of a network, from some training images; `options`: how it runs on the chip, for energy."""
    with torch.no_grad():
        counts = count(network, [images], histogram_bins=0)
    key = f"target_{goal.kind}"
    try:
        if goal.chip is not None:
            cost = energy_cost(counts, goal.chip, options)
        else:
            cost = (sparsity_cost if goal.kind == "sparsity" else operations_cost)(counts)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    floor = cost.of_images(counts)
    if goal.amount <= floor:
        raise ValueError(
            f"{key} must be above {floor:.4g}{UNITS[goal.kind]}, the cost of a network that never spikes; "
            f"got {goal.amount:g}. Choose a higher goal or a smaller network."
        )
    return Target(goal, cost, floor)


class CostedNetwork(nn.Module):
    """A network that also returns its differentiable mean cost, a float32 scalar; to be called within `watching`."""

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
    """Counts those events of one layer that have a price: `events` are their names, `weights`, [events], the prices."""

    def __init__(self, stage: Stage, cost: Cost, device: torch.device) -> None:
        self.stage = stage
        weights: dict[str | int, float] = {event: getattr(cost.weights(stage.name), event) for event in _LAYER_EVENTS}
        if stage.kind == "latency":
            weights["spike"] = cost.input_spike
        for place, wire in enumerate(stage.wires):  # the event of a spike on this wire
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
        return operations if skip is None else operations + self._spikes(skip)  # a skip's spike has one synapse

    def _spikes(self, activations: Tensor, weight: Tensor | None = None) -> Tensor:
        return count_spikes(activations, weight, width=self._width)


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
    """The Lagrange multiplier of a cost. The floor is subtracted from all costs, since training cannot change it.

    Attributes:
        approach: steps until the setpoint reaches the goal. The moving average of weights then starts anew, so that it
            holds no weights of a network that cost more.
        pressure: float64 scalar, factor on the gradient of the relative cost in the next step.
        value: float64 scalar, the multiplier λ.
        state: [quantities, 1], float64, everything that a checkpoint must keep.
    """

    def __init__(self, goal: float, floor: float, accelerator: Accelerator, steps: int, ema_decay: float) -> None:
        self.accelerator = accelerator
        self.approach, self._settled = math.ceil(APPROACH * steps), math.ceil(SETTLED * steps)
        self._ascent, self._ema_decay = ASCENT / steps, ema_decay
        self._floor = floor
        self._above_floor = torch.tensor(goal - floor, dtype=torch.float64, device=accelerator.device)
        self.state = torch.zeros(8, 1, dtype=torch.float64, device=accelerator.device)
        self.pressure, self.value, self._cost, self._scored, self._start, *others = self.state[:, 0].unbind()
        self._goal, self._setpoint, self._step = others
        self._goal.copy_(self._above_floor)
        self._setpoint.copy_(self._above_floor)
        self._observed = torch.zeros_like(self._goal)
        self._eager = torch.ones_like(self._goal)

    def prepare(self, step: int, rate: float) -> bool:
        """Called after `step` steps; returns whether the moving average of weights starts anew with the next step."""
        # `rate` is the learning rate over the peak rate: a network that learns slowly answers slowly.
        self._eager.fill_(1.0 if step < self.approach else 1 / max(rate, 1 / MOST_EAGER))
        return step == self.approach

    def penalty(self, cost: Tensor, micro_batches: int) -> Tensor:
        """Term, a scalar, to add to the loss of a micro-batch with this cost; a step has `micro_batches` of them."""
        self._observed.add_(cost.detach(), alpha=1 / micro_batches)
        return (self.pressure / self._setpoint).to(cost.dtype) * cost

    def update(self) -> None:
        """Update setpoint and multiplier from the cost of a step, after its last micro-batch."""
        observed = self._observed
        if self.accelerator.num_processes > 1:
            observed = sum_over_processes(self.accelerator, observed) / self.accelerator.num_processes
        cost = torch.maximum(observed - self._floor, self._above_floor / 100)
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
        self.value.add_(error, alpha=self._ascent)
        torch.add(self.value, error, alpha=DAMPING, out=self.pressure)
        self._step.add_(1)
        self._observed.zero_()

    def correct(self, measured: float) -> None:
        """Correct the goal by the cost in evaluation, which has no augmentation and may use averaged weights."""
        ratio = self._scored / (self._above_floor / 100).clamp_min(measured - self._floor)
        corrected = self._above_floor * ratio.clamp(1 / MOST_CORRECTION, MOST_CORRECTION)
        self._goal.copy_(torch.where(self._step >= self._settled, corrected, self._goal))


class SilentChannels:
    """Stops whole channels from switching on at once on uniform background, which makes the cost oscillate.

    Where images are empty, neurons of a convolution stay at the initial potential of their channel. When an update
    takes that potential past 0, all these neurons fire: one channel of CNN1 is 8 % of an activity of 0.3 on MNIST. The
    multiplier then drives the potential to and fro across 0, and the cost meets its goal on average, but in no step.
    While channels are held, silent ones stay silent; others may fall silent. `layers` are those in which one channel
    can add more than 1 % of the layer's spikes at once, on some training images with the run's first weights.
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
        grid = graph.grid or Grid(32)  # the configuration's, or one that the user's code has put the network on
        options = RunOptions(config.target_steps or grid.time_steps, state_bits=grid.state_bits)
        self.target = make_target(config.target, network.to(accelerator.device), some, options)
        self.model = CostedNetwork(network, graph, self.target)
        goal, floor = config.target.amount, self.target.floor
        self.multiplier = LagrangeMultiplier(goal, floor, accelerator, steps, config.ema_decay)
        self.silent_channels = SilentChannels(graph, some)
        self.accelerator, self._data, self._image_shape = accelerator, data, graph.image_shape
        self.measured = math.nan

    def prepare(self, step: int, rate: float) -> bool:
        """As `LagrangeMultiplier.prepare`, before every step."""
        self.silent_channels.hold(step >= self.multiplier.approach)
        return self.multiplier.prepare(step, rate)

    def validate(self, score: Callable[[Tensor], Evaluation], network: nn.Module) -> Evaluation | None:
        """Measure a network's cost on the validation images, and return its scores there. Without validation images,
        some training images serve, and None is returned. `score` runs the network on training images at given indices.
        """
        trained, held_out = self._data.train_indices, self._data.validation_indices
        indices = held_out if len(held_out) else trained[:: max(1, len(trained) // MEASURED_IMAGES)]
        with counting(network, image_shape=self._image_shape, histogram_bins=0) as counter:
            evaluation = score(indices)
        self.measured = self.target.cost.of(counter.counts(self.accelerator))
        return evaluation if len(held_out) else None

    def after_epoch(self) -> dict[str, Any]:
        """Correct the goal by the measured cost; returns cost and multiplier for metrics.jsonl."""
        self.multiplier.correct(self.measured)
        return {"cost": {"network": self.measured}, "multiplier": {"network": self.multiplier.value.item()}}

    @property
    def miss(self) -> float:
        """Relative distance from the goal after the last epoch, less half the tolerance: test images differ."""
        return max(0.0, self.target.miss(self.measured) - TOLERANCE / 2)
