"""Course of the learning rate, by optimiser step. Never prepared by accelerate, which would step it once a process."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ttfs_triton.train.config import TrainConfig

# As torch's OneCycleLR: start at peak / 25, end at start / 10⁴.
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 1e4


def make_schedule(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    """The schedule of a run; step it after every optimiser step."""
    total = config.epochs * steps_per_epoch
    return LambdaLR(optimizer, rate_factor(config, total, steps_per_epoch))


def rate_factor(config: TrainConfig, total: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor on the peak rate as a function of the number of optimiser steps done, for `total` steps in all."""
    warmup = config.warmup * total
    milestones = [epoch * steps_per_epoch for epoch in config.milestones]

    def one_cycle(step: int) -> float:
        peak = warmup - 1
        if step < peak:
            return _cosine(ONE_CYCLE_START, 1.0, step / peak)
        return _cosine(1.0, ONE_CYCLE_END, _progress(step, max(0.0, peak), total))

    def cosine(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return _cosine(1.0, 0.0, _progress(step, warmup, total))

    def by_milestones(step: int) -> float:
        return config.milestone_factor ** sum(step >= milestone for milestone in milestones)

    def constant(step: int) -> float:
        return 1.0

    return {"one_cycle": one_cycle, "cosine": cosine, "milestones": by_milestones, "constant": constant}[
        config.schedule
    ]


def _progress(step: int, warmup: float, total: int) -> float:
    return min(1.0, (step - warmup) / max(1.0, total - 1 - warmup))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
