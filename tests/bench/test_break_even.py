"""Break-even points, at which energies meet."""

import math
from dataclasses import replace

import pytest
import torch

from tests.bench.modules import modules
from ttfs_triton.chip import simulate, simulated_run
from ttfs_triton.energy import RunOptions, dense_ann, estimate, load_chip
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import NetworkConfig

(break_even,) = modules("break_even")

STEPS = 6


@pytest.fixture(scope="module")
def tested():
    """A small network behind a latency encoder, with a padded convolution."""
    torch.manual_seed(0)
    model = TTFSModel(NetworkConfig("6C3-P2-12", image_size=(10, 10), classes=4)).eval()
    return break_even.Tested("small", model, [(torch.rand(3, 1, 10, 10), torch.tensor([0, 1, 2]))])


@pytest.fixture(scope="module")
def simulation(tested):
    return simulate(tested.network, tested.batches, steps=STEPS)


@pytest.mark.parametrize("chip", ["lemaire45:int8", "lemaire45:fp32"])
def test_break_even_points_are_where_energies_meet(tested, simulation, chip):
    chip = load_chip(chip)
    row = break_even.network_row(tested, simulation, chip, ann=1.0)
    assert row["ratio"] == pytest.approx(row["of_updates"] + row["of_operations"], abs=2e-4)
    assert not row["within_a_point"] or simulation.accuracy >= 0.99
    dense = dense_ann(simulation.counts, chip, options=RunOptions(steps=STEPS)).memory_included.nominal
    if (par := row["steps_at_par"]) != "none":
        beside = max(1, math.floor(par)), math.ceil(par) + 1
        runs = (estimate(simulation.counts, chip, steps=steps, gating=True) for steps in beside)
        below, above = (run.memory_included.nominal for run in runs)
        assert above > dense
        assert below <= dense or par < 1


def test_layers_at_their_break_even_density_cost_the_same(tested, simulation):
    chip = load_chip("lemaire45:int8")
    rows = break_even.layer_rows(tested, simulation, chip)
    assert [row["layer"] for row in rows] == ["conv1", "fc1", "readout"]
    counts, run = simulated_run(simulation)
    dense = break_even.by_layer(dense_ann(counts, chip, options=run))
    at_par = {row["layer"]: row["density_at_par"] for row in rows if row["density_at_par"] != "none"}
    assert at_par
    operations = {layer.name: at_par.get(layer.name, 0) * layer.dense_macs for layer in counts.layers}
    layers = tuple(replace(layer, synaptic_operations=operations[layer.name]) for layer in counts.layers)
    ours = break_even.by_layer(estimate(replace(counts, layers=layers), chip, run))
    for name in at_par:
        assert ours[name] == pytest.approx(dense[name], rel=2e-3)  # rows have four decimals
