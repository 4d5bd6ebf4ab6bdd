"""Sweeps over steps and bits: rows of single simulations, as JSON and CSV."""

import csv
import io
import json

import pytest
import torch
from torch import nn

from tests.nn.common import randomised
from ttfs_triton.hardware.simulation.simulator import simulate
from ttfs_triton.hardware.simulation.sweep import SweepRow, sweep
from ttfs_triton.nn import DFTLinear, LatencyEncoder, PotentialReadout

IMAGES, LABELS = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
BATCHES = [(IMAGES[:12], LABELS[:12]), (IMAGES[12:], LABELS[12:])]
PAIRS = [(bits, steps) for bits in (2, 8, None) for steps in (4, 8)]


def network():
    return randomised(nn.Sequential(LatencyEncoder(), DFTLinear(6, 9), PotentialReadout(9, 3)), 0)


def small_sweep(batches=BATCHES, steps=(4, 8), weight_bits=(2, 8, None), **options):
    return sweep(network(), batches, steps=steps, weight_bits=weight_bits, **options)


@pytest.mark.parametrize(("compare_at", "per_channel"), [("middle", True), ("start", False)])
def test_rows_are_those_of_single_simulations(compare_at, per_channel):
    options = dict(compare_at=compare_at, per_channel=per_channel)
    found = small_sweep(**options, price=lambda seen: seen.activity[0].compares + seen.settings.steps)
    assert found.samples == 20
    assert [(row.weight_bits, row.steps) for row in found.rows] == PAIRS
    for row in found.rows:
        one = simulate(network(), BATCHES, steps=row.steps, weight_bits=row.weight_bits, **options)
        hidden, readout = one.counts.layers
        assert (row.accuracy, row.first_spike_accuracy) == (one.accuracy, one.first_spike_accuracy)
        assert (row.spikes, row.ties, row.latency_steps) == (hidden.spikes / 20, one.ties / 20, one.mean_latency_steps)
        assert row.synaptic_operations == (hidden.synaptic_operations + readout.synaptic_operations) / 20
        assert row.energy_pj == one.activity[0].compares + row.steps


def test_sweep_as_dict_and_csv(tmp_path):
    found = small_sweep(price=lambda simulation: 2.5e6)
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["steps"] == 4
    text = found.to_csv(tmp_path / "sweep.csv")
    assert (tmp_path / "sweep.csv").read_text(encoding="utf-8") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(SweepRow.__dataclass_fields__)
    assert [row["weight_bits"] for row in rows] == ["2", "2", "8", "8", "", ""]
    assert float(rows[3]["accuracy"]) == found.rows[3].accuracy
    without = small_sweep(batches=[IMAGES])  # no labels, no price
    assert all(row.accuracy is row.energy_pj is None for row in without.rows)
    assert without.to_csv().splitlines()[1].startswith("4,2,,,")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ()}, "sweep: steps and weight_bits must not be empty; got nothing"),
        ({"steps": (4, 0)}, "simulate: steps must be 1 to 4096; got 0"),
        ({"batches": iter(BATCHES)}, "simulate: batches must not be empty; got none. A generator gives"),
        ({"batches": []}, "simulate: batches must not be empty; got none"),
    ],
)
def test_sweep_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        small_sweep(**options)
