"""Who is cheaper: memory and arithmetic both have to say so, at all steps that are named."""

import dataclasses

import pytest

from tests.hardware.energy.energy_cases import convolutional_network
from ttfs_triton.hardware.energy.alternatives import dense_ann
from ttfs_triton.hardware.energy.chip import Chip, Memory
from ttfs_triton.hardware.energy.chip_files import load_chip
from ttfs_triton.hardware.energy.estimate import estimate
from ttfs_triton.hardware.energy.prices import Price
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.verdict import FAIR_CHIP, STEPS, Verdict, fair_chip, verdict


def test_ratios_are_those_of_estimates():
    counts, options = convolutional_network(), RunOptions(steps=10, gating=True)
    found = verdict(counts, "lemaire45:int8", options)
    assert found.steps == tuple(sorted({*STEPS, 10}))
    assert found.steps[found.asked] == 10
    dense = dense_ann(counts, "lemaire45:int8", options=options)
    for place, steps in enumerate(found.steps):
        ours = estimate(counts, "lemaire45:int8", options, steps=steps)
        with_memory = ours.memory_included.nominal / dense.memory_included.nominal
        assert found.with_memory[place] == pytest.approx(with_memory)
        assert found.arithmetic[place] == pytest.approx(ours.compute_only.nominal / dense.compute_only.nominal)
    assert list(found.with_memory) == sorted(found.with_memory)  # more steps, more reads


@pytest.mark.parametrize(
    ("with_memory", "arithmetic", "cheaper", "last"),
    [
        ((0.5, 0.9), (0.1, 0.2), True, "Cheaper than the dense ANN, with memory and without at 4 to 8 steps a window."),
        (
            (0.5, 1.2),
            (0.1, 0.2),
            False,
            "Cheaper than the dense ANN, with memory and without, only at 4 steps a window.",
        ),
        ((1.5, 2.0), (0.1, 0.2), False, "Not cheaper than the dense ANN at 4 to 8 steps a window."),
        ((0.5, 0.9), (1.1, 1.2), False, "Not cheaper than the dense ANN at 4 to 8 steps a window."),
        ((), (0.1, 0.2), False, "No verdict: it needs prices with memory and without."),
        ((0.1, 0.2), (), False, "No verdict: it needs prices with memory and without."),
    ],
)
def test_cheaper_needs_both(with_memory, arithmetic, cheaper, last):
    found = Verdict("chip", (4, 8), with_memory, arithmetic, asked=1)
    assert found.cheaper == cheaper
    assert found.sentences()[-1] == last
    assert found.sentences()[0].startswith("With memory" if with_memory else "Chip prices no memory")
    if with_memory:
        assert "of the dense ANN on chip at 8 steps a window" in found.sentences()[0]


def test_chips_that_price_less_say_less():
    counts, options = convolutional_network(), RunOptions(steps=8)
    assert verdict(counts, "loihi", options).sentences() == [
        "loihi does not price the dense ANN: nothing is said about which is cheaper."
    ]
    alone = verdict(counts, "horowitz45:int8", options)
    assert (alone.with_memory, alone.cheaper) == ((), False)
    closed = verdict(counts, "lemaire45:fp32", dataclasses.replace(options, steps=None, implementation="closed_form"))
    assert closed.steps == ()
    assert "steps" not in " ".join(closed.sentences())
    divides = verdict(counts, "lemaire45:int8", dataclasses.replace(options, steps=None, implementation="closed_form"))
    assert divides.missing == ("divisions",)
    assert not divides.cheaper


def test_what_has_no_price_forbids_a_verdict():
    won = Verdict("chip", (4, 8), (0.5, 0.9), (0.1, 0.2), asked=1, missing=("divisions",))
    assert won.sentences()[-1] == "No verdict: chip has no price for divisions, which comes on top."
    assert not won.cheaper
    lost = dataclasses.replace(won, with_memory=(1.5, 2.0))
    assert lost.sentences()[-1] == "Not cheaper than the dense ANN at 4 to 8 steps a window."


def priced(name, multiply_accumulate, memory, **changes):
    """A chip of the user's that prices additions, and multiplications and memory if asked."""

    def price(value):
        return Price(value, unit="pJ", status="unpublished" if value is None else "measured", source="a data sheet")

    prices = {"accumulate": price(0.1), "multiply_accumulate": price(multiply_accumulate), "compare": price(0.1)}
    return Chip(
        name, "a chip", "arithmetic", prices, memory=Memory(((1024, price(5.0)),)) if memory else None, **changes
    )


MINE = priced("mine", 1.0, memory=True)


@pytest.mark.parametrize(
    ("chips", "options", "chosen"),
    [
        ((), {}, FAIR_CHIP),
        (("loihi",), {}, FAIR_CHIP),  # memory is inside a synaptic operation, and multiplications have no price
        (("horowitz45:int8",), {}, FAIR_CHIP),  # no memory
        (("lemaire45:fp32",), {}, "lemaire45:fp32"),
        (("anp_i", "lemaire45:int32", "lemaire45:int8"), {}, "lemaire45:int32"),  # the first of several
        (("horowitz45:fp16", "lemaire45:fp16"), {}, "lemaire45:fp16"),
        ((MINE,), {}, "mine"),
        (("odin", MINE, "lemaire45:fp32"), {}, "mine"),
        ((priced("alone", 1.0, memory=False),), {}, FAIR_CHIP),
        ((priced("no products", None, memory=True),), {}, FAIR_CHIP),  # an unpublished price is none
        ((priced("inside", 1.0, memory=False, included=("memory",)),), {}, "inside"),
        (("lemaire45:fp32",), {"memory": False}, FAIR_CHIP),  # nothing is charged for memory
        (("lemaire45:fp32",), {"steps": None, "implementation": "closed_form"}, "lemaire45:fp32"),
    ],
)
def test_fair_chip_prices_the_dense_ann_both_ways(chips, options, chosen):
    run = dataclasses.replace(RunOptions(steps=8), **options)
    found = fair_chip(convolutional_network(), chips, run)
    assert found.name == chosen
    if chosen != "mine" and chosen != "inside":
        assert found == load_chip(chosen)
    if options.get("memory", True):
        dense = dense_ann(convolutional_network(), found, options=run)
        assert dense.memory_included is not None
        assert dense.compute_only is not None
