"""Schedules of the learning rate, against torch's own, and of σ: functions of the step; files say the final σ."""

import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from tests.train.runs import At, change, metrics
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import DFTLinear, LatencyEncoder, NetworkConfig, Neuron, PotentialReadout, TTFSNetwork
from ttfs_triton.train import Callback, TrainConfig, Trainer, train
from ttfs_triton.train.build import build_optimizer
from ttfs_triton.train.evaluation import refresh_statistics
from ttfs_triton.train.optimisation import LEVELS, PersistenceSchedule, rate_factor
from ttfs_triton.train.step import look_ahead

STEPS = 1000


def sigmas(network):
    return [m.neuron.psp_persistence for m in network.modules() if isinstance(getattr(m, "neuron", None), Neuron)]


def small(sigma=0.8):
    return TTFSNetwork(NetworkConfig("4C3-6C3-10", image_size=(8, 8), neuron=Neuron(sigma), batch_norm=True))


def test_sigma_rises_by_levels_from_zero_to_its_goal():
    network = small()
    schedule, seen = PersistenceSchedule([network], (0.25, 0.6), "together", STEPS), []
    for step in range(STEPS):
        schedule.set(step)
        assert len(set(sigmas(network))) == 1
        seen.append(sigmas(network)[0])
    assert seen == sorted(seen)
    assert set(seen[:250]) == {0.0}
    assert set(seen[600:]) == {0.8}
    assert len(set(seen)) == LEVELS + 1
    assert seen[425] == pytest.approx(0.4, abs=0.8 / LEVELS)
    assert schedule.missing == 0
    for rise in ((0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.3, 0.3)):
        PersistenceSchedule([network], rise, "together", STEPS).set(STEPS - 1)
        assert set(sigmas(network)) == {0.8}


@pytest.mark.parametrize("order", ["together", "layers"])
def test_sigma_is_a_function_of_the_step_and_of_the_layers_order(order):
    walking, jumping = small(), small()
    walked, jumped = (PersistenceSchedule([network], (0.1, 0.9), order, STEPS) for network in (walking, jumping))
    for step in range(731):
        walked.set(step)
        found = sigmas(walking)
        assert found == sorted(found, reverse=True)
        assert order == "together" or sum(0 < sigma < 0.8 for sigma in found) <= 1
    jumped.set(730)
    assert sigmas(walking) == sigmas(jumping)
    with jumped.at_goal():
        assert set(sigmas(jumping)) == {0.8}
    assert sigmas(walking) == sigmas(jumping)


def test_a_run_keeps_the_best_epoch_at_the_goal_and_its_files_say_so(config):
    values = {"batch_norm": True, "psp_persistence": 0.5, "psp_persistence_rise": (0.2, 0.6), "epochs": 5}
    assert train(change(config, **values))["best_epoch"] >= 3
    assert [line["rise"] < 1 for line in metrics(config.output_dir)] == [True, True, False, False, False]
    assert set(sigmas(TTFSModel.from_pretrained(config.output_dir))) == {0.5}


def test_a_network_of_ones_own_has_its_own_goals(data, tmp_path):
    class Watch(Callback):
        def on_step(self, trainer):
            seen.append(sigmas(trainer.network))

    seen = []
    network = torch.nn.Sequential(
        LatencyEncoder(),
        torch.nn.Flatten(),
        DFTLinear(64, 12, neuron=Neuron(0.4), batch_norm=True),
        PotentialReadout(12, 4, neuron=Neuron(1.0)),
    )
    images, labels = torch.randint(0, 255, (96, 1, 8, 8), dtype=torch.uint8), torch.arange(96) % 4
    config = TrainConfig(
        epochs=3, batch_size=16, cpu=True, output_dir=tmp_path / "own", psp_persistence_rise=(0.0, 0.5), lookahead=2
    )
    Trainer(network, ((images, labels), (images, labels)), config, callbacks=[Watch()]).train()
    assert seen[0][0] < 0.1
    assert seen[-1] == [0.4, 1.0]
    assert all(hidden == pytest.approx(0.4 * readout) for hidden, readout in seen)


