"""The same network as an ANN, also one that skips zeros; where they cost the same, and who is cheaper."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.energy.energy_cases import convolutional_network, dense_network, of_neuron
from tests.energy.energy_cases import counted as by_term
from ttfs_triton.energy import count
from ttfs_triton.energy.chip import load_chip
from ttfs_triton.energy.compare import FAIR_CHIP, Verdict, break_even_firing_share, fair_chip, verdict
from ttfs_triton.energy.estimate import Run, RunOptions
from ttfs_triton.energy.models import dense_ann, estimate, zero_skipping_ann
from ttfs_triton.energy.prices import Access, Chip, Memory, Price
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

OPTIONS = RunOptions(steps=8)
COUNTS = convolutional_network()


def counted(report, name):
    return by_term(report).get(name, 0)


def test_ann_pools_first_where_synapses_average():
    counts = count(TTFSNetwork(NetworkConfig("4C3-A2-6C3-A", image_size=(8, 8), classes=4)), [torch.ones(1, 1, 8, 8)])
    pixels = (4 * 3 - 2) ** 2
    rows = ("conv2", 4 * 64, 24 * pixels, 24 * pixels), ("readout", 6 * 16, 6 * 4, 6)
    for name, inputs, products, reads in rows:
        dense, skipping = (by_term(ann(counts, "lemaire45:int8"), name) for ann in (dense_ann, zero_skipping_ann))
        assert dense["average pools"] == skipping["average pools"] == inputs
        assert dense["input reads"] == skipping["input reads"] == reads
        assert skipping["multiply-accumulates"] <= dense["multiply-accumulates"] == products


def test_dense_ann_multiplies_every_synapse_and_zero_skipping_what_is_not_zero_but_reads_all():
    report = dense_ann(COUNTS, "horowitz45:int8")
    assert counted(report, "multiply-accumulates") == 1936 + 15488 + 1280
    assert counted(report, "activation functions") == 256 + 512
    assert report.compute_only.nominal == pytest.approx(0.23 * 18704 + 0.03 * 768)
    dense, skipping = (ann(COUNTS, "lemaire45:int8") for ann in (dense_ann, zero_skipping_ann))
    assert counted(skipping, "multiply-accumulates") == 1800 + 6000 + 640
    assert counted(skipping, "tests for zero") == 64 + 256 + 128
    assert counted(skipping, "input reads") == counted(dense, "input reads") == 1936 + 15488 + 128
    assert counted(skipping, "weight reads") < counted(dense, "weight reads")


# ---- break-even points


@given(st.sampled_from(["lemaire45:fp32", "lemaire45:fp16", "lemaire45:int32", "lemaire45:int8"]))
def test_break_even_firing_share_is_where_energies_meet(chip):
    counts = of_neuron(COUNTS, 0.0)
    point = break_even_firing_share(counts, chip, OPTIONS, measure="memory_included")
    assert f"below a firing share of {point.value:.1%} (now 29.7%)" in point.text
    moved = estimate(counts.firing_more(point.value / counts.sparsity), chip, OPTIONS)
    assert moved.memory_included.nominal == pytest.approx(dense_ann(counts, chip).memory_included.nominal)


def test_break_even_says_when_there_is_none():
    never = break_even_firing_share(COUNTS, "horowitz45:int8", RunOptions(steps=4096))
    assert never.value is None
    assert never.text.startswith("no break-even firing share: the network without a spike costs ")
    unpriced = break_even_firing_share(COUNTS, "loihi", RunOptions(steps=4))
    assert (unpriced.value, unpriced.text) == (None, "no break-even firing share: loihi has no price for the dense ANN")
    always = break_even_firing_share(dense_network(), "horowitz45:fp32", RunOptions(steps=1))
    assert always.value > 1
    assert always.text == "counting all priced operations, it costs less than the dense ANN at any firing share"
    dark = break_even_firing_share(COUNTS.firing_more(0.0), "horowitz45:fp32", RunOptions(steps=4))
    assert dark == (None, "no break-even firing share: no hidden neuron fires")


def test_static_power_that_one_side_lacks_counts_on_neither():
    chip = load_chip("horowitz45:fp32")
    power = Price(100, unit="mW", status="measured", source="a paper")
    leaky = dataclasses.replace(chip, prices=chip.prices | {"leakage_power": power})
    options = RunOptions(steps=4, step_us=1.0)  # an ANN's latency is not known by it
    found = break_even_firing_share(COUNTS, leaky, options)
    assert found == break_even_firing_share(COUNTS, chip, options)


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


CHEAPER, NOT_CHEAPER = "Cheaper than the dense ANN, with memory and without", "Not cheaper than the dense ANN"
NO_PRICE = "No verdict: c has no price for comparisons, which costs extra."


@pytest.mark.parametrize(
    ("with_memory", "arithmetic", "missing", "cheaper", "last"),
    [
        ((0.5, 0.9), (0.1, 0.2), (), True, f"{CHEAPER} at 4 to 8 steps a window."),
        ((0.5, 1.2), (0.1, 0.2), (), False, f"{CHEAPER}, only at 4 steps a window."),
        ((0.5, 0.9), (1.1, 1.2), (), False, f"{NOT_CHEAPER} at 4 to 8 steps a window."),
        ((), (0.1, 0.2), (), False, "No verdict: it needs prices with memory and without."),
        ((0.1, 0.2), (), (), False, "No verdict: it needs prices with memory and without."),
        ((0.5, 0.9), (0.1, 0.2), ("comparisons",), False, NO_PRICE),
        ((1.5, 2.0), (0.1, 0.2), ("comparisons",), False, f"{NOT_CHEAPER} at 4 to 8 steps a window."),
    ],
)
def test_cheaper_needs_both(with_memory, arithmetic, missing, cheaper, last):
    found = Verdict("c", (4, 8), with_memory, arithmetic, asked=1, missing=missing)
    assert (found.cheaper, found.sentences()[-1]) == (cheaper, last)
    first = "With memory, inference costs " if with_memory else "C prices no memory"
    assert found.sentences()[0].startswith(first)


def test_chips_that_price_less_say_less():
    options = RunOptions(steps=8)
    silent = ["loihi does not price the dense ANN: which of the two is cheaper is unknown."]
    assert verdict(COUNTS, "loihi", options).sentences() == silent
    alone = verdict(COUNTS, "horowitz45:int8", options)
    assert (alone.with_memory, alone.cheaper) == ((), False)
    chip = priced("no additions")
    unknown = Price(unit="pJ", status="unpublished", source="a data sheet")
    without = dataclasses.replace(chip, prices=chip.prices | {"accumulate": unknown})
    lacking = verdict(COUNTS, without, options)
    assert (lacking.missing, lacking.cheaper) == (("synaptic operations", "neuron additions"), False)


def priced(name, multiply_accumulate=1.0, memory=True, **changes):
    """A chip of the user's that prices additions, and multiplications and memory if asked."""
    about = {"unit": "pJ", "source": "a data sheet"}
    status = "unpublished" if multiply_accumulate is None else "measured"
    prices = {key: Price(0.1, status="measured", **about) for key in ("accumulate", "compare")}
    prices["multiply_accumulate"] = Price(multiply_accumulate, status=status, **about)
    sram = Memory((Access(5.0, size_kb=1, status="measured", **about),)) if memory else None
    return Chip(name, "a chip", "arithmetic", prices, memory=sram, **changes)


@pytest.mark.parametrize(
    ("chips", "chosen"),
    [
        ((), FAIR_CHIP),
        (("loihi", "horowitz45:int8"), FAIR_CHIP),  # no price of products; no memory
        (("anp_i", "lemaire45:int32", "lemaire45:int8"), "lemaire45:int32"),  # the first of several
        (("odin", priced("mine"), "lemaire45:fp32"), "mine"),
        ((priced("no products", None),), FAIR_CHIP),  # an unpublished price is none
        ((priced("inside", memory=False, included=("memory",)),), "inside"),
    ],
)
def test_fair_chip_prices_the_dense_ann_both_ways(chips, chosen):
    assert fair_chip(COUNTS, chips, OPTIONS).name == chosen
