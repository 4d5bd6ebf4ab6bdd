"""Decisions by a deadline."""

import math

import pytest
import torch

from ttfs_triton.evaluate.deadline import Outputs, deadline_curve, output_spikes
from ttfs_triton.nn import Grid, cnn1

INF = math.inf


def test_deadline_curve_by_hand():
    times = torch.tensor([[0.2, 0.5, INF], [0.4, 0.4, 0.9], [INF, INF, INF], [INF, 0.7, INF]], dtype=torch.float64)
    potential = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [0.9, 0.0, 0.0]], dtype=torch.float64)
    slope = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    early_classes = torch.tensor([[0] * 9, [1] * 4 + [0] * 5, [1] * 9, [0] * 9])
    outputs = Outputs(times, potential, slope, torch.tensor([0, 0, 1, 1]), start=4.0, early=early_classes)
    # What is forced follows the potential until the first spike.
    assert outputs.forced(0.5).tolist() == [0, 0, 1, 0]
    rows = deadline_curve(outputs)
    early, (start, middle, end) = rows[:9], rows[9::5]
    assert [row.accuracy for row in early] == [0.5] * 4 + [0.75] * 5
    assert [row.deadline for row in early] == pytest.approx([3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8, 3.9])
    assert {row.decided for row in early} == {0.0}
    assert (start.deadline, start.accuracy, start.decided) == (4.0, 0.25, 0.0)
    assert (middle.accuracy, middle.decided) == (0.75, 0.5)
    assert (end.accuracy, end.decided, end.time) == (1.0, 0.75, pytest.approx(4 + (0.2 + 0.4 + 1.0 + 0.7) / 4))


@pytest.mark.parametrize("grid", [None, Grid(10, 4)])
def test_outputs_are_the_decisions_of_the_network(grid):
    network, images = cnn1(width=0.25, grid=grid), torch.rand(12, 1, 28, 28)
    network.readout.initial_potential = 14.0  # output spikes come at about 0.3
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(5)]
    outputs = output_spikes(network, batches)
    with torch.no_grad():
        decided = network.eval().decide(images)
    torch.testing.assert_close(outputs.times.float(), decided.spike_times, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs.forced(1.0), decided.prediction)
    with torch.no_grad():  # what the readout would see if the last hidden layer's window ended here
        hidden = (network.hidden(images) - 0.5).clamp(min=0)
        expected = network.readout.one_pass(hidden).potential(at_end=False).argmax(1)
    assert torch.equal(outputs.early[:, 4], expected)
    assert (outputs.start, len(outputs.labels)) == (4, 12)
    if grid is not None:  # in float32, 3/10 would miss a deadline of 3/10
        steps = outputs.times[outputs.times.isfinite()] * grid.time_steps
        assert torch.equal(steps, steps.round())
