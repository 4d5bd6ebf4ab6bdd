"""Who is cheaper: memory and arithmetic both have to say so, at all steps that are named."""

import dataclasses

import pytest

from tests.hardware.energy.energy_cases import convolutional_network
from ttfs_triton.hardware.energy.alternatives import dense_ann
from ttfs_triton.hardware.energy.estimate import estimate
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.verdict import STEPS, Verdict, verdict


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
