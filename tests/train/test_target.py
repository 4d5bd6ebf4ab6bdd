"""Targets: goals, costs in training, multipliers that reach the goals, and what a run says about them."""

import math

import hypothesis.strategies as st
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings

from tests.nn.common import activations
from tests.train.runs import TARGET, change, metrics
from ttfs_triton.energy import RunOptions, count
from ttfs_triton.energy.cost import Cost
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork, network_graph
from ttfs_triton.run_records import EpochLine
from ttfs_triton.train import target, train
from ttfs_triton.train.display import _target_words
from ttfs_triton.train.target import CostedNetwork, SilentChannels, Target, count_spikes, make_target
from ttfs_triton.training_options import Goal

TWENTY = Target(Goal("sparsity", 0.2), Cost(0.0, {}), 0.0)


def test_goal_is_reached_within_its_tolerance():
    measured = {"train_loss": 1.0, "train_accuracy": 0.5, "seconds": 1.0, "images_per_second": 1.0, "lr": 0.1}
    line = EpochLine(epoch=1, step=1, cost={"network": 0.3}, **measured)
    assert TWENTY.result(line, test=0.203)["reached"]
    assert "not reached within 2%. Train longer (--epochs)" in _target_words(TWENTY.result(line, test=0.205))


def costed(goal, specification="4C3-P2-6C3p0-P2-8", **options):
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig(specification, image_size=(14, 14), **options))
    images = torch.rand(6, 1, 14, 14) * (torch.rand(6, 1, 14, 14) < 0.5)
    graph = network_graph(network, images.shape[1:])
    return CostedNetwork(network, graph, make_target(goal, network, images, RunOptions(steps=16))), images


@pytest.mark.parametrize(
    "goal",
    [
        Goal("sparsity", 0.2),
        Goal("operations", 0.9),
        Goal("energy", 1e6, "lemaire45:int8"),
        Goal("energy", 1e6, "loihi_board"),
    ],
    ids=lambda goal: goal.chip or goal.kind,
)
@pytest.mark.parametrize(
    "options",
    [{}, {"encoder": "signed", "neuron": Neuron(0.25, surrogate_width=0.5)}, {"specification": "4C3-(4C3s2-6C3)-A"}],
    ids=["latency", "signed", "skip and average"],
)
def test_cost_of_a_batch_is_that_of_its_counts(goal, options):
    if options.get("encoder") == "signed" and goal.chip == "loihi_board":
        goal = Goal("energy", 1e6, "horowitz45:int8")  # which prices multiplications
    model, images = costed(goal, **options)
    with model.watching():
        logits, cost = model(images)
    torch.testing.assert_close(logits, model.network(images))
    expected = torch.tensor(model.target.cost.of(count(model.network, [images])))
    torch.testing.assert_close(cost.detach(), expected, rtol=1e-5, atol=0)
    cost.backward()
    gradients = [parameter.grad for parameter in model.network.parameters() if parameter.grad is not None]
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def toy(goal, steps, gain, free):
    """Final cost of a network that answers to pressure, and to what it would rather do, with momentum and noise, at a
    learning rate that ends at 0."""
    multiplier = target.LagrangeMultiplier(goal, 0.0, Accelerator(cpu=True), steps, ema_decay=0.0)
    generator, log_cost = torch.Generator().manual_seed(0), math.log(0.27)
    velocity = 0.0
    for step in range(steps):
        rate = 1 - step / steps
        multiplier.prepare(step, rate)
        seen = math.exp(log_cost + 0.01 * torch.randn((), generator=generator).item())
        multiplier.penalty(torch.tensor(seen), 1)
        multiplier.update()
        drive = free + 0.2 * (step > 0.6 * steps)  # late, something else changes
        velocity += 0.1 * (drive - multiplier.pressure.item() - velocity)
        log_cost = min(0.0, log_cost + gain * rate * velocity)
    return math.exp(log_cost)


