"""The same network as an ANN, also one that skips zeros; where they cost the same, and who is cheaper."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.energy.energy_cases import convolutional_network, counted, of_neuron
from ttfs_triton.energy import count
from ttfs_triton.energy.chip import Access, Chip, Memory, Price
from ttfs_triton.energy.compare import FAIR_CHIP, Verdict, break_even_firing_share, fair_chip, verdict
from ttfs_triton.energy.estimate import Run, RunOptions
from ttfs_triton.energy.models import dense_ann, estimate, zero_skipping_ann
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

OPTIONS = RunOptions(steps=8)
COUNTS = convolutional_network()


def test_ann_pools_first_where_synapses_average():
    counts = count(TTFSNetwork(NetworkConfig("4C3-A2-6C3-A", image_size=(8, 8), classes=4)), [torch.ones(1, 1, 8, 8)])
    pixels = (4 * 3 - 2) ** 2
    rows = ("conv2", 4 * 64, 24 * pixels, 24 * pixels), ("readout", 6 * 16, 6 * 4, 6)
    for name, inputs, products, reads in rows:
        dense, skipping = (counted(ann(counts, "lemaire45:int8"), name) for ann in (dense_ann, zero_skipping_ann))
        assert dense["average pools"] == skipping["average pools"] == inputs
        assert dense["input reads"] == skipping["input reads"] == reads
        assert skipping["multiply-accumulates"] <= dense["multiply-accumulates"] == products


def test_dense_ann_multiplies_every_synapse_and_zero_skipping_what_is_not_zero_but_reads_all():
    dense, skipping = (counted(ann(COUNTS, "lemaire45:int8")) for ann in (dense_ann, zero_skipping_ann))
    assert (dense["multiply-accumulates"], dense["activation functions"]) == (1936 + 15488 + 1280, 256 + 512)
    assert dense_ann(COUNTS, "horowitz45:int8").total.nominal == pytest.approx(0.23 * 18704 + 0.03 * 768)
    assert (skipping["multiply-accumulates"], skipping["tests for zero"]) == (1800 + 6000 + 640, 1936 + 15488 + 128)
    assert skipping["input reads"] == dense["input reads"] == 1936 + 15488 + 128
    assert skipping["weight reads"] < dense["weight reads"]


# ---- break-even points


@given(st.sampled_from(["lemaire45:fp32", "lemaire45:fp16", "lemaire45:int32", "lemaire45:int8"]))
def test_break_even_firing_share_is_where_energies_meet(chip):
    counts = of_neuron(COUNTS, 0.0)
    point = break_even_firing_share(counts, chip, OPTIONS)
    assert f"with memory, it costs less than the dense ANN below an activity of {point.value:.3f} (now" in point.text
    moved = estimate(counts.firing_more(point.value / counts.sparsity), chip, OPTIONS)
    assert moved.memory_included.nominal == pytest.approx(dense_ann(counts, chip).memory_included.nominal)


def test_break_even_says_when_there_is_none():
    never = break_even_firing_share(COUNTS, "lemaire45:int8", RunOptions(steps=4096))
    assert never.value is None
    assert never.text.startswith("no break-even activity: the network without a spike costs ")
    always = break_even_firing_share(COUNTS, priced("dear products", 1e6), OPTIONS)
    assert always.value > 1
    assert always.text == "with memory, it costs less than the dense ANN at any activity"
    dark = break_even_firing_share(COUNTS.firing_more(0.0), "lemaire45:int8", OPTIONS)
    assert dark == (None, "no break-even activity: no hidden neuron fires")


# ---- who is cheaper


def test_ratios_are_those_of_estimates():
    options = RunOptions(steps=10)
    found, dense = verdict(COUNTS, "lemaire45:int8", options), dense_ann(COUNTS, "lemaire45:int8", options=options)
    assert (found.steps, found.steps[found.asked]) == ((4, 8, 10, 16, 32, 64, 128), 10)
    ours = [estimate(COUNTS, "lemaire45:int8", options, steps=steps) for steps in found.steps]
    for measure, ratios in (("memory_included", found.with_memory), ("compute_only", found.arithmetic)):
        expected = [getattr(each, measure).nominal / getattr(dense, measure).nominal for each in ours]
        assert list(ratios) == pytest.approx(expected)
        assert list(ratios) == sorted(ratios)  # more steps, more work
    assert (found.bound, "upper bounds" in " ".join(found.sentences())) == (True, True)
    simulated = [dataclasses.replace(options, steps=steps, activity=()) for steps in (4, 10)]
    asked = verdict(COUNTS, "lemaire45:int8", simulated[1], [Run(COUNTS, simulated[0])])
    assert (asked.steps, asked.asked, asked.bound) == ((4, 10), 1, False)
    assert verdict(COUNTS, "lemaire45:int8", options, ()).steps == (10,), "on a grid: no other steps"


@pytest.mark.parametrize(
    ("with_memory", "arithmetic", "cheaper", "last"),
    [
        ((0.5, 0.9), (0.1, 0.2), True, "Cheaper than the dense ANN, with memory and without at 4 to 8 steps a window."),
        (
            (0.5, 1.2),
            (0.1, 0.2),
            False,
            "Cheaper than the dense ANN, with memory and without, only at 4 steps a window",
        ),
        ((0.5, 0.9), (1.1, 1.2), False, "Not cheaper than the dense ANN at 4 to 8 steps a window."),
    ],
)
def test_cheaper_needs_both(with_memory, arithmetic, cheaper, last):
    found = Verdict("c", (4, 8), with_memory, arithmetic, asked=1)
    assert (found.cheaper, found.sentences()[-1].startswith(last)) == (cheaper, True)


def priced(name, multiply_accumulate=1.0, memory=True, accumulate=0.1, **changes):
    """A chip of the user's; None is an unpublished price."""
    prices = {"accumulate": accumulate, "multiply_accumulate": multiply_accumulate, "compare": 0.1}
    about = {
        key: {"unit": "pJ", "source": "mine", "status": "measured" if value else "unpublished"}
        for key, value in prices.items()
    }
    prices = {key: Price(value, **about[key]) for key, value in prices.items()}
    sram = Memory((Access(5.0, size_kb=1, **about["compare"]),)) if memory else None
    return Chip(name, "a chip", "arithmetic", prices, memory=sram, **changes)


@pytest.mark.parametrize(
    ("chips", "chosen"),
    [
        (("loihi", "horowitz45:int8"), FAIR_CHIP),  # no price of products; no memory
        (("anp_i", "lemaire45:int32", "lemaire45:int8"), "lemaire45:int32"),  # the first of several
        (("odin", priced("mine"), "lemaire45:fp32"), "mine"),
        ((priced("no products", None), priced("no additions", accumulate=None)), FAIR_CHIP),
        ((priced("inside", memory=False, included=("memory",)),), "inside"),
    ],
)
def test_fair_chip_prices_network_and_dense_ann_both_ways(chips, chosen):
    assert fair_chip(COUNTS, chips, OPTIONS).name == chosen
    if chosen == FAIR_CHIP:
        for refuses in (verdict, break_even_firing_share):
            with pytest.raises(ValueError, match=f"{refuses.__name__}: chip must price a network and its dense ANN"):
                refuses(COUNTS, chips[-1], OPTIONS)
