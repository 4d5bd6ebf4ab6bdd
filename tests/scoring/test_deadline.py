"""Decisions by a deadline, confidence by lead, and early exits whose error is stated."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ttfs_triton.nn import Grid, NetworkConfig, TTFSNetwork, cnn1, vgg11
from ttfs_triton.scoring.deadline import (
    Outputs,
    choose_exit,
    confidence,
    deadline_curve,
    exit_figures,
    output_spikes,
    upper_bound,
)

INF = math.inf
EARLY_CLASSES = torch.tensor([[0] * 9, [1] * 4 + [0] * 5, [1] * 9, [0] * 9])


def hand_made():
    times = torch.tensor([[0.2, 0.5, INF], [0.4, 0.4, 0.9], [INF, INF, INF], [INF, 0.7, INF]], dtype=torch.float64)
    potential = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [0.9, 0.0, 0.0]], dtype=torch.float64)
    slope = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    return Outputs(times, potential, slope, torch.tensor([0, 0, 1, 1]), window=1.0, start=4.0, early=EARLY_CLASSES)


def random_outputs(images, seed=0, accuracy=0.97):
    """Images whose right class is the surer the longer it leads."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (images,), generator=generator)
    times = 0.3 + 0.5 * torch.rand(images, 4, generator=generator, dtype=torch.float64)
    easy = torch.rand(images, generator=generator) < accuracy
    times[torch.arange(images), labels] = torch.where(easy, 0.1 * torch.rand(images, generator=generator).double(), 0.6)
    return Outputs(times, -times, torch.zeros_like(times), labels, 1.0, 2.0, early=labels[:, None].expand(-1, 9))


def test_first_spike_class_and_lead():
    earliest, prediction, lead = hand_made().first()
    assert earliest.tolist() == [0.2, 0.4, INF, 0.7]
    assert prediction[[0, 1, 3]].tolist() == [0, 0, 1]
    assert lead.tolist() == pytest.approx([0.3, 0.0, 0.0, 0.3])


def test_what_is_forced_follows_the_potential_until_the_first_spike():
    outputs = hand_made()
    assert outputs.forced(0.0).tolist() == [0, 1, 2, 0]
    assert outputs.forced(0.5).tolist() == [0, 0, 1, 0]
    assert outputs.forced(1.0).tolist() == [0, 0, 1, 1]


def test_deadline_curve_by_hand():
    *early, start, middle, end = deadline_curve(hand_made(), [0.0, 0.5, 1.0])
    assert [row.accuracy for row in early] == [0.5] * 4 + [0.75] * 5
    assert [row.deadline for row in early] == pytest.approx([3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8, 3.9])
    assert {row.decided for row in early} == {0.0}
    assert (start.deadline, start.accuracy, start.decided, start.decided_accuracy) == (4.0, 0.25, 0.0, None)
    assert (middle.accuracy, middle.decided, middle.decided_accuracy) == (0.75, 0.5, 1.0)
    assert (end.accuracy, end.decided, end.decided_accuracy) == (1.0, 0.75, 1.0)
    assert end.time == pytest.approx(4 + (0.2 + 0.4 + 1.0 + 0.7) / 4)
    assert len(deadline_curve(hand_made())) == 9 + 11


def test_confidence_falls_with_the_lead():
    rows = confidence(random_outputs(2000), groups=5)
    assert sum(row.images for row in rows) == 2000
    assert [row.lead for row in rows] == sorted((row.lead for row in rows), reverse=True)
    assert rows[0].accuracy == 1.0 > rows[-1].accuracy


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 59), st.sampled_from([0.9, 0.95, 0.99]))
def test_upper_bound_is_where_so_few_failures_become_unlikely(trials, failures, confidence):
    failures = min(failures, trials - 1)
    bound = upper_bound(failures, trials, confidence)
    share = Fraction(bound).limit_denominator(10**9)
    tail = sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(failures + 1))
    assert float(tail) == pytest.approx(1 - confidence, rel=1e-4)


def test_upper_bound_without_a_success_is_one():
    assert upper_bound(3, 3, 0.95) == 1.0
    assert upper_bound(0, 100, 0.95) == pytest.approx(1 - 0.05 ** (1 / 100))


def test_stated_error_holds_as_often_as_it_is_said_to():
    kept = []
    for seed in range(12):
        rule = choose_exit(random_outputs(1000, seed), 0.02, confidence=0.9)
        assert rule.bound <= rule.error == 0.02
        figures = exit_figures(random_outputs(4000, 1000 + seed), rule)
        assert figures.error is not None
        kept.append(figures.error <= 0.02)
        assert figures.exits > 0.5
        assert figures.time < figures.full_time == 3.0
    assert sum(kept) >= 10


def test_an_exit_is_a_lead_after_the_first_spike():
    rule = choose_exit(random_outputs(3000), 0.01)
    outputs = random_outputs(500, 7)
    earliest, _, lead = outputs.first()
    exits = lead >= rule.lead
    expected = torch.where(exits, earliest + rule.lead, 1.0).mean() + 2
    assert exit_figures(outputs, rule).time == pytest.approx(float(expected))


def test_an_error_that_cannot_be_promised_is_refused():
    with pytest.raises(ValueError, match=r"choose_exit: error must be one that 30 images can promise"):
        choose_exit(random_outputs(30), 1e-3)
    with pytest.raises(ValueError, match="choose_exit: error must be between 0 and 1; got 0"):
        choose_exit(random_outputs(30), 0)


@pytest.mark.parametrize("grid", [None, Grid(8, 4)])
def test_outputs_are_the_decisions_of_the_network(grid):
    network, images = cnn1(width=0.25, grid=grid), torch.rand(12, 1, 28, 28)
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(5)]
    outputs = output_spikes(network, batches)
    with torch.no_grad():
        decided = network.eval().decide(images)
    torch.testing.assert_close(outputs.times.float(), decided.spike_times, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs.forced(1.0), decided.prediction)
    with torch.no_grad():  # what the readout would see if the last hidden layer's window ended here
        hidden = (network.hidden(images) - 0.5).clamp(min=0)
        expected = network.readout.potential(hidden).argmax(1)
    assert torch.equal(outputs.early[:, 4], expected)
    assert (outputs.start, outputs.window, len(outputs), len(outputs[:4])) == (4, 1.0, 12, 4)
    assert output_spikes(vgg11(width=1 / 16), [(torch.rand(2, 3, 32, 32), torch.zeros(2))]).start == 10


def test_outputs_need_a_spiking_network_and_images():
    with pytest.raises(ValueError, match="model must consist of spiking layers here; got ANNLinear"):
        output_spikes(TTFSNetwork(NetworkConfig("8", analog=True)), [])
    with pytest.raises(ValueError, match="output_spikes: batches must not be empty; got none"):
        output_spikes(TTFSNetwork(NetworkConfig("8")), [])
