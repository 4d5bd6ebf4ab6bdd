"""Benches of energy: rows that name their chip, break-even points that are some, and a model that ends in ours."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from tests.bench.modules import break_even, cross_check, energy, lemaire, networks
from ttfs_triton.hardware import RateCode, RunOptions, count, dense_ann, estimate, load_chip, rate_coded, simulate
from ttfs_triton.model import TTFSModel
from ttfs_triton.nn import NetworkConfig

STEPS = 6


@pytest.fixture(scope="module")
def tested():
    """A small network behind a latency encoder, with a padded convolution."""
    torch.manual_seed(0)
    model = TTFSModel(NetworkConfig("6C3-P2-12", image_size=(10, 10), classes=4)).eval()
    return networks.Tested("small", model, [(torch.rand(3, 1, 10, 10), torch.tensor([0, 1, 2]))])


@pytest.fixture(scope="module")
def found(tested):
    return simulate(tested.network, tested.batches, steps=STEPS)


def test_energy_rows_name_their_chip_and_stand_in_pairs(tested, capsys):
    rows = energy.price(energy.Options(("small",), steps=STEPS), tested)
    capsys.readouterr()
    chips = [row["chip"] for row in rows]
    for precision in ("fp16", "fp32", "int32", "int8"):
        place = chips.index(f"lemaire45:{precision}")
        assert chips[place + 1] == f"horowitz45:{precision}"
        priced, without = rows[place : place + 2]
        assert (priced["memory"], without["memory"]) == ("priced", "no price")
        assert priced["ratio_with_memory_least"] <= priced["ratio_with_memory"] <= priced["ratio_with_memory_most"]
        assert priced["ratio_with_memory_least"] < priced["ratio_with_memory_most"]
        assert without["ratio_with_memory"] == without["memory_included_nj"] == ""
        assert priced["ratio_arithmetic"] == without["ratio_arithmetic"]
        assert "ANN" in priced["verdict"]
        assert without["verdict"] == "No verdict: it needs prices with memory and without."
    assert rows[chips.index("loihi")]["memory"] == "inside a synaptic operation"


@pytest.mark.parametrize("chip", ["lemaire45:int8", "lemaire45:fp32"])
def test_break_even_points_are_where_energies_meet(tested, found, chip):
    chip = load_chip(chip)
    row = break_even.network_row(tested, found, chip, ann=1.0)
    assert row["ratio"] == pytest.approx(row["of_updates"] + row["of_operations"], abs=2e-4)
    assert not row["within_a_point"] or found.accuracy >= 0.99
    dense = dense_ann(found.counts, chip, options=RunOptions(steps=STEPS)).memory_included.nominal
    if row["steps_at_par"] != "none":
        below, above = (
            estimate(found.counts, chip, steps=steps, gating=True).memory_included.nominal
            for steps in (max(1, math.floor(row["steps_at_par"])), math.ceil(row["steps_at_par"]) + 1)
        )
        assert above > dense
        assert below <= dense or row["steps_at_par"] < 1


def test_layers_at_their_break_even_density_cost_the_same(tested, found):
    chip = load_chip("lemaire45:int8")
    rows = break_even.layer_rows(tested, found, chip)
    assert [row["layer"] for row in rows] == ["conv1", "fc1", "readout"]
    run = break_even.run_options(found)
    dense = break_even.by_layer(dense_ann(found.counts, chip, options=run))
    at_par = {row["layer"]: row["density_at_par"] for row in rows if row["density_at_par"] != "none"}
    assert at_par
    layers = [
        dataclasses.replace(layer, synaptic_operations=at_par.get(layer.name, 0) * layer.dense_macs)
        for layer in found.counts.layers
    ]
    ours = break_even.by_layer(estimate(dataclasses.replace(found.counts, layers=tuple(layers)), chip, run))
    for name in at_par:
        assert ours[name] == pytest.approx(dense[name], rel=2e-3)  # rows have four decimals


def test_chips_that_price_both_are_found():
    counts = count(TTFSModel(NetworkConfig("8", image_size=(4, 4), classes=2)), [torch.rand(2, 1, 4, 4)])
    assert [chip.name for chip in break_even.fair_chips(counts)] == [
        f"lemaire45:{precision}" for precision in ("fp32", "fp16", "int32", "int8")
    ]


def test_model_of_lemaire_ends_in_ours(tested, found):
    """With all differences taken out, the equations of the paper are the library's estimate, term by term."""
    stages = tested.network.graph.stages[1:]
    counts = found.counts
    layers = [
        cross_check.layer_of(stage, counts, place, counts.layers[place].spikes / found.samples)
        for place, stage in enumerate(stages)
    ]
    code = RateCode(
        STEPS,
        synaptic_operations={layer.name: layer.operations for layer in layers},
        spikes={layer.name: layer.spikes_out for layer in layers},
    )
    ours = cross_check.components(rate_coded(counts, cross_check.CHIP, code, options=RunOptions(steps=STEPS)))
    theirs = [lemaire.spiking(layers, STEPS, reading) for reading in lemaire.readings(tuple(lemaire.STEPS))]
    assert not cross_check.differing(theirs[-1], ours)
    ann = cross_check.components(dense_ann(counts, cross_check.CHIP))
    dense = [lemaire.dense(layers, reading) for reading in lemaire.readings(tuple(lemaire.DENSE_STEPS))]
    assert not cross_check.differing(dense[-1], ann)
    for models in (theirs, dense[:-1]):  # each difference is one; memories this small cost the same with biases
        assert all(cross_check.differing(*pair) for pair in pairwise(models))
    rows = cross_check.bridge_rows("spiking", [(str(place), each) for place, each in enumerate(theirs)])
    assert sum(row["change_nj"] for row in rows[1:]) == pytest.approx(
        rows[-1]["total_nj"] - rows[0]["total_nj"], abs=0.01
    )


