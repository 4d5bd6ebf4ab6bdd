import csv
import io
import json

import pytest
import torch
from torch import nn

from tests.nn.common import randomised
from ttfs_triton.hardware.simulation.simulator import simulate
from ttfs_triton.hardware.simulation.sweep import COLUMNS, sweep
from ttfs_triton.nn import DFTLinear, LatencyEncoder, PotentialReadout

IMAGES, LABELS = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
BATCHES = [(IMAGES[:12], LABELS[:12]), (IMAGES[12:], LABELS[12:])]


def network():
    return randomised(nn.Sequential(LatencyEncoder(), DFTLinear(6, 9), PotentialReadout(9, 3)), 0)


def small_sweep(**options):
    return sweep(network(), options.pop("batches", BATCHES), steps=(4, 8), weight_bits=(2, 8, None), **options)


@pytest.mark.parametrize("compare_at", ["middle", "start"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_rows_are_those_of_single_simulations(compare_at, per_channel):
    options = dict(compare_at=compare_at, per_channel=per_channel)
    found = small_sweep(**options, price=lambda simulation: simulation.counts.total()["spikes"] / simulation.samples)
    assert found.samples == 20
    assert [(row.weight_bits, row.steps) for row in found.rows] == [(b, s) for b in (2, 8, None) for s in (4, 8)]
    for row in found.rows:
        one = simulate(network(), BATCHES, steps=row.steps, weight_bits=row.weight_bits, **options)
        hidden, readout = one.counts.layers
        assert (row.accuracy, row.first_spike_accuracy) == (one.accuracy, one.first_spike_accuracy)
        assert (row.spikes, row.ties, row.latency_steps) == (hidden.spikes / 20, one.ties / 20, one.mean_latency_steps)
        assert row.synaptic_operations == (hidden.synaptic_operations + readout.synaptic_operations) / 20
        assert row.energy_pj == (hidden.spikes + readout.spikes) / 20


def test_price_sees_steps_bits_and_activity():
    seen = []
    small_sweep(price=lambda s: seen.append((s.settings.weight_bits, s.settings.steps, len(s.activity))) or 0.0)
    assert seen == [(b, s, 2) for b in (2, 8, None) for s in (4, 8)]


def test_sweep_as_dict_and_csv(tmp_path):
    found = small_sweep(price=lambda simulation: 2.5e6)
    values = json.loads(json.dumps(found.to_dict()))
    assert values["rows"][0]["steps"] == 4
    text = found.to_csv(tmp_path / "sweep.csv")
    assert (tmp_path / "sweep.csv").read_text(encoding="utf-8") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    assert [row["weight_bits"] for row in rows] == ["2", "2", "8", "8", "", ""]
    assert float(rows[3]["accuracy"]) == found.rows[3].accuracy


def test_sweep_without_labels_or_price():
    found = small_sweep(batches=[IMAGES])
    assert all(row.accuracy is row.energy_pj is None for row in found.rows)
    assert found.to_csv().splitlines()[1].startswith("4,2,,,")


def test_progress_bar_only_where_asked(capsys):
    small_sweep()
    assert capsys.readouterr().err == ""  # no terminal
    small_sweep(progress=True)
    assert "bits" in capsys.readouterr().err


def test_iterators_are_rejected():
    message = r"sweep: batches must be able to be gone through again; got generator, which ends after one pass\. Pass a"
    with pytest.raises(ValueError, match=message):
        small_sweep(batches=(batch for batch in BATCHES))
    with pytest.raises(ValueError, match="gone through again; got list_iterator"):
        small_sweep(batches=iter(BATCHES))


class Shrinking:
    """Gives one batch less in each pass."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __iter__(self):
        yield from self.batches
        self.batches.pop()


def test_passes_over_other_samples_are_rejected():
    with pytest.raises(ValueError, match="sweep: batches must give the same samples in each pass; got 20, then 12"):
        small_sweep(batches=Shrinking(BATCHES))


def test_no_samples_are_rejected():
    with pytest.raises(ValueError, match="simulate: batches must not be empty; got none"):
        small_sweep(batches=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ()}, "sweep: steps and weight_bits must not be empty; got nothing"),
        ({"weight_bits": ()}, "sweep: steps and weight_bits must not be empty; got nothing"),
        ({"steps": (4, 0)}, "simulate: steps must be 1 to 4096; got 0"),
        ({"weight_bits": (8, 17)}, "simulate: weight_bits must be 2 to 16, or None; got 17"),
        ({"compare_at": "end"}, "simulate: compare_at must be one of"),
    ],
)
def test_sweep_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        sweep(network(), BATCHES, **{"steps": (4,), "weight_bits": (8,)} | options)
