"""Engines, decisions and options of the simulator."""

import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.hardware.simulation.networks import READOUTS, assert_same, linear_network, readout_with, small_network
from tests.nn.common import activations
from ttfs_triton.hardware.counts.counter import count
from ttfs_triton.hardware.simulation.simulator import simulate
from ttfs_triton.nn import (
    NetworkConfig,
    Neuron,
    PotentialReadout,
    TTFSNetwork,
    cnn1,
    vgg11,
)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(READOUTS)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["middle", "start"]),
    st.sampled_from([1, 4, 16, 33]),
    st.sampled_from([2, 8, 16, None]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_engines_are_equal(readout, sigma, compare_at, steps, bits, per_channel, seed):
    network = small_network(seed, sigma, READOUTS[readout](sigma))
    batch = (2 * activations(6, 2, 5, 4, seed=seed).float(), torch.arange(6) % 3)
    options = dict(steps=steps, weight_bits=bits, per_channel=per_channel, compare_at=compare_at, keep_spike_times=True)
    summed, stepped = (simulate(network, [batch], **options, engine=engine) for engine in ("summed", "stepped"))
    assert_same(summed, stepped)


def test_simulation_does_not_depend_on_the_device(device):
    network, batch = small_network(2), (2 * torch.rand(6, 2, 5, 4), torch.arange(6) % 3)
    ours = simulate(network, [batch], steps=8, keep_spike_times=True)
    for engine in ("summed", "stepped"):  # integers: equal on every device
        assert_same(ours, simulate(network.to(device), [batch], steps=8, keep_spike_times=True, engine=engine))


def test_engines_are_equal_on_a_network_with_an_analog_encoder(device):
    network = vgg11(width=1 / 16, batch_norm=False).to(device)
    images = torch.rand(3, 3, 32, 32)
    assert_same(*(simulate(network, [images], steps=8, engine=e, keep_spike_times=True) for e in ("summed", "stepped")))


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_signed_encoder_is_simulated_and_counted_as_it_computes(sigma):
    config = NetworkConfig("6C3-P2-8", 2, (6, 6), 3, encoder="signed", mean=(0.4, 0.5), std=(0.2, 0.3))
    network = TTFSNetwork(config.replace(neuron=Neuron(sigma), bias=False)).eval()
    images = torch.rand(16, 2, 6, 6)
    found = simulate(network, [images], steps=4096, weight_bits=None)
    counts = count(network, [images])
    with torch.no_grad():
        assert torch.equal(found.predictions, network(images).argmax(1))
    first, closed = found.counts.layers[0], counts.layers[0]
    for key in ("kind", "synaptic_operations", "analog_macs", "nonzero_macs", "active_inputs", "neurons"):
        assert getattr(first, key) == getattr(closed, key), key
    assert first.spikes == pytest.approx(closed.spikes, rel=0.01)
    slope, bright = found.activity[0].firing_updates, (images > torch.tensor([0.4, 0.5]).view(2, 1, 1)).any(1)
    reached = torch.nn.functional.max_pool2d(bright.float()[:, None], 3, 1, 1).sum() * 6 * 4096
    assert (0 < slope <= reached) if sigma else slope == 0


def test_first_spike_decides_early_and_ties_go_to_the_lowest_class():
    readout = readout_with([[1.0, 0.0], [0.0, 1.0]], threshold=2.0, initial_potential=0.0)
    network = linear_network([[1.0, 0.0], [0.0, 1.0]], readout)
    # Hidden neurons repeat their inputs or do better; outputs cross 2·(1 − s) with potential a + s.
    images = torch.tensor([[1.0, 0.25], [0.25, 1.0], [1.0, 1.0], [0.0, 0.0], [0.25, 0.25]])
    found = simulate(network, [(images, torch.tensor([0, 1, 1, 0, 0]))], steps=12, keep_spike_times=True)
    assert found.first_spike_predictions.tolist() == [0, 1, 0, 0, 0]
    assert (found.ties, found.no_spike, found.first_spike_correct, found.correct) == (2, 1, 4, 4)
    assert (found.accuracy, found.first_spike_accuracy) == (0.8, 0.8)
    stamps = found.spike_steps["2"]
    assert stamps[3].tolist() == [12, 12]
    assert found.latency_steps.tolist() == (24 + stamps.amin(1)).tolist()
    assert found.latency_steps[0] == 24 + 4  # 2 − 2·s = 1 + s at s = 1/3
    assert found.latency_steps[3] == 36  # the window's end
    assert found.mean_latency_steps == pytest.approx(found.latency_steps.double().mean().item())
    assert sum(found.latency_histogram.values()) == 5
    assert list(found.latency_histogram) == sorted(found.latency_histogram)
    assert found.latency_histogram[28] == 3
    # Both output neurons stop when the first has fired: in the middle of step 4, behind that at the start.
    alone = simulate(network, [images[:1]], steps=12)
    assert (alone.activity[1].compares, alone.correct, alone.accuracy, alone.first_spike_accuracy) == (
        2 * 6,
        *[None] * 3,
    )
    assert alone.spike_steps is None


def test_without_an_output_spike_the_highest_potential_decides():
    readout = readout_with([[-2.0], [-1.0], [-3.0]], threshold=1.0, initial_potential=0.0)
    found = simulate(linear_network([[1.0]], readout), [torch.ones(2, 1)], steps=8)
    assert found.no_spike == 2
    assert found.ties == 0
    assert found.first_spike_predictions.tolist() == [1, 1]
    assert found.latency_steps.tolist() == [24, 24]


def test_potentials_are_read_at_the_start_or_end():
    # One early input, two late ones: A is larger for class 0, the slope for class 1.
    weight = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    images = torch.tensor([[0.75, 0.25, 0.25]])
    network = linear_network(torch.eye(3).tolist(), readout_with(weight, PotentialReadout, at="start"), sigma=0.0)
    found = simulate(network, [images], steps=8)
    assert (found.predictions.tolist(), found.potential_latency_steps) == ([0], 16)
    assert found.activity[1].compares == found.activity[1].firing_updates == 0
    network[-1].at = "end"
    found = simulate(network, [images], steps=8)
    assert (found.predictions.tolist(), found.potential_latency_steps) == ([1], 24)
    assert (found.activity[1].compares, found.activity[1].firing_updates) == (0, 2 * 8)
    dark = torch.zeros(1, 3)
    assert simulate(network, [images, dark], steps=8).activity[1].firing_updates == 2 * 8  # no slope, no update
    assert simulate(network, [images, dark], steps=8, gating=False).activity[1].firing_updates == 2 * 2 * 8


def test_predictions_approach_the_closed_form():
    network = cnn1(width=0.5, neuron=Neuron(0.0)).eval()
    images = torch.rand(100, 1, 28, 28)
    with torch.no_grad():
        potential, decided = network(images), network.decide(images)
    found = simulate(network, [images], steps=2048, weight_bits=None)
    for decision, by, margin in (
        (found.predictions, potential, 0.01),
        (found.first_spike_predictions, -decided.spike_times, 2 / 2048),
    ):
        best, second = by.topk(2).values.unbind(1)
        clear = best - second > margin
        assert clear.sum() > 10
        assert torch.equal(decision[clear], by.argmax(1)[clear])


def test_batches_parts_and_kept_samples_do_not_matter():
    network = small_network(0)
    images, labels = 2 * torch.rand(120, 2, 5, 4), torch.arange(120) % 3
    options = dict(steps=8, keep_spike_times=True)
    whole = simulate(network, [(images, labels)], **options)
    split = simulate(network, zip(images.split(7), labels.split(7), strict=True), **options)
    assert_same(whole, split)
    some = simulate(network, [images[:2], images[2:]], steps=8, keep_spike_times=3)
    assert some.spike_steps is not None
    assert {len(stamps) for stamps in some.spike_steps.values()} == {3}
    assert torch.equal(some.spike_steps["1"], whole.spike_steps["1"][:3])
    assert [len(whole.counts.spikes_by_sample), sum(whole.counts.spikes_by_sample)] == [
        120,
        whole.counts.total()["spikes"],
    ]
    assert sum(whole.counts.synaptic_operations_by_sample) == whole.counts.total()["synaptic_operations"]


def test_model_and_images_stay_as_they_are():
    network = small_network(0).train()
    images = 2 * torch.rand(3, 2, 5, 4)
    before, copy = {key: value.clone() for key, value in network.state_dict().items()}, images.clone()
    training = simulate(network, [images], keep_spike_times=True)
    assert network.training
    assert_same(training, simulate(network.eval(), [images], keep_spike_times=True))
    assert torch.equal(images, copy)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_double_precision_and_standardisation_make_no_difference():
    network, images = small_network(1), 2 * torch.rand(3, 2, 5, 4)
    single = simulate(network, [images], keep_spike_times=True)
    for layer in network:
        if hasattr(layer, "fold_standardisation"):
            layer.fold_standardisation()
    assert_same(single, simulate(network, [images], keep_spike_times=True))
    assert simulate(network.double(), [images.double()]).samples == 3


def test_simulation_as_json():
    found = simulate(small_network(0), [(torch.rand(4, 2, 5, 4), torch.zeros(4, dtype=torch.int64))], steps=8)
    values = json.loads(json.dumps(found.to_dict()))
    assert (values["steps"], values["weight_bits"], values["samples"]) == (8, 8, 4)
    assert values["accuracy"] == found.accuracy
    assert values["activity"][0]["neuron_updates"] == found.activity[0].neuron_updates
    assert not any(math.isnan(value) for value in (values["mean_latency_steps"], values["accuracy"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 4096; got 0"),
        ({"steps": 5000}, "steps must be 1 to 4096; got 5000"),
        ({"weight_bits": 1}, "weight_bits must be 2 to 16, or None; got 1"),
        ({"compare_at": "end"}, r"compare_at must be one of \('middle', 'start'\); got 'end'"),
        ({"engine": "fast"}, r"engine must be one of \('summed', 'stepped'\); got 'fast'"),
        ({"keep_spike_times": -1}, "keep_spike_times must be a bool or at least 0; got -1"),
    ],
)
def test_simulate_rejects_options(options, message):
    with pytest.raises(ValueError, match=f"simulate: {message}"):
        simulate(small_network(0), [torch.rand(1, 2, 5, 4)], **options)


def test_simulate_rejects_batches():
    images, labels = torch.rand(2, 2, 5, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="simulate: batches must not be empty; got none"):
        simulate(small_network(0), [])
    for batches in ([(images, labels), images], [images, (images, labels)]):
        with pytest.raises(ValueError, match="simulate: batches must all have labels, or none; got both"):
            simulate(small_network(0), batches)
