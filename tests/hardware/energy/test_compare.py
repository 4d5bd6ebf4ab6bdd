"""The same network computed otherwise: ANN, zero-skipping, rate-coded; where they cost the same, and who is cheaper."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.hardware.energy.energy_cases import convolutional_network, dense_network, of_neuron
from tests.hardware.energy.energy_cases import counted as by_term
from tests.hardware.test_concatenations import Branches
from ttfs_triton.hardware import count
from ttfs_triton.hardware.energy.chip import Access, Chip, Memory, load_chip
from ttfs_triton.hardware.energy.compare import (
    FAIR_CHIP,
    STEPS,
    Verdict,
    break_even_firing_share,
    break_even_rate,
    fair_chip,
    verdict,
)
from ttfs_triton.hardware.energy.estimate import Run, RunOptions
from ttfs_triton.hardware.energy.models import RateCode, dense_ann, estimate, rate_coded, zero_skipping_ann
from ttfs_triton.hardware.energy.prices import Price
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

ARITHMETIC = st.sampled_from(["horowitz45:fp32", "horowitz45:int8", "lemaire45:fp16", "lemaire45:int8"])
CLOSED = RunOptions(implementation="closed_form")
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


def test_rate_coded_network_works_in_every_step():
    report = rate_coded(COUNTS, "lemaire45:int8", RateCode(steps=10, rate=0.2))
    assert counted(report, "multiply-accumulates") == 1936  # once: the same current in every step
    assert counted(report, "synaptic operations") == pytest.approx(10 * 0.2 * (15488 + 1280))
    assert counted(report, "threshold comparisons") == 10 * (256 + 512 + 10)
    options = RunOptions(1, hops_per_spike=2)
    encoded = rate_coded(dense_network(), "loihi", RateCode(steps=10, rate=0.2), options=options)
    assert counted(encoded, "synaptic operations") == pytest.approx(10 * 0.2 * (32 + 8))
    assert counted(encoded, "messages") == pytest.approx(10 * 0.2 * (8 + 4))
    assert encoded.latency_us is None
    fired = rate_coded(COUNTS, "loihi_board", RateCode(steps=10, rate=0.2))
    assert counted(fired, "spikes out") == pytest.approx(10 * 0.2 * (256 + 512))
    # Layers follow each other by a step.
    assert rate_coded(COUNTS, "truenorth", RateCode(steps=10, rate=0.2)).latency_us == (10 + 2) * 1000
    branches = count(Branches(), [torch.rand(1, 1, 8, 8)])  # five layers, two of them beside each other
    for counts, layers in ((dense_network(), 2), (branches, 4)):
        assert rate_coded(counts, "truenorth", RateCode(steps=10, rate=0.2)).latency_us == (10 + layers - 1) * 1000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0, "rate": 0.1}, "steps\n.*greater than or equal to 1"),
        ({"steps": 4, "rate": 1.5}, "rate\n.*less than or equal to 1"),
    ],
)
def test_rate_code_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RateCode(**values)


# ---- break-even points


@given(ARITHMETIC)
def test_break_even_firing_share_is_where_energies_meet(chip):
    counts = of_neuron(COUNTS, 0.0)
    point = break_even_firing_share(counts, chip, CLOSED, measure="compute_only")
    assert f"below a firing share of {point.value:.1%} (now 29.7%)" in point.text
    moved = estimate(counts.firing_more(point.value / counts.sparsity), chip, CLOSED)
    assert moved.compute_only.nominal == pytest.approx(dense_ann(counts, chip).compute_only.nominal)


@given(ARITHMETIC, st.integers(1, 40), st.booleans())
def test_break_even_rate_is_where_energies_meet(chip, rate_steps, gating):
    options = RunOptions(steps=32, gating=gating)
    point = break_even_rate(COUNTS, chip, options, rate_steps=rate_steps)
    ours = estimate(COUNTS, chip, options).total.nominal
    if point.value is None:
        assert rate_coded(COUNTS, chip, RateCode(rate_steps, 0.0)).total.nominal > ours
    elif point.value <= 1:
        theirs = rate_coded(COUNTS, chip, RateCode(rate_steps, point.value)).total.nominal
        assert theirs == pytest.approx(ours)


def test_break_even_says_when_there_is_none():
    never = break_even_firing_share(COUNTS, "horowitz45:int8", RunOptions(steps=4096))
    assert never.value is None
    assert never.text.startswith("no break-even firing share: the network without a spike costs ")
    unpriced = break_even_firing_share(COUNTS, "loihi", RunOptions(steps=4))
    assert (unpriced.value, unpriced.text) == (None, "no break-even firing share: loihi has no price for the dense ANN")
    assert break_even_firing_share(COUNTS, "horowitz45:int8", CLOSED).value is None  # no price of divisions
    assert break_even_rate(COUNTS, "horowitz45:int8", CLOSED, rate_steps=16).value is None
    always = break_even_firing_share(dense_network(), "horowitz45:fp32", RunOptions(steps=1))
    assert always.value > 1
    assert always.text == "counting all priced operations, it costs less than the dense ANN at any firing share"
    assert break_even_rate(dense_network(), "loihi", RunOptions(steps=4), rate_steps=999).value is None
    dark = break_even_firing_share(COUNTS.firing_more(0.0), "horowitz45:fp32", RunOptions(steps=4))
    assert dark == (None, "no break-even firing share: no hidden neuron fires")


def test_static_power_that_one_side_lacks_counts_on_neither():
    chip = load_chip("horowitz45:fp32")
    power = Price(100, unit="mW", status="measured", source="a paper")
    leaky = dataclasses.replace(chip, prices=chip.prices | {"leakage_power": power})
    options = RunOptions(steps=4, step_us=1.0)  # an ANN's latency is not known by it
    found = break_even_firing_share(COUNTS, leaky, options)
    assert found == break_even_firing_share(COUNTS, chip, options)
    given = RunOptions(steps=4, latency_us=8.0)  # nor is a rate code's by this
    expected = break_even_rate(COUNTS, chip, given, rate_steps=8)
    assert break_even_rate(COUNTS, leaky, given, rate_steps=8) == expected
    assert break_even_rate(COUNTS, leaky, options, rate_steps=8).value != expected.value  # both latencies are known


# ---- who is cheaper


def test_ratios_are_those_of_estimates():
    options = RunOptions(steps=10)
    found, dense = verdict(COUNTS, "lemaire45:int8", options), dense_ann(COUNTS, "lemaire45:int8", options=options)
    assert (found.steps, found.steps[found.asked]) == (tuple(sorted({*STEPS, 10})), 10)
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
NO_PRICE = "No verdict: c has no price for divisions, which costs extra."


@pytest.mark.parametrize(
    ("with_memory", "arithmetic", "missing", "cheaper", "last"),
    [
        ((0.5, 0.9), (0.1, 0.2), (), True, f"{CHEAPER} at 4 to 8 steps a window."),
        ((0.5, 1.2), (0.1, 0.2), (), False, f"{CHEAPER}, only at 4 steps a window."),
        ((0.5, 0.9), (1.1, 1.2), (), False, f"{NOT_CHEAPER} at 4 to 8 steps a window."),
        ((), (0.1, 0.2), (), False, "No verdict: it needs prices with memory and without."),
        ((0.1, 0.2), (), (), False, "No verdict: it needs prices with memory and without."),
        ((0.5, 0.9), (0.1, 0.2), ("divisions",), False, NO_PRICE),
        ((1.5, 2.0), (0.1, 0.2), ("divisions",), False, f"{NOT_CHEAPER} at 4 to 8 steps a window."),
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
    closed, divides = (verdict(COUNTS, f"lemaire45:{bits}", CLOSED) for bits in ("fp32", "int8"))
    assert (closed.steps, "steps" in " ".join(closed.sentences())) == ((), False)
    assert (divides.missing, divides.cheaper) == (("divisions",), False)


def priced(name, multiply_accumulate=1.0, memory=True, **changes):
    """A chip of the user's that prices additions, and multiplications and memory if asked."""
    about = {"unit": "pJ", "source": "a data sheet"}
    status = "unpublished" if multiply_accumulate is None else "measured"
    prices = {key: Price(0.1, status="measured", **about) for key in ("accumulate", "compare")}
    prices["multiply_accumulate"] = Price(multiply_accumulate, status=status, **about)
    sram = Memory((Access(5.0, size_kb=1, status="measured", **about),)) if memory else None
    return Chip(name, "a chip", "arithmetic", prices, memory=sram, **changes)


@pytest.mark.parametrize(
    ("chips", "options", "chosen"),
    [
        ((), {}, FAIR_CHIP),
        (("loihi", "horowitz45:int8"), {}, FAIR_CHIP),  # no price of products; no memory
        (("anp_i", "lemaire45:int32", "lemaire45:int8"), {}, "lemaire45:int32"),  # the first of several
        (("odin", priced("mine"), "lemaire45:fp32"), {}, "mine"),
        ((priced("no products", None),), {}, FAIR_CHIP),  # an unpublished price is none
        ((priced("inside", memory=False, included=("memory",)),), {}, "inside"),
        (("lemaire45:fp32",), {"steps": None, "implementation": "closed_form"}, "lemaire45:fp32"),
    ],
)
def test_fair_chip_prices_the_dense_ann_both_ways(chips, options, chosen):
    assert fair_chip(COUNTS, chips, dataclasses.replace(RunOptions(steps=8), **options)).name == chosen
