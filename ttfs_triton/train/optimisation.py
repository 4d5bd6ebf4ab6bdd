"""Optimisation of a run: schedules of learning rate and σ, optimisers (Muon among them), averages of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from ttfs_kernels.neuron import Neuron, PlacedNeuron
from ttfs_triton.nn import Readout
from ttfs_triton.train.config import TrainConfig

# As torch's OneCycleLR: start at peak / 25, end at start / 10⁴.
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 1e4
LEVELS = 64
"""Values that σ takes while it rises, exact in bfloat16."""


def rate_factor(config: TrainConfig, total: int) -> Callable[[int], float]:
    """Schedule of the learning rate: a function from optimiser steps done, of `total`, to a factor on the peak rate."""
    rising = config.warmup * total - (config.schedule == "one_cycle")
    peak = max(0.0, rising)
    epoch_steps = total // config.epochs

    def factor(step: int) -> float:
        fallen = min(1.0, (step - peak) / max(1.0, total - 1 - peak))
        match config.schedule:
            case "one_cycle":
                if step < rising:
                    return _cosine(ONE_CYCLE_START, 1.0, step / rising)
                return _cosine(1.0, ONE_CYCLE_END, fallen)
            case "cosine":
                return (step + 1) / (rising + 1) if step < rising else _cosine(1.0, 0.0, fallen)
            case "linear":
                if step < rising:
                    return config.start_factor + (1 - config.start_factor) * step / rising
                return 1 + (config.end_factor - 1) * fallen
            case "milestones":
                return config.milestone_factor ** sum(step >= epoch * epoch_steps for epoch in config.milestones)
            case "constant":
                return 1.0

    return factor


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class PersistenceSchedule:
    """Schedule of σ in networks, a function of the optimiser step alone, so that a resumed run has the same σ.

    The σ that a layer has at first is its goal. σ rises from 0 to it between the two shares `rise` of `steps`; None: σ
    stays. While σ rises, layers read it from `device`, so that a CUDA graph follows it.
    """

    def __init__(
        self, networks: Sequence[nn.Module], rise: tuple[float, float] | None, steps: int, device: torch.device
    ) -> None:
        modules: list[Any] = [module for network in (networks if rise else ()) for module in network.modules()]
        self._goals = [
            (module, module.neuron) for module in modules if isinstance(getattr(module, "neuron", None), Neuron)
        ]
        self._sigmas = {goal.psp_persistence: torch.zeros((), device=device) for _, goal in self._goals}
        self.rise, self.steps = rise, steps
        self.share = 1.0
        """Share of σ's goal that is reached: 0 before the rise begins, 1 at its end."""

    def set(self, step: int) -> bool:
        """Set σ before a step. Returns whether layers compute in another way from now on: σ left 0, or is 0 again."""
        before, self.share = self.share, self._share(step)
        if self.share == before:
            return False
        self._apply(self.share)
        return (before > 0) != (self.share > 0)

    @contextmanager
    def at_goal(self) -> Iterator[None]:
        """Within the `with` block, layers have the σ with which training ends; files written there hold this σ."""
        self._apply(1.0)
        try:
            yield
        finally:
            self._apply(self.share)

    def _apply(self, share: float) -> None:
        for goal, sigma in self._sigmas.items():
            sigma.fill_(goal * share)
        for layer, goal in self._goals:
            present = replace(goal, psp_persistence=goal.psp_persistence * share)
            if 0 < share < 1:
                present = PlacedNeuron(**asdict(present), sigma=self._sigmas[goal.psp_persistence])
            layer.neuron = present

    def _share(self, step: int) -> float:
        if self.rise is None:
            return 1.0
        start, end = (share * self.steps for share in self.rise)
        if not start < step + 1 < end:  # the last step of a training runs at the goal
            return float(step + 1 >= end)
        return int((step + 1 - start) / (end - start) * LEVELS) / LEVELS


# Quintic Newton–Schulz iteration: the steepest at 0 whose results stay between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(SGD):
    """SGD with Nesterov momentum that rotates some weights and keeps their norm.

    In groups with "rotated": True, a weight [outputs, ...] counts as a matrix [outputs, fan-in]. A step subtracts the
    orthogonal matrix nearest to its momentum, scaled to lr times the weight's norm, and restores the norm: the weight
    rotates by lr radians. All directions learn at one rate, however small their gradients. This suits weights whose
    norm has no effect, those in front of batch norm and standardised ones; weight decay does nothing to them. `dtype`
    is that of the products in the Newton–Schulz iteration.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the norm as in Jordan's
        airbench94_muon.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float, dtype: torch.dtype) -> None:
        super().__init__(params, lr=lr, momentum=momentum, nesterov=True, fused=True)
        self.momentum, self.dtype = momentum, dtype
        for group in self.param_groups:
            if group.setdefault("rotated", False):
                # Momentum comes before the orthogonalisation, so SGD must not add it afterwards.
                group |= {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters from their gradients, which are overwritten; nothing changes if `found_inf` is 1."""
        scale, failed = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        groups = (group["params"] for group in self.param_groups if group["rotated"])
        rotated = [weight for weights in groups for weight in weights if weight.grad is not None]
        norms = [weight.norm() for weight in rotated]
        for weight, norm in zip(rotated, norms, strict=True):
            gradient = weight.grad if scale is None else weight.grad / scale
            buffer = self.state[weight]["momentum_buffer"]
            following = self.momentum * buffer + gradient
            buffer.copy_(following if failed is None else torch.where(failed > 0, buffer, following))
            matrix = (gradient + self.momentum * following).flatten(1).to(self.dtype)
            update = orthogonal(matrix).to(weight.dtype) * (norm / min(matrix.shape) ** 0.5)
            weight.grad.copy_((update if scale is None else update * scale).view_as(weight))
        super().step(closure)
        for weight, norm in zip(rotated, norms, strict=True):
            weight.mul_(norm / weight.norm().clamp_min(torch.finfo(weight.dtype).tiny))


def orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to [rows, columns], but for singular values of 0.7 to 1.2; those of 0 stay 0."""
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if len(matrix) <= matrix.shape[1] else wide.T


def build_optimizer(config: TrainConfig, network: nn.Module, precision: str = "no") -> Optimizer:
    """The optimizer of a run. Weight decay applies to weights, not to gains, initial potentials and batch norm."""
    groups = [
        {
            "params": parameters,
            "lr": config.lr * rate,
            "initial_lr": config.lr * rate,  # the peak rate, as PyTorch's schedules call it
            "weight_decay": config.weight_decay / rate if kind != "offset" else 0.0,  # the same share per step
            "rotated": kind == "hidden" and config.optimizer == "muon",
        }
        for (kind, rate), parameters in _by_rate(config, network).items()
    ]
    # Fused: one pass over weights and moments instead of ten, on CPU and GPU alike.
    moments: tuple[str, ...] = ("momentum_buffer",) if config.momentum > 0 else ()
    if config.optimizer in ("adamw", "adam"):
        adam, moments = AdamW if config.optimizer == "adamw" else Adam, ("exp_avg", "exp_avg_sq")
        optimizer: Optimizer = adam(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    elif config.optimizer == "muon":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        optimizer = Muon(groups, lr=config.lr, momentum=config.momentum, dtype=dtype)
    else:
        optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    # The moments are made here, not in the first step: a checkpoint is restored into them, and fused SGD would leave
    # them uninitialised if it skipped that step.
    for parameter in filter(lambda parameter: parameter.requires_grad, network.parameters()):
        state = {name: torch.zeros_like(parameter) for name in moments}
        if isinstance(optimizer, Adam):
            state["step"] = torch.zeros((), device=parameter.device)
        if state:
            optimizer.state[parameter] = state
    return optimizer


def _by_rate(config: TrainConfig, network: nn.Module) -> dict[tuple[str, float], list[nn.Parameter]]:
    """Parameters by kind and by the factor on their learning rate; hidden weights at factor 1 come first.

    Kinds: "hidden": weights of hidden layers; "readout": weights of the readout; "offset": gains, initial potentials.
    """
    rates: dict[int, float] = {}
    readout: set[int] = set()
    for module in network.modules():
        if isinstance(norm := getattr(module, "batch_norm", None), nn.BatchNorm1d | nn.BatchNorm2d):
            rates |= {id(norm.bias): config.norm_bias_rate, id(norm.weight): config.norm_gain_rate}
        if isinstance(module, Readout):
            readout |= {id(parameter) for parameter in module.parameters()}
            rates |= dict.fromkeys(readout, config.readout_rate)
    groups: dict[tuple[str, float], list[nn.Parameter]] = {("hidden", 1.0): [], ("offset", 1.0): []}
    for parameter in network.parameters():
        kind = "offset" if parameter.dim() <= 1 else "readout" if id(parameter) in readout else "hidden"
        groups.setdefault((kind, rates.get(id(parameter), 1.0)), []).append(parameter)
    return {key: parameters for key, parameters in groups.items() if parameters}


LOOKAHEAD_DECAY = 0.95  # in `look_ahead`: decay of earlier weights in one step, at the end of training


@torch.no_grad()
def look_ahead(average: nn.Module, network: nn.Module, steps: int, progress: float) -> None:
    """Average the weights with those of earlier steps, and let the network continue from the average.

    average ← d·average + (1 − d)·network with d = 0.95^steps · progress³, then network ← average; buffers too. `steps`
    counts the steps since the last call; `progress` is the share of the training that is done.

    Source: Zhang et al., "Lookahead optimizer", 2019; d as in Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024, 3.4.
    """
    decay = LOOKAHEAD_DECAY**steps * progress**3
    for slow, fast in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
            fast.copy_(slow)


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module, decay: float, *, first: bool = False) -> None:
    """Exponential moving average: average ← d·average + (1 − d)·network, d = min(decay, (1 + t) / (10 + t)).

    t is the average's `n_averaged`, a tensor that the caller counts up. Integer buffers are copied; with `first`,
    everything is.

    Source: tf.train.ExponentialMovingAverage, `num_updates`.
    """
    share = (9 / (10 + average.n_averaged)).clamp_min(1 - decay)
    for slow, fast in zip(average.module.state_dict().values(), network.state_dict().values(), strict=True):
        if first or not slow.is_floating_point():
            slow.copy_(fast)
        else:
            slow.lerp_(fast, share.to(slow.dtype))
