"""Estimates: every term counted by hand, sums, and that what has no price is in none of them."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.energy.energy_cases import convolutional_network, counted, dense_network, of_neuron
from tests.energy.test_wires import Branches
from ttfs_triton.chip.simulation import simulated_run
from ttfs_triton.chip.simulator import simulate
from ttfs_triton.energy.chip import available_chips, load_chip
from ttfs_triton.energy.counter import count
from ttfs_triton.energy.counts import Counts
from ttfs_triton.energy.estimate import RunOptions
from ttfs_triton.energy.models import estimate
from ttfs_triton.energy.prices import Chip, Price
from ttfs_triton.nn import DFTLinear, Grid, LatencyEncoder, Neuron, Readout, cnn1, put_on_grid

UNKNOWN = Price(None, unit="pJ", status="unpublished", source="nowhere")
SECRET = Chip("secret", "no figures", "including fetch", {"synop": UNKNOWN})


# ---- counts by hand


def test_clock_driven_counts_of_a_dense_network():
    report = estimate(dense_network(), "horowitz45:fp32", steps=8, gating=False)
    # Hidden: 4 neurons, 8 steps of integration and 8 of firing, with a comparison more at the window's start.
    assert counted(report, "fc1") == {
        "synaptic operations": 20,
        "neuron additions": 64,
        "threshold comparisons": 36,
        "weight reads": 20 + 4,
        "state reads": 20 + 64 + 32 + 36,
        "state writes": 20 + 64 + 8,
    }
    # The readout integrates two neurons for 8 steps.
    assert counted(report, "readout") == {
        "synaptic operations": 3,
        "neuron additions": 16,
        "weight reads": 3 + 2,
        "state reads": 3 + 16 + 16,
        "state writes": 3 + 16 + 4,
    }
    ends = dataclasses.astuple(report.compute_only)
    assert ends == pytest.approx([0.9 * (20 + 64 + 36 + 3 + 16)] * 3)


@pytest.mark.parametrize(("sigma", "additions", "products"), [(0.0, 32, 0), (0.5, 64, 4)])  # 0: none while firing
def test_persistence_of_the_slope_decides_what_is_computed(sigma, additions, products):
    found = counted(estimate(of_neuron(dense_network(), sigma), "horowitz45:int8", steps=8, gating=False), "fc1")
    assert (found["neuron additions"], found["threshold comparisons"]) == (additions, 36)
    assert found.get("slope persistence", 0) == products


def test_analog_layer_is_multiply_accumulates():
    counts = convolutional_network()
    many = dataclasses.replace(counts, layers=(dataclasses.replace(counts.layers[0], neurons=4096), *counts.layers[1:]))
    report = estimate(many, "lemaire45:int8", steps=4)
    assert counted(report, "conv1")["multiply-accumulates"] == 1936
    assert "neuron additions" not in counted(report, "conv1")
    terms = report.parts("layer")["conv1"].terms
    sizes = {term.price.value for term in terms if term.name in ("state reads", "output writes")}
    assert len(sizes) == 1  # of one memory, which holds a potential for each neuron
    assert counted(report, "conv2").get("multiply-accumulates") is None


@pytest.mark.parametrize(
    ("readout", "additions", "compares", "windows"),
    [("potential_start", 8, None, 2), ("potential_end", 16, None, 3), ("first_spike", 16, 2 * (4 + 1), 3)],
)
def test_readout_works_until_its_decision(readout, additions, compares, windows):
    counts = dataclasses.replace(dense_network(), readout=readout)
    report = estimate(counts, "horowitz45:fp32", steps=4, step_us=10, gating=False)
    found = counted(report, "readout")
    assert (found["neuron additions"], found.get("threshold comparisons")) == (additions, compares)
    assert report.latency_us == windows * 4 * 10


def test_latency_of_parallel_branches_is_that_of_the_longest():
    found = simulate(Branches(), [torch.rand(2, 1, 8, 8)], steps=8)
    report = estimate(found.counts, "horowitz45:fp32", steps=8, step_us=1)
    assert report.latency_us == found.potential_latency_steps == 4 * 8  # of five layers, two are beside each other


@pytest.mark.parametrize("sigma", [1.0, 0.0])
def test_work_of_neurons_equals_a_simulation(sigma):
    model, images = cnn1(16, 1, 10, width=0.25, neuron=Neuron(sigma)), [torch.rand(3, 1, 16, 16)]
    found = simulate(model, images, steps=8, gating=False)
    formula = counted(estimate(found.counts, "lemaire45:int8", steps=8, gating=False))
    assert formula == pytest.approx(counted(estimate(found.counts, "lemaire45:int8", steps=8, activity=found.activity)))


@pytest.mark.parametrize(
    ("readout", "sigma"),
    [("potential_start", 1.0), ("potential_start", 0.0), ("potential_end", 0.25), ("potential_end", 0.0)],
)
def test_sleep_of_neurons_is_that_of_a_simulation(readout, sigma):
    """Before the first input and behind the own spike, of the simulation's spikes and of the closed form's."""
    model = cnn1(16, 1, 10, width=0.25, neuron=Neuron(sigma), readout=readout)
    images = [torch.rand(8, 1, 16, 16) * (torch.rand(8, 1, 16, 16) < 0.1)]
    found = simulate(model, images, steps=64, weight_bits=None)
    options = RunOptions(steps=64)
    exact = counted(estimate(found.counts, "horowitz45:int8", options, activity=found.activity))
    for counts, tolerance in ((found.counts, 0.005), (count(model, images), 0.02)):
        report = estimate(counts, "horowitz45:int8", options)
        for name in ("neuron additions", "threshold comparisons"):
            assert counted(report)[name] == pytest.approx(exact[name], rel=tolerance), name
        assert "sleep before their first input spike and after their own" in report.assumptions[0]
    layers = tuple(dataclasses.replace(layer, driven_time=None) for layer in found.counts.layers)
    older = dataclasses.replace(found.counts, layers=layers)
    bound = estimate(older, "horowitz45:int8", options)
    assert counted(bound)["neuron additions"] > exact["neuron additions"]
    assert "work is computed from counts: an upper bound" in bound.assumptions[0]
    told = [estimate(dataclasses.replace(older, weight_bits=bits), "horowitz45:int8", options) for bits in (None, 8, 4)]
    assert ["although the network's have 4 bits" in " ".join(each.assumptions) for each in told] == [False, False, True]


# ---- prices


def test_memory_is_priced_by_what_holds_it():
    report = estimate(dense_network(), "lemaire45:int8", steps=8)
    reads = next(term for term in report.terms if (term.layer, term.name) == ("fc1", "weight reads"))
    assert (reads.count, reads.price.value) == (20, 10)  # 32 bytes: the smallest memory
    assert report.memory_included.nominal > report.compute_only.nominal
    assert counted(report, "fc1")["addressing"] == 20
    few, many = (estimate(convolutional_network(), "lemaire45:int8", steps=4, state_bits=bits) for bits in (2, 16))
    assert few.total.low < many.total.low


def test_event_chip_prices_synaptic_operations_by_layer():
    report = estimate(convolutional_network(), "loihi_board", steps=4, gating=False, hops_per_spike=2)
    prices = {(term.layer, term.name): term.price_name for term in report.terms}
    assert prices["conv2", "synaptic operations"] == "synop_conv"
    assert prices["readout", "synaptic operations"] == "synop"
    found = counted(report, "conv2")
    assert (found["spikes out"], found["messages"], found["hops"]) == (128, 64, 2 * 64)
    # 512 neurons, 2 windows of 4 steps, all awake; the analog layer and the readout sleep through one of the two.
    assert "idle neurons" not in found
    assert counted(report)["idle neurons"] == 256 * 4 + 10 * 4
    assert counted(estimate(dense_network(), "loihi", steps=4), "input")["messages"] == 5
    assert (report.of_kind("memory"), report.compute_only) == (None, None)  # inside a synaptic operation
    assert any("compute alone is unknown" in line for line in report.assumptions)


def test_static_power_is_charged_over_the_latency():
    report = estimate(convolutional_network(), "truenorth", steps=16)
    assert report.latency_us == 2 * 16 * 1000  # a layer with two windows, and one more; ticks of 1 ms
    assert report.of_kind("static").nominal == pytest.approx(64.43e3 * 32e3)
    odin = estimate(dense_network(), "odin", steps=4, step_us=2, clock_mhz=10).parts("name")
    assert odin["leakage"].total.nominal == pytest.approx(27.3 * 16)
    assert odin["idle power"].total.nominal == pytest.approx(1.78 * 10 * 16)
    given = estimate(dense_network(), "odin", steps=4, latency_us=3)
    assert given.of_kind("static").nominal == pytest.approx(3 * (27.3 + 1.78 * 75))
    odin = load_chip("odin")
    without = dataclasses.replace(odin, prices={key: p for key, p in odin.prices.items() if key != "clock"})
    report = estimate(dense_network(), without, steps=4, step_us=1)
    (missing,) = (term for term in report.unpriced if term.price_name == "idle_power")
    assert missing.note == "the clock is not known: give clock_mhz"


def test_whole_chip_average_is_all_there_is():
    average = load_chip("odin").alternatives["synop_average"]
    chip = Chip("odin at one point", "75 MHz", "whole-chip average", {"synop": average})
    report = estimate(dense_network(), chip, steps=4, step_us=1)
    assert {term.price_name for term in report.terms} == {"synop"}
    assert report.total.nominal == pytest.approx(12.7 * 23)


def test_unpriced_terms_are_beside_the_total():
    report = estimate(convolutional_network(), "anp_i", steps=4)
    assert {term.name for term in report.unpriced} == {"multiply-accumulates", "neuron updates", "leakage"}
    assert report.total.nominal == pytest.approx(1.5 * 6640)
    assert (report.by_layer()["conv1"], report.status) == (None, "measured")
    nothing = estimate(dense_network(), SECRET, steps=4)
    assert (nothing.total, nothing.status) == (None, None)
    assert len(nothing.unpriced) == len(nothing.terms) > 0


def test_capacity_and_weight_bits_are_warned_of():
    report = estimate(convolutional_network(), "odin", steps=4)
    assert report.warnings == (
        "778 neurons exceed the 256 of one odin: at least 4 chips; static power counts one",
        "weights of 8 bits exceed the 3 bits of odin",
    )
    counts = dense_network()
    large = dataclasses.replace(counts.layers[0], weights=4096 * 4096, synapses=4096 * 4096)
    network = dataclasses.replace(counts, layers=(large, counts.layers[1]))
    (warning,) = estimate(network, "lemaire45:fp32", steps=4).warnings
    assert warning == "fc1: 64.0 MB exceed the largest memory that lemaire45:fp32 prices (1 MB)"
    assert estimate(dense_network(), "truenorth", steps=4).warnings == ()


def test_a_network_on_a_grid_has_its_own_bits():
    counts = dataclasses.replace(convolutional_network(), weight_bits=3)
    assert not any("bits" in line for line in estimate(counts, "odin", steps=4).warnings)
    narrow = dataclasses.replace(load_chip("reckon"), bits=8)  # its memory does not make wide weights narrow
    wide = dataclasses.replace(counts, weight_bits=16)
    assert "weights of 16 bits exceed the 8 bits of reckon" in estimate(wide, narrow, steps=4).warnings
    model = cnn1(16, width=0.25)
    put_on_grid(model, Grid(8, 3))
    images = [torch.rand(2, 1, 16, 16)]
    assert count(model, images).weight_bits == simulate(model, images).counts.weight_bits == 3
    assert simulate(model, images, weight_bits=5).counts.weight_bits == 5


# ---- properties


@given(
    st.sampled_from(available_chips()),
    st.integers(1, 64),
    st.booleans(),
    st.sampled_from([0.0, 0.25, 1.0]),
)
def test_total_is_the_sum_of_terms_in_order(chip, steps, gating, persistence):
    options = RunOptions(steps, gating, step_us=1.0)
    report = estimate(of_neuron(convolutional_network(), persistence), chip, options)
    energies = [term.energy for term in report.terms if term.energy is not None]
    assert report.total.nominal == pytest.approx(sum(energy.nominal for energy in energies))
    assert all(energy.low <= energy.nominal <= energy.high for energy in (*energies, report.total))
    for key in ("layer", "name"):
        totals = [part.total for part in report.parts(key).values() if part.total is not None]
        assert sum(total.nominal for total in totals) == pytest.approx(report.total.nominal)
    assert all(term.price is None or term.price.value is None or term.count is None for term in report.unpriced)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps\n.*greater than or equal to 1"),
        ({"steps": 4, "psp_persistence": 1.0}, "psp_persistence\n.*Unexpected keyword"),
        ({"steps": 4}, "estimate: counts must be of at least one sample and layer; got 0 and 0"),
    ],
)
def test_options_and_empty_counts_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(Counts(0, ()), "loihi", **options)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_price_of_counts_alone_is_an_upper_bound(steps):
    torch.manual_seed(1)
    images, layer = [torch.rand(60, 1, 8, 8)], DFTLinear(64, 16)
    layer.weight_gain.data.mul_(3)  # many neurons fire in the first half step, after one comparison
    network = nn.Sequential(LatencyEncoder(), nn.Flatten(), layer, Readout(16, 4))
    put_on_grid(network, Grid(steps, 6))
    most = estimate(count(network, images), "lemaire45:int8", steps=steps)
    simulated = simulated_run(simulate(network, images))
    assert most.total.nominal >= estimate(simulated.counts, "lemaire45:int8", simulated.options).total.nominal
