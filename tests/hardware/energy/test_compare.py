"""The same network computed otherwise: ANN, zero-skipping, rate-coded, and where they cost the same."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hardware.energy.energy_cases import convolutional_network, dense_network, of_neuron
from ttfs_triton.hardware.energy.alternatives import RateCode, dense_ann, rate_coded, zero_skipping_ann
from ttfs_triton.hardware.energy.compare import PUBLISHED, break_even_firing_share, break_even_rate, compare
from ttfs_triton.hardware.energy.estimate import estimate
from ttfs_triton.hardware.energy.run_options import RunOptions

ARITHMETIC = st.sampled_from(["horowitz45:fp32", "horowitz45:int8", "lemaire45:fp16", "lemaire45:int8"])
EAGER = RunOptions(implementation="closed_form")  # of a network without persistence


def counted(report, name):
    return sum(term.count for term in report.terms if term.name == name)


def firing_share(counts, factor):
    """Counts of a network whose hidden neurons fire `factor` times as often; the first layer's inputs stay."""
    first, *others = counts.layers
    spikes = ("spikes", "spikes_delivered", "saturated", "summed_spike_time")
    arrivals = ("synaptic_operations", "nonzero_macs", "active_inputs")
    layers = [dataclasses.replace(first, **{key: getattr(first, key) * factor for key in spikes})]
    layers += [
        dataclasses.replace(own, **{key: getattr(own, key) * factor for key in (*spikes, *arrivals)}) for own in others
    ]
    return dataclasses.replace(counts, layers=tuple(layers))


def test_dense_ann_multiplies_every_synapse():
    report = dense_ann(convolutional_network(), "horowitz45:int8")
    assert counted(report, "multiply-accumulates") == 1936 + 15488 + 1280
    assert counted(report, "activation functions") == 256 + 512
    assert report.compute_only.nominal == pytest.approx(0.23 * 18704 + 0.03 * 768)


def test_zero_skipping_ann_multiplies_what_is_not_zero_but_reads_all():
    dense, skipping = (ann(convolutional_network(), "lemaire45:int8") for ann in (dense_ann, zero_skipping_ann))
    assert counted(skipping, "multiply-accumulates") == 1800 + 6000 + 640
    assert counted(skipping, "tests for zero") == 64 + 256 + 128
    assert counted(skipping, "input reads") == counted(dense, "input reads") == 1936 + 15488 + 128
    assert counted(skipping, "weight reads") < counted(dense, "weight reads")


def test_rate_coded_network_works_in_every_step():
    report = rate_coded(convolutional_network(), "lemaire45:int8", RateCode(steps=10, rate=0.2))
    assert counted(report, "multiply-accumulates") == 1936  # once: the same current in every step
    assert counted(report, "synaptic operations") == pytest.approx(10 * 0.2 * (15488 + 1280))
    assert counted(report, "threshold comparisons") == 10 * (256 + 512 + 10)
    encoded = rate_coded(
        dense_network(), "loihi", RateCode(steps=10, rate=0.2), options=RunOptions(1, hops_per_spike=2)
    )
    assert counted(encoded, "synaptic operations") == pytest.approx(10 * 0.2 * (32 + 8))
    assert counted(encoded, "messages") == pytest.approx(10 * 0.2 * (8 + 4))


def test_rate_coded_network_takes_measured_figures():
    code = RateCode(steps=10, synaptic_operations={"conv2": 500, "readout": 70}, spikes={"conv1": 30, "conv2": 40})
    report = rate_coded(convolutional_network(), "loihi_board", code)
    assert counted(report, "synaptic operations") == 570
    assert counted(report, "spikes out") == 70
    with pytest.raises(ValueError, match=r"rate_coded: spikes must have every layer; got none for conv2. Measure them"):
        rate_coded(convolutional_network(), "loihi", dataclasses.replace(code, spikes={"conv1": 3}))


