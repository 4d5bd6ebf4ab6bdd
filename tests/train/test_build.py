"""Learning-rate schedules against torch's own, and their ends."""

import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from ttfs_triton.train import TrainConfig
from ttfs_triton.train.build import build_schedule, rate_factor


def optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    sgd = optimizer(config.lr)
    schedule = build_schedule(sgd, config, steps_per_epoch)
    found = []
    for _ in range(config.epochs * steps_per_epoch):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return found


def test_one_cycle_follows_torch():
    config = TrainConfig(schedule="one_cycle", lr=0.1, epochs=4, warmup=0.25)
    sgd = optimizer()
    theirs = OneCycleLR(sgd, max_lr=0.1, total_steps=40, pct_start=0.25, cycle_momentum=False)
    expected = []
    for _ in range(40):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()
    assert rates(config, 10) == pytest.approx(expected)


def test_milestones_follow_torch():
    config = TrainConfig(schedule="milestones", milestones=(1, 3), milestone_factor=0.4, lr=0.1, epochs=4)
    sgd = optimizer()
    theirs = MultiStepLR(sgd, milestones=[5, 15], gamma=0.4)
    expected = []
    for _ in range(20):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()
    assert rates(config, 5) == pytest.approx(expected)


def test_cosine_rises_then_falls_to_zero():
    found = rates(TrainConfig(schedule="cosine", lr=0.1, epochs=4, warmup=0.25), 10)
    assert found[:10] == sorted(found[:10])
    assert max(found) == pytest.approx(0.1)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_rates_stay_between_zero_and_the_peak(name, warmup):
    factor = rate_factor(TrainConfig(schedule=name, warmup=warmup, epochs=3), 30, 10)
    assert all(0 <= factor(step) <= 1 for step in range(35))
    assert max(factor(step) for step in range(30)) == pytest.approx(1, rel=0.01)


def test_constant_is_constant():
    assert set(rates(TrainConfig(schedule="constant", lr=0.1, epochs=2), 5)) == {0.1}