def test_lookahead_averages_and_goes_on_from_the_average():
    network, average = small(), small()
    before = [tensor.clone() for tensor in average.state_dict().values()]
    other = [tensor.clone() for tensor in network.state_dict().values()]
    look_ahead(average, network, 5, 0.5)
    decay = 0.95**5 * 0.125
    for slow, fast, old, new in zip(
        average.state_dict().values(), network.state_dict().values(), before, other, strict=True
    ):
        if slow.is_floating_point():
            torch.testing.assert_close(slow, decay * old + (1 - decay) * new)
            assert torch.equal(slow, fast)
    look_ahead(average, small(), 5, 0.0)


def test_rates_of_normalisation_and_readout_are_their_own():
    network = small()
    config = TrainConfig(lr=2.0, weight_decay=0.1, norm_bias_rate=7, norm_gain_rate=0, readout_rate=0.5)
    rates = {}
    for group in build_optimizer(config, network).param_groups:
        for parameter in group["params"]:
            rates[id(parameter)] = (group["lr"], group["weight_decay"])
    layer = network.features.conv2
    assert rates[id(layer.weight)] == (2.0, 0.1)
    assert rates[id(layer.batch_norm.bias)] == (14.0, 0.0)
    assert rates[id(layer.batch_norm.weight)] == (0.0, 0.0)
    assert rates[id(network.readout.weight)] == (1.0, 0.2)  # the same share a step
    assert rates[id(network.readout.bias)] == (1.0, 0.0)
    assert len(rates) == len(list(network.parameters()))


def test_statistics_of_the_scored_network_are_those_of_training_images(config):
    normal = change(config, batch_norm=True, encoder="analog", lookahead=3, ema_decay=0.0, lr=0.5, optimizer="sgd")
    kept = []
    train(change(normal, epochs=2, dropout=0.0), callbacks=[At(1, kept.append)])
    (loop,) = kept
    network = loop.scored_network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    refresh_statistics(network, loop.data.train, loop.data.train_indices, 13, loop.accelerator)
    images = loop.data.train.images_at(loop.data.train_indices[: len(loop.data.train_indices) // 13 * 13]) / 255
    potentials = images.sub(network.features.conv1.mean).div(network.features.conv1.std)
    potentials = torch.nn.functional.conv2d(potentials, network.features.conv1.effective_weight(), padding=1)
    running = network.features.conv1.batch_norm.running_mean
    torch.testing.assert_close(running, potentials.mean((0, 2, 3)).detach(), rtol=1e-4, atol=1e-5)
    for name, value in network.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("values", "theirs"),
    [
        (
            {"schedule": "one_cycle", "warmup": 0.25},
            lambda sgd: OneCycleLR(sgd, 0.1, 40, pct_start=0.25, cycle_momentum=False),
        ),
        (
            {"schedule": "milestones", "milestones": (1, 3), "milestone_factor": 0.4},
            lambda sgd: MultiStepLR(sgd, milestones=[10, 30], gamma=0.4),
        ),
    ],
)
def test_rates_follow_torch(values, theirs):
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, factor = theirs(sgd), rate_factor(TrainConfig(**values, epochs=4), 40, 10)
    for step in range(40):
        assert 0.1 * factor(step) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()


@pytest.mark.parametrize(("name", "end"), [("one_cycle", 0), ("cosine", 0), ("linear", 0.1), ("constant", 1)])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_rates_rise_to_the_peak_and_fall_to_their_end(name, end, warmup):
    config = TrainConfig(schedule=name, warmup=warmup, start_factor=0.2, end_factor=0.1, epochs=4)
    factors = [rate_factor(config, 40, 10)(step) for step in range(41)]
    peak = round(40 * warmup)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:40] == sorted(factors[peak:40], reverse=True)
    assert max(factors) == pytest.approx(1, rel=0.01)
    assert factors[39] == pytest.approx(end, abs=1e-3)
    assert name != "linear" or not warmup or factors[4] == pytest.approx(0.2 + 0.8 * 4 / peak)
    assert 0 <= factors[40] <= 1