@pytest.mark.parametrize(("steps", "gain"), [(600, 0.1), (2000, 0.01)])
@pytest.mark.parametrize(("goal", "free"), [(0.05, 0.3), (0.4, 0.0)])
def test_goal_is_reached_however_fast_a_network_answers(goal, steps, gain, free):
    assert toy(goal, steps, gain, free) == pytest.approx(goal, rel=0.02)


LONG = TARGET | {"epochs": 16}  # enough steps for the multiplier to follow


def test_run_reaches_its_goal_says_so_and_keeps_its_epoch_before_a_more_accurate_one(config, capsys):
    summary = train(change(config, **LONG))
    result, lines = summary["target"], metrics(config.output_dir)
    assert result["validation"]["network"] == pytest.approx(0.2, rel=0.1)
    assert result["test"] == {"network": pytest.approx(summary["sparsity"])}
    assert summary["test_accuracy"] > 0.5
    said = " ".join(capsys.readouterr().out.split())
    verdict = "reached" if result["reached"] else "not reached"
    assert f"target sparsity {summary['sparsity']:.4g} of 0.2: {verdict} within 2%" in said

    def order(line):
        return -max(0.0, abs(line["cost"]["network"] / 0.2 - 1) - 0.01), line["val_accuracy"], line["epoch"]

    assert summary["best_epoch"] == max(lines, key=order)["epoch"]


def test_held_channel_stays_silent_and_others_may_cease():
    """Of images that are empty but for some strokes, where a channel fires all of its background at once."""
    network = TTFSNetwork(NetworkConfig("6C3-P2-8", image_size=(16, 16), weight_standardisation=False))
    images = torch.zeros(16, 1, 16, 16)
    images[:, :, 5:11, 5:11] = torch.rand(16, 1, 6, 6) * (torch.rand(16, 1, 6, 6) < 0.7)
    graph = network_graph(network, images.shape[1:])
    potential = graph.stages[1].weighted.bias
    assert potential is not None
    with torch.no_grad():
        potential.copy_(torch.tensor([0.05, -0.001, -0.004, -0.008, -0.1, -0.1]))
    optimizer = torch.optim.SGD([potential], lr=1.0)
    channels = SilentChannels(graph, images)
    assert channels.layers == ["conv1"]
    channels.attach(optimizer)
    before = potential.detach().clone()

    def step(by):
        potential.grad = torch.full_like(potential, -by)
        optimizer.step()
        return potential.detach().clone()

    channels.hold(True)
    assert torch.equal(step(0.01), torch.where(before > 0, before + 0.01, (before + 0.01).clamp_max(0)))
    assert (step(-0.2) < 0).all()  # the one that fired, too
    assert (step(0.5) == 0).all()
    channels.hold(False)
    assert (step(0.5) > 0).all()


@settings(max_examples=30)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    ),
    width=st.sampled_from([0.25, 0.5, 1.0]),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    sign=st.sampled_from([3.0, -3.0]),
    seed=st.integers(0, 99),
)
def test_number_and_gradient_match_float64(shape, width, weighted, dtype, sign, seed):
    generator = torch.Generator().manual_seed(seed)
    values = activations(*shape, seed=seed).to(dtype)
    if len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    weight = torch.randint(0, 40, shape[2:], generator=generator).float() if weighted and len(shape) == 4 else None
    leaf = values.clone().requires_grad_()
    reached = (torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) < 0.5).to(dtype)
    found = count_spikes(leaf, weight, reached, width=width)
    (sign * found).backward()
    places = torch.ones(shape[2:], dtype=torch.float64) if weight is None else weight.double()
    assert found.dtype == torch.float32
    assert found.item() == ((values > 0).double() * places).sum().item()
    expected = sign * places * (1 - values.double() / width).clamp(min=0)
    expected = expected if sign > 0 else expected * reached
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(leaf.grad.double(), expected.expand(shape), rtol=tolerance, atol=tolerance)
    assert count_spikes(values * float("nan")) == 0