def test_model_of_lemaire_by_hand():
    """2 neurons with 4 inputs, 3 spikes in, 1 out, 5 steps."""
    layer = lemaire.Layer("fc", False, True, 2, 4, 8, 2, 2, 4, 0, 3.0, 1.0, 6.0, 8)
    found = lemaire.spiking([layer], 5, lemaire.Reading())
    per_byte = 10 / 8192
    assert found["operations"] == pytest.approx(0.1 * (3 * 2 + 5 * 2 + 1))
    assert found["weights"] == pytest.approx((3 * 2 + 5 * 2) * per_byte * 4 * (8 + 2))
    assert found["states"] == pytest.approx(2 * (3 * 2 + 5 * 2) * per_byte * 4 * 2)
    assert found["inputs_outputs"] == pytest.approx((3 + 1) * per_byte * 4000)
    assert found["addressing"] == pytest.approx(0.1 * 3 * 2)
    dense = lemaire.dense([layer], lemaire.Reading())
    assert dense["operations"] == pytest.approx(8 * 3.2 + 2 * 0.1)
    assert dense["inputs_outputs"] == pytest.approx((4 * 4 * 4 + 2 * 4 * 2) * per_byte)
    assert lemaire.access(20 * 256, lemaire.Reading()) == pytest.approx(10 + 10 * (20 - 8) / 24)  # 20 kB


def test_benches_say_what_is_wrong_with_their_arguments(tmp_path):
    with pytest.raises(SystemExit, match="energy: --data-dir must name one folder a network; got 2 for 1"):
        networks.load_tested("energy", ("bundled:cnn1-mnist",), (tmp_path, tmp_path), None)
    with pytest.raises(SystemExit, match=r"energy: .*nothing"):
        networks.load_tested("energy", (str(tmp_path / "nothing"),), (), None)
    model = TTFSModel(NetworkConfig("4C3-P2-8", image_size=(8, 8), encoder="analog"))
    with pytest.raises(SystemExit, match="cross_check: network must have a latency encoder; got analog"):
        cross_check.check_supported(networks.Tested("small", model, []))