def test_rate_coded_latency_counts_steps_and_layers():
    report = rate_coded(convolutional_network(), "truenorth", RateCode(steps=10, rate=0.2))
    assert report.latency_us == (10 + 2) * 1000
    assert rate_coded(convolutional_network(), "loihi", RateCode(10, 0.2)).latency_us is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0, "rate": 0.1}, "steps must be at least 1; got 0"),
        ({"steps": 4, "rate": 1.5}, r"rate must be in \[0, 1\]; got 1.5"),
        ({"steps": 4}, "rate must be given, or else synaptic_operations and spikes; got rate None"),
        ({"steps": 4, "rate": 0.1, "synaptic_operations": {}, "spikes": {}}, "rate must be given, or else"),
        ({"steps": 4, "spikes": {}}, "rate must be given, or else .* synaptic_operations None, spikes given"),
    ],
)
def test_rate_code_is_refused(values, message):
    with pytest.raises(ValueError, match=f"RateCode: {message}"):
        RateCode(**values)


@given(ARITHMETIC)
def test_break_even_firing_share_is_where_energies_meet(chip):
    counts = of_neuron(convolutional_network(), 0.0)
    point = break_even_firing_share(counts, chip, EAGER, measure="compute_only")
    assert point.value is not None
    moved = firing_share(counts, point.value / counts.sparsity)
    ours = estimate(moved, chip, implementation="closed_form").compute_only
    assert ours.nominal == pytest.approx(dense_ann(counts, chip).compute_only.nominal)


@given(ARITHMETIC, st.integers(1, 40), st.booleans())
def test_break_even_rate_is_where_energies_meet(chip, rate_steps, gating):
    options = RunOptions(steps=32, gating=gating)
    point = break_even_rate(convolutional_network(), chip, options, rate_steps=rate_steps)
    ours = estimate(convolutional_network(), chip, steps=32, gating=gating).total.nominal
    if point.value is None:
        idle = rate_coded(convolutional_network(), chip, RateCode(rate_steps, 0.0)).total.nominal
        assert idle > ours
    elif point.value <= 1:
        theirs = rate_coded(convolutional_network(), chip, RateCode(rate_steps, point.value)).total.nominal
        assert theirs == pytest.approx(ours)


def test_break_even_says_when_there_is_none():
    never = break_even_firing_share(convolutional_network(), "horowitz45:int8", RunOptions(steps=4096))
    assert never.value is None
    assert re.fullmatch(
        r"no break-even firing share: the network without a spike costs .* [nµ]J, more than the dense ANN at .* [nµ]J",
        never.text,
    )
    unpriced = break_even_firing_share(convolutional_network(), "loihi", RunOptions(steps=4))
    assert (unpriced.value, unpriced.text) == (None, "no break-even firing share: loihi has no price for the dense ANN")
    always = break_even_firing_share(dense_network(), "horowitz45:fp32", RunOptions(steps=1))
    assert always.value > 1
    assert always.text == "of all that has a price, it costs less than the dense ANN at any firing share"
    below = break_even_firing_share(of_neuron(convolutional_network(), 0.0), "horowitz45:fp32", EAGER)
    assert f"below a firing share of {below.value:.1%} (now 29.7%)" in below.text
    assert break_even_rate(dense_network(), "loihi", RunOptions(steps=4), rate_steps=999).value is None
    with pytest.raises(ValueError, match=r"break_even: measure must be one of compute_only, .*; got memory"):
        break_even_firing_share(dense_network(), "loihi", RunOptions(steps=4), measure="memory")


def test_comparison_is_at_one_precision():
    codes = (RateCode(8, 0.1), RateCode(16, 0.1))
    ann = firing_share(convolutional_network(), 2)
    comparison = compare(
        convolutional_network(), "lemaire45:int8", RunOptions(steps=8), ann_counts=ann, rate_codes=codes
    )
    assert {report.chip.name for report in comparison.estimates} == {"lemaire45:int8"}
    names = [report.implementation for report in comparison.estimates]
    assert names[:3] == ["clock-driven", "dense ANN", "zero-skipping ANN"]
    assert counted(comparison.estimates[2], "multiply-accumulates") == 1800 + 2 * 6640
    assert set(comparison.rates) == {8, 16}


def test_published_energies_have_sources():
    assert [entry.energy_uj for entry in PUBLISHED] == [486.7, 503.6]
    assert all(entry.source for entry in PUBLISHED)
