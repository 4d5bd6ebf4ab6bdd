"""Schedules of the learning rate and of σ by optimiser step, and Muon."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from tests.train.runs import At, change, metrics
from ttfs_triton.data.images import images_of_tensors
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.train import ConfigError, TrainConfig, optimisation, train
from ttfs_triton.train.data import RunData, channel_statistics
from ttfs_triton.train.learner import refresh_statistics
from ttfs_triton.train.optimisation import Muon, PersistenceSchedule, build_optimizer, look_ahead, rate_factor

STEPS = 1000


def sigmas(network):
    return [m.neuron.psp_persistence for m in network.modules() if isinstance(getattr(m, "neuron", None), Neuron)]


def small(sigma=0.8):
    return TTFSNetwork(NetworkConfig("4C3-6C3-10", image_size=(8, 8), neuron=Neuron(sigma), batch_norm=True))


def test_sigma_rises_by_levels_from_zero_to_the_goal_of_each_layer():
    network = small()
    network.features.conv1.neuron = Neuron(0.4)
    schedule, seen = PersistenceSchedule([network], (0.25, 0.6), STEPS, torch.device("cpu")), []
    for step in range(STEPS):
        schedule.set(step)
        lowest, *others = sorted(sigmas(network))
        seen += set(others)  # one σ for all layers with the same goal
        assert lowest == pytest.approx(seen[-1] / 2)
    assert seen == sorted(seen)
    assert (set(seen[:250]), set(seen[600:])) == ({0.0}, {0.8})
    assert len(set(seen)) == optimisation.LEVELS + 1
    assert seen[425] == pytest.approx(0.4, abs=0.8 / optimisation.LEVELS)
    assert (len(seen), schedule.share) == (STEPS, 1)
    schedule.set(425)  # as a resumed run does
    with schedule.at_goal():
        assert set(sigmas(network)) == {0.4, 0.8}
    assert max(sigmas(network)) == seen[425]
    for rise in ((0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.3, 0.3)):
        network = small()
        schedule = PersistenceSchedule([network], rise, STEPS, torch.device("cpu"))
        _ = schedule.set(0), schedule.set(STEPS - 1)
        assert set(sigmas(network)) == {0.8}


def test_a_run_keeps_the_best_epoch_at_the_goal_and_its_files_say_so(config):
    values = {"batch_norm": True, "psp_persistence": 0.5, "psp_persistence_rise": (0.2, 0.6), "epochs": 5}
    assert train(change(config, **values))["best_epoch"] >= 3
    assert [line["rise"] < 1 for line in metrics(config.output_dir)] == [True, True, False, False, False]
    assert set(sigmas(TTFSModel.from_pretrained(config.output_dir))) == {0.5}


def test_lookahead_averages_and_goes_on_from_the_average():
    network, average = small(), small()
    before = [tensor.clone() for tensor in average.state_dict().values()]
    other = [tensor.clone() for tensor in network.state_dict().values()]
    look_ahead(average, network, 5, 0.5)
    decay = 0.95**5 * 0.125
    states = average.state_dict().values(), network.state_dict().values()
    for slow, fast, old, new in zip(*states, before, other, strict=True):
        if slow.is_floating_point():
            torch.testing.assert_close(slow, decay * old + (1 - decay) * new)
            assert torch.equal(slow, fast)


def test_normalisation_and_readout_have_rates_of_their_own_and_muon_rotates_hidden_weights_alone():
    network = small()
    network.batch_norm = True  # an attribute of a network of one's own
    config = TrainConfig(lr=2.0, weight_decay=0.1, norm_bias_rate=7, norm_gain_rate=0, readout_rate=0.5)
    groups = build_optimizer(config, network).param_groups
    rates = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    layer = network.features.conv2
    assert rates[id(layer.weight)] == (2.0, 0.1)
    assert rates[id(layer.batch_norm.bias)] == (14.0, 0.0)
    assert rates[id(layer.batch_norm.weight)] == (0.0, 0.0)
    assert rates[id(network.readout.weight)] == (1.0, 0.2)  # the same share a step
    assert rates[id(network.readout.bias)] == (1.0, 0.0)
    assert len(rates) == len(list(network.parameters()))
    config = TrainConfig(optimizer="muon", lr=0.1, momentum=0.6, weight_decay=1e-3)
    optimizer = build_optimizer(config, network, "bf16")
    assert (optimizer.dtype, build_optimizer(config, network).dtype) == (torch.bfloat16, torch.float32)
    rotated = [parameter for group in optimizer.param_groups if group["rotated"] for parameter in group["params"]]
    hidden = (network.features.conv1, network.features.conv2, network.features.fc1)
    assert list(map(id, rotated)) == [id(layer.weight) for layer in hidden]
    with pytest.raises(ValueError, match="muon needs momentum above 0"):
        TrainConfig(optimizer="muon", momentum=0.0)


def test_statistics_of_the_scored_network_are_those_of_training_images(config):
    normal = change(config, batch_norm=True, encoder="analog", lookahead=3, ema_decay=0.0, lr=0.5, optimizer="sgd")
    kept = []
    train(change(normal, epochs=2, dropout=0.0, evaluation_batch_size=1), callbacks=[At(1, kept.append)])
    (loop,) = kept
    network = loop.learner.scored_network
    assert network.features.fc1.batch_norm.running_var.max() > 0  # as of batches of training's size
    before = {name: value.clone() for name, value in network.state_dict().items()}
    indices = loop.data.train_indices[: len(loop.data.train_indices) // 13 * 13]
    refresh_statistics(network, loop.data.train, indices, 13, loop.accelerator)
    conv1, images = network.features.conv1, loop.data.train.images_at(indices) / 255
    images = images.sub(conv1.mean).div(conv1.std)
    means = nn.functional.conv2d(images, conv1.effective_weight(), padding=1).mean((0, 2, 3)).detach()
    torch.testing.assert_close(conv1.batch_norm.running_mean, means, rtol=1e-4, atol=1e-5)
    for name, value in network.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, before[name]), name


def test_micro_batches_of_one_image_are_refused_where_a_fully_connected_layer_has_batch_norm(config):
    normal = change(config, batch_norm=True, encoder="analog")
    for one in ({"batch_size": 1}, {"batch_size": 8, "gradient_accumulation": 8}):
        with pytest.raises(ConfigError, match=r"layer fc1 has batch norm; got 1\. Raise --batch-size"):
            train(change(normal, **one))
    without = {"batch_size": 1, "epochs": 1, "max_train_samples": 20}
    assert train(change(normal, model="4C3-P2", **without))["epochs"] == 1


def test_statistics_of_images_sorted_by_class_are_those_of_all(monkeypatch):
    """Of potentials by 5,000 of the images, and of pixels by all and by a quarter."""
    network, labels = small(), torch.arange(4).repeat_interleave(2500)
    images = torch.randint(0, 60, (10_000, 1, 8, 8), dtype=torch.uint8) + 60 * labels.byte().view(-1, 1, 1, 1)
    data, norm, found = images_of_tensors(images, labels), network.features.conv2.batch_norm, []
    for indices in (torch.randperm(10_000), torch.arange(10_000)):
        refresh_statistics(network, data, indices, 500, Accelerator(cpu=True))
        found.append((norm.running_mean.clone(), norm.running_var.clone()))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.01)
    whole, run = images.double() / 255, RunData(data, data, torch.arange(10_000), torch.arange(0))
    for number, tolerance in ((10_000, 6e-5), (2500, 0.03)):
        monkeypatch.setattr("ttfs_triton.train.data.STATISTICS_IMAGES", number)
        (mean,), (std,) = channel_statistics(run)
        assert (mean, std) == pytest.approx((whole.mean().item(), whole.std().item()), abs=tolerance)


@pytest.mark.parametrize(
    ("keys", "schedule"),
    [
        ({"warmup": 0.25}, partial(OneCycleLR, max_lr=0.1, total_steps=40, pct_start=0.25, cycle_momentum=False)),
        ({"milestones": (1, 3, 9), "milestone_factor": 0.4}, partial(MultiStepLR, milestones=[10, 30, 90], gamma=0.4)),
    ],
)
def test_rates_are_those_of_torch(keys, schedule):
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = schedule(sgd)
    config = TrainConfig(**keys, schedule="milestones" if "milestones" in keys else "one_cycle", epochs=4)
    for step in range(40):
        assert 0.1 * rate_factor(config, 40)(step) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()


@pytest.mark.parametrize(("name", "end"), [("one_cycle", 0), ("cosine", 0), ("linear", 0.1), ("constant", 1)])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_rates_rise_to_the_peak_and_fall_to_their_end(name, end, warmup):
    config = TrainConfig(schedule=name, warmup=warmup, start_factor=0.2, end_factor=0.1, epochs=4)
    factors = [rate_factor(config, 40)(step) for step in range(41)]
    peak = round(40 * warmup)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:40] == sorted(factors[peak:40], reverse=True)
    assert max(factors) == pytest.approx(1, rel=0.01)
    assert factors[39] == pytest.approx(end, abs=1e-3)
    assert name != "linear" or not warmup or factors[4] == pytest.approx(0.2 + 0.8 * 4 / peak)
    assert 0 <= factors[40] <= 1


RATE, MOMENTUM = 0.2, 0.6


def make(rotated, others):
    groups = [{"params": rotated, "rotated": True}, {"params": others, "rotated": False}]
    optimizer = Muon(groups, lr=RATE, momentum=MOMENTUM, dtype=torch.float32)
    for parameter in (*rotated, *others):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def test_steps_are_those_of_pytorchs_muon_on_a_sphere_and_of_sgd():
    """PyTorch's takes matrices alone and keeps no norm: its step is scaled, and the weight put back to its norm."""
    weights = [nn.Parameter(torch.randn(shape)) for shape in [(6, 20), (20, 6), (4, 3, 2, 2), (5, 5)]]
    bias, other_bias = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    ours, sgd = make(weights, [bias]), torch.optim.SGD([other_bias], lr=RATE, momentum=MOMENTUM, nesterov=True)
    matrices = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights]
    theirs = torch.optim.Muon(matrices, lr=1.0, weight_decay=0.0, momentum=MOMENTUM)
    for _ in range(4):
        gradients = [torch.randn_like(parameter) for parameter in (*weights, bias)]
        for parameter, gradient in zip((*weights, bias), gradients, strict=True):
            parameter.grad = gradient.clone()
        other_bias.grad = gradients[-1].clone()
        starts = [matrix.detach().clone() for matrix in matrices]
        for matrix, gradient in zip(matrices, gradients[:-1], strict=True):
            matrix.grad = gradient.flatten(1)
        for optimizer in (ours, sgd, theirs):
            optimizer.step()
        torch.testing.assert_close(bias, other_bias)
        for weight, matrix, start in zip(weights, matrices, starts, strict=True):
            rows, columns = start.shape
            update = (matrix.detach() - start) / max(1.0, rows / columns) ** 0.5  # PyTorch's rate for tall matrices
            moved = start + RATE * start.norm() / min(rows, columns) ** 0.5 * update
            expected = moved * start.norm() / moved.norm()
            error = (weight.detach().flatten(1) - expected).norm() / (expected - start).norm()
            assert error < 0.05  # theirs computes in bfloat16
            assert weight.norm().item() == pytest.approx(start.norm().item(), rel=1e-5)
            with torch.no_grad():  # both go on from one place
                matrix.copy_(weight.flatten(1))
    assert torch.equal(optimisation.orthogonal(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_cancelled_step_changes_nothing_and_scaled_gradients_are_unscaled():
    start, gradients = torch.randn(4, 6), torch.randn(3, 4, 6)
    plain, scaled = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours, other = make([plain], []), make([scaled], [])
    other.grad_scale = torch.tensor(1024.0)
    for failed, gradient in zip((0.0, 1.0, 0.0), gradients, strict=True):
        scaled.grad = gradient * (float("nan") if failed else 1024)
        other.found_inf = torch.tensor(failed)
        if not failed:
            plain.grad = gradient.clone()
            ours.step()
        other.step()
        assert torch.equal(plain, scaled)
