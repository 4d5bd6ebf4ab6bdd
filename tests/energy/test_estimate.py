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
from ttfs_triton.energy.chip import Chip, Price, available_chips, load_chip
from ttfs_triton.energy.counter import count
from ttfs_triton.energy.counts import Counts
from ttfs_triton.energy.estimate import RunOptions
from ttfs_triton.energy.models import estimate
from ttfs_triton.nn import DFTLinear, Grid, LatencyEncoder, Neuron, Readout, cnn1, network_graph, put_on_grid

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


def small(sigma, readout):
    return cnn1(16, 1, 10, width=0.25, neuron=Neuron(sigma), readout=readout)


@pytest.mark.parametrize(
    ("model", "windows", "persists"),
    [
        (small(1.0, "potential_start"), 4, False),
        (small(0.25, "potential_end"), 5, True),
        (small(0.0, "first_spike"), 5, False),
        (Branches(), 4, True),  # of five layers, two are beside each other
    ],
)
def test_work_of_neurons_and_latency_equal_a_simulation(model, windows, persists):
    found = simulate(model, [torch.rand(3, *network_graph(model).image_shape)], steps=8, gating=False)
    options = RunOptions(steps=8, gating=False, step_us=1.0)
    report = estimate(found.counts, "lemaire45:int8", options)
    exact = estimate(found.counts, "lemaire45:int8", simulated := dataclasses.replace(options, activity=found.activity))
    with pytest.raises(ValueError, match=r"steps and gating must be those of the simulation .* got {'steps': 16}"):
        estimate(found.counts, "lemaire45:int8", simulated, steps=16)
    assert counted(report) == pytest.approx(counted(exact))
    assert (report.latency_us, "slope persistence" in counted(report)) == (windows * 8, persists)


@pytest.mark.parametrize(("readout", "sigma"), [("potential_start", 0.0), ("potential_end", 0.25)])
def test_sleep_of_neurons_is_that_of_a_simulation(readout, sigma):
    """Before the first input and behind the own spike, of the simulation's spikes and of the closed form's."""
    model = small(sigma, readout)
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
    bound = estimate(dataclasses.replace(found.counts, layers=layers), "horowitz45:int8", options)
    assert counted(bound)["neuron additions"] > exact["neuron additions"]
    assert "work is computed from counts: an upper bound" in bound.assumptions[0]


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
    report = estimate(convolutional_network(), "loihi_board", steps=4, gating=False)
    prices = {(term.layer, term.name): term.price_name for term in report.terms}
    assert prices["conv2", "synaptic operations"] == "synop_conv"
    assert prices["readout", "synaptic operations"] == "synop"
    found = counted(report, "conv2")
    assert (found["spikes out"], found["messages"]) == (128, 64)
    assert "hops" in {term.name for term in report.unpriced}  # nobody knows where neurons will be placed
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
    odin = estimate(dense_network(), "odin", steps=4, step_us=2).parts("name")
    assert odin["leakage"].total.nominal == pytest.approx(27.3 * 16)
    assert odin["idle power"].total.nominal == pytest.approx(1.78 * 75 * 16)
    odin = load_chip("odin")
    without = dataclasses.replace(odin, prices={key: p for key, p in odin.prices.items() if key != "clock"})
    notes = {term.name: term.note for term in estimate(dense_network(), without, steps=4, step_us=1).unpriced}
    assert notes["idle power"] == "the chip states no clock"


def test_unpriced_terms_are_beside_the_total():
    report = estimate(convolutional_network(), "anp_i", steps=4)
    assert {term.name for term in report.unpriced} == {"multiply-accumulates", "neuron updates", "leakage"}
    assert report.total.nominal == pytest.approx(1.5 * 6640)
    assert (report.by_layer()["conv1"], report.status) == (None, "measured")
    unknown = Price(None, unit="pJ", status="unpublished", source="nowhere")
    nothing = estimate(dense_network(), Chip("secret", "no figures", "including fetch", {"synop": unknown}), steps=4)
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
    assert estimate(counts, "truenorth", steps=4).warnings == ()


def test_a_network_on_a_grid_has_its_own_bits():
    counts = dataclasses.replace(convolutional_network(), weight_bits=3)
    assert not any("bits" in line for line in estimate(counts, "odin", steps=4).warnings)
    told = " ".join(estimate(counts, "lemaire45:int8", steps=4).assumptions)
    assert "priced as 8-bit weights, although the network's have 3 bits" in told
    narrow = dataclasses.replace(load_chip("reckon"), bits=8)  # its memory does not make wide weights narrow
    wide = dataclasses.replace(counts, weight_bits=16)
    assert "weights of 16 bits exceed the 8 bits of reckon" in estimate(wide, narrow, steps=4).warnings
    model = cnn1(16, width=0.25)
    put_on_grid(model, Grid(8, 3))
    images = [torch.rand(2, 1, 16, 16)]
    assert count(model, images).weight_bits == simulate(model, images).counts.weight_bits == 3
    assert simulate(model, images, weight_bits=5).counts.weight_bits == 5


# ---- properties


@given(st.sampled_from(available_chips()), st.integers(1, 64), st.booleans(), st.sampled_from([0.0, 0.25, 1.0]))
def test_total_is_the_sum_of_terms_in_order(chip, steps, gating, persistence):
    options = RunOptions(steps, gating, step_us=1.0)
    report = estimate(of_neuron(convolutional_network(), persistence), chip, options)
    energies = [term.energy for term in report.terms if term.energy is not None]
    assert report.total.nominal == pytest.approx(sum(energy.nominal for energy in energies))
    assert all(energy.low <= energy.nominal <= energy.high for energy in (*energies, report.total))
    for key in ("layer", "name"):
        totals = [part.total for part in report.parts(key).values() if part.total is not None]
        assert sum(total.nominal for total in totals) == pytest.approx(report.total.nominal)


# ---- refusals


def test_empty_counts_are_refused():
    with pytest.raises(ValueError, match="estimate: counts must be of at least one sample and layer; got 0 and 0"):
        estimate(Counts(0, ()), "loihi", steps=4)


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
