"""Goals: how they are written, what cannot be reached, and what is said of them."""

import pytest
import torch

from tests.train.runs import change
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.run_records import EpochLine
from ttfs_triton.train import ConfigError, train
from ttfs_triton.train.config import make_config
from ttfs_triton.train.display import _target_words
from ttfs_triton.train.options import Wanted
from ttfs_triton.train.target import make_target


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, None),
        ({"target_sparsity": "0.15"}, Wanted("sparsity", {None: 0.15})),
        ({"target_operations": "conv1=0.3, fc1=0.1"}, Wanted("operations", {"conv1": 0.3, "fc1": 0.1})),
        ({"target_energy": "lemaire45:int8:40"}, Wanted("energy", {None: 40.0}, "lemaire45:int8")),
        ({"target_energy": "loihi:1e3"}, Wanted("energy", {None: 1000.0}, "loihi")),
    ],
)
def test_goals_are_read(keys, wanted):
    assert make_config(keys, "here").target == wanted


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target_sparsity": 1.5}, r"target_sparsity must be shares between 0 and 1, such as 0\.15 .*; got 1\.5"),
        ({"target_sparsity": "conv1=0.1,conv1=0.2"}, "target_sparsity must be one share, or one for each layer"),
        ({"target_energy": "40"}, "target_energy must be CHIP:MICROJOULES with a positive number.*; got 40"),
        ({"target_energy": "loihi:-1"}, "target_energy must be CHIP:MICROJOULES"),
        ({"target_energy": "loihi:9", "target_sparsity": 0.1}, "target_sparsity and target_energy exclude each other"),
    ],
)
def test_goals_that_cannot_be_meant_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        make_config(keys, "here")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target_sparsity": "conv7=0.1"}, "target_sparsity: .* layer must be one of conv1, fc1; got conv7"),
        ({"target_operations": "conv1=0.1"}, "target_operations must lie between .* can take in conv1"),
        ({"target_operations": 0.01}, r"target_operations must lie between 0\.\d+ and .*; got 0\.01. Choose another"),
        ({"target_energy": "loihi:1e9"}, "target_energy must lie between .* µJ, .* on loihi at 32 steps a window;"),
        ({"target_energy": "anp_i:1", "encoder": "analog"}, "anp_i has no price for multiply-accumulates of conv1"),
    ],
)
def test_goals_out_of_reach_are_refused_before_training(config, keys, message):
    with pytest.raises(ConfigError, match=message):
        train(change(config, **keys))
    assert not config.output_dir.exists()


def target(kind, goals, chip=None):
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig("4C3-P2-8", image_size=(8, 8)))
    return make_target(Wanted(kind, goals, chip), network, torch.rand(7, 1, 8, 8), steps=16)


def test_target_is_reached_within_its_tolerance_and_missed_by_the_worst_layer():
    energy = target("energy", {None: 0.9}, "loihi")
    assert energy.miss([0.909]) == pytest.approx(0.01)
    assert result(energy, [0.9], test=0.91)["reached"]
    assert not result(energy, [0.9], test=0.93)["reached"]
    assert target("sparsity", {"conv1": 0.2, "fc1": 0.1}).miss([0.2, 0.11]) == pytest.approx(0.1)


def result(target, course, test):
    measured = {"train_loss": 1.0, "train_accuracy": 0.5, "seconds": 1.0, "images_per_second": 1.0, "lr": 0.1}
    lines = [EpochLine(epoch=1, step=1, cost={"network": cost}, **measured) for cost in course]
    return target.result(lines, lines[-1], [test])


@pytest.mark.parametrize(
    ("course", "stalled"),
    [
        ((0.4, 0.31, 0.305, 0.3), True),
        ((0.4, 0.31, 0.27, 0.25), False),
        ((0.4, 0.21, 0.2, 0.203), False),
        ((0.3,), False),
    ],
)
def test_goal_that_no_pressure_brings_nearer_is_told_from_one_that_needs_time(course, stalled):
    summary = result(target("sparsity", {None: 0.2}), course, test=0.3)
    assert summary["stalled"] == stalled
    advice = "The second half of the run hardly helped" if stalled else r"Train longer (--epochs)"
    assert f"not reached within 2%. {advice}" in _target_words(summary)
