"""Simulations against loops over steps and synapses, against hands, and against the closed form."""

import dataclasses
import math
from copy import deepcopy

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.chip.networks import READOUTS, assert_same, linear_network, readout_with, saturating_network, small_network
from tests.clocked_oracle import Neurons, Work, earliest, layer
from tests.nn.common import activations, randomised
from ttfs_triton.chip.simulator import simulate
from ttfs_triton.energy.counter import count
from ttfs_triton.nn import (
    AnalogEncoder,
    Faults,
    NetworkConfig,
    Neuron,
    Readout,
    TTFSNetwork,
    fold_weight_standardisation,
    train_for,
    vgg11,
)
from ttfs_triton.nn.integers import largest_integer, quantise_weight

GEOMETRIES = (
    {"kernel": 3, "padding": 1, "groups": 2},
    {"kernel": (2, 3), "stride": (2, 1), "padding": (0, 1)},
    {"kernel": 2, "stride": 1, "padding": 2, "dilation": 2},
    {"kernel": (1, 2), "padding": (2, 0), "dilation": (1, 2), "groups": 2},
)


def neurons_of(own, bits, steps, gating, state_bits):
    quantised = quantise_weight(own.effective_weight(), bits)
    return Neurons(
        quantised.integers.long().numpy(),
        quantised.unit.numpy(),
        own.bias.detach().double().numpy() + own.initial_potential,
        steps,
        gating=gating,
        psp_persistence=own.neuron.psp_persistence,
        threshold=own.threshold,
        register=None if state_bits is None else largest_integer(state_bits),
    )


def fewest_state_bits(network, steps, bits):
    """Bits of registers that hold every layer's threshold."""
    layers = [own for own in network if hasattr(own, "threshold_height")]
    units = [quantise_weight(own.effective_weight(), bits).unit.min() for own in layers]
    heights = [steps * own.threshold_height / unit for own, unit in zip(layers, units, strict=True)]
    return math.ceil(max(heights)).bit_length() + 1


def by_loops(network, images, options):
    """Stamps of each stage, work of each layer, spikes delivered, classes by the readout (at its start), and whether an
    output neuron fires."""
    _, conv, _, _, _, fc, readout = network
    steps = options["steps"]
    late = (1 - images.double()).numpy() * steps
    pixels = np.where(images.numpy() > 0, np.ceil(late - 0.5).clip(0, steps), steps).astype(np.int64)
    neurons = [neurons_of(own, **options) for own in (conv, fc)]
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    first = neurons[0].stamps(layer(neurons[0], pixels, geometry=geometry)[0])
    pooled = earliest(first, 2)
    hidden = neurons[1].stamps(layer(neurons[1], pooled.reshape(len(images), -1))[0])

    outputs, free = (neurons_of(readout, **options | each) for each in ({}, {"gating": False}))
    instants, potential, _ = layer(free, hidden)
    if readout.at == "first_spike":  # all stop with the first
        layer(outputs, hidden, instants.min(1) if options["gating"] else None)
    else:
        layer(outputs, hidden, np.full(len(hidden), -1))
        if readout.at == "potential_end" and readout.neuron.psp_persistence:
            moving = (hidden < steps).any(1).sum() if options["gating"] else len(hidden)
            outputs.work.firing_updates += int(moving) * instants.shape[1] * steps
    stamps = [pixels, first, hidden, outputs.stamps(instants)]
    work = [each.work for each in (*neurons, outputs)]
    heights = (potential * outputs.units / steps).astype(np.float32)
    delivered = [int((values < steps).sum()) for values in (pooled, hidden)]
    classes = stamps[-1].argmin(1) if readout.at == "first_spike" else heights.argmax(1)
    return stamps, work, delivered, classes, instants.min(1) < len(outputs.instants())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(GEOMETRIES),
    st.sampled_from(sorted(READOUTS)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.integers(1, 7),
    st.sampled_from([2, 5, 8]),
    st.sampled_from([None, None, 0, 3]),
    st.integers(0, 10**6),
)
def test_simulation_equals_loops_over_steps_and_synapses(geometry, readout, sigma, gating, steps, bits, spare, seed):
    network = small_network(seed, sigma, readout, **geometry)
    state_bits = None if spare is None else spare + fewest_state_bits(network, steps, bits)
    images = activations(2, 2, 5, 4, seed=seed).float()
    options = dict(steps=steps, bits=bits, gating=gating, state_bits=state_bits)
    stamps, work, delivered, classes, fires = by_loops(network, images, options)
    options["weight_bits"] = options.pop("bits")
    found = simulate(network, [images], **options, keep_spike_times=True)
    for expected, kept in zip(stamps, found.spike_steps.values(), strict=True):
        np.testing.assert_array_equal(kept.numpy(), expected)
    if readout != "end":
        np.testing.assert_array_equal(found.predictions.numpy(), classes)
    for own, activity, expected in zip(found.counts.layers, found.activity, work, strict=True):
        assert own.synaptic_operations == expected.synaptic_operations
        for name in (field.name for field in dataclasses.fields(Work)[1:]):
            assert getattr(activity, name) == getattr(expected, name), name
    assert [own.spikes_delivered for own in found.counts.layers] == [*delivered, 0]
    for own, expected in zip(found.counts.layers[:-1], stamps[1:], strict=False):
        assert (own.spikes, own.saturated) == ((expected < steps).sum(), (expected == 0).sum())
        assert own.histogram == tuple((expected == step).sum() for step in range(steps))
        assert own.summed_spike_time == pytest.approx(expected[expected < steps].sum() / steps)
        assert own.never_active == (expected == steps).all(0).sum()
    assert found.counts.input.spikes == (stamps[0] < steps).sum()
    output, first = stamps[-1], stamps[-1].min(1)
    np.testing.assert_array_equal(found.latency_steps, 3 * steps + first)
    np.testing.assert_array_equal(found.first_spike_predictions[fires], output.argmin(1)[fires])
    ties = ((output == first[:, None]).sum(1) > 1) & fires
    assert (found.no_spike, found.ties) == ((~fires).sum(), ties.sum())


def test_simulation_does_not_depend_on_the_device(device):
    for network, shape, state_bits in ((small_network(2), (2, 5, 4), None), (saturating_network(), (40,), 11)):
        batch = (torch.rand(6, *shape), torch.arange(6) % 2)
        options = {"steps": 8, "state_bits": state_bits, "keep_spike_times": True}
        ours = simulate(network.cpu(), [batch], **options)
        assert_same(ours, simulate(network.to(device), [batch], **options))
    network, images = vgg11(width=1 / 16, batch_norm=False).to(device), torch.rand(2, 3, 32, 32)
    assert simulate(network, [images], steps=8).samples == 2


# ---- the closed form


def test_analog_encoder_counts_and_stamps():
    own = randomised(AnalogEncoder(1, 2, 2, mean=[0.5], std=[0.25], batch_norm=True), 0).eval()
    network = nn.Sequential(own, nn.Flatten(), Readout(8, 2))
    images = torch.rand(4, 1, 3, 3)
    images[0, 0, 0, 0] = 0.5  # the mean: its products are with zero
    found = simulate(network, [images], steps=1024, weight_bits=None, keep_spike_times=True)
    first, active = found.counts.layers[0], found.activity[0]
    assert (first.kind, first.analog_macs, first.dense_macs, first.synaptic_operations) == ("analog", 128, 128, 0)
    assert (first.nonzero_macs, first.active_inputs) == (126, 35)
    error = own(images) - (1 - found.spike_steps["0"] / 1024)
    assert error.abs().max() <= 0.5 / 1024 + 1e-5
    assert (active.integration_updates, active.firing_updates) == (0, 0)
    assert active.compares > 0
    coarse = simulate(network, [images], steps=1024, weight_bits=2, keep_spike_times=True)
    assert not torch.equal(coarse.spike_steps["0"], found.spike_steps["0"])  # its weights are quantised too


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_signed_encoder_is_simulated_and_counted_as_it_computes(sigma):
    config = NetworkConfig("6C3-P2-8", 2, (6, 6), 3, encoder="signed", mean=(0.4, 0.5), std=(0.2, 0.3))
    network = TTFSNetwork(config.replace(neuron=Neuron(sigma), bias=False)).eval()
    images = torch.rand(16, 2, 6, 6)
    found, counts = simulate(network, [images], steps=4096, weight_bits=None), count(network, [images])
    with torch.no_grad():
        assert torch.equal(found.predictions, network(images).argmax(1))
    first, closed = found.counts.layers[0], counts.layers[0]
    for key in ("kind", "synaptic_operations", "analog_macs", "nonzero_macs", "active_inputs", "neurons"):
        assert getattr(first, key) == getattr(closed, key), key
    assert first.spikes == pytest.approx(closed.spikes, rel=0.01)
    slope, bright = found.activity[0].firing_updates, (images > torch.tensor([0.4, 0.5]).view(2, 1, 1)).any(1)
    reached = nn.functional.max_pool2d(bright.float()[:, None], 3, 1, 1).sum() * 6 * 4096
    assert (0 < slope <= reached) if sigma else slope == 0


# ---- by hand


def test_highest_potential_decides_without_output_spikes():
    readout = readout_with([[-2.0], [-1.0], [-3.0]], threshold=1.0, initial_potential=0.0)
    found = simulate(linear_network([[1.0]], readout), [torch.ones(2, 1)], steps=8)
    assert (found.no_spike, found.ties, found.first_spike_predictions.tolist()) == (2, 0, [1, 1])
    assert found.latency_steps.tolist() == [24, 24]


def test_ties_are_broken_by_the_highest_potential_among_tied_neurons():
    # All fire by mid-step 0, class 1 is highest then; class 2 starts highest, and sinks below the others.
    weight = [[1.0, 0.5, 0.0], [1.2, 0.5, 0.0], [2.2, 0.0, -1.8]]
    network = linear_network(torch.eye(3).tolist(), readout_with(weight, threshold=2.0, initial_potential=0.0))
    found = simulate(network, [(torch.ones(4, 3), torch.tensor([0, 1, 1, 2]))], steps=1)
    assert (found.ties, found.first_spike_accuracy, found.tie_broken_accuracy) == (4, 0.25, 0.5)


def test_potentials_are_read_at_the_start_or_end():
    # One early input, two late ones: A is larger for class 0, the slope for class 1.
    weight = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    images, dark = torch.tensor([[0.75, 0.25, 0.25]]), torch.zeros(1, 3)
    network = linear_network(torch.eye(3).tolist(), readout_with(weight, Readout), sigma=0.0)
    for at, prediction, latency, updates in (("potential_start", 0, 16, 0), ("potential_end", 1, 24, 16)):
        network[-1].at = at
        found = simulate(network, [images], steps=8)
        assert (found.predictions.tolist(), found.potential_latency_steps) == ([prediction], latency)
        assert (found.activity[1].compares, found.activity[1].firing_updates) == (0, updates)
    assert simulate(network, [images, dark], steps=8).activity[1].firing_updates == 2 * 8  # no slope, no update
    assert simulate(network, [images, dark], steps=8, gating=False).activity[1].firing_updates == 2 * 2 * 8


# ---- options


def test_batches_and_parts_do_not_matter():
    network = small_network(0)
    images, labels = torch.rand(120, 2, 5, 4), torch.arange(120) % 3
    options = dict(steps=8, keep_spike_times=True)
    parts = zip(images.split(7), labels.split(7), strict=True)
    assert_same(simulate(network, [(images, labels)], **options), simulate(network, parts, **options))


def test_mode_precision_and_standardisation_make_no_difference_and_stay():
    network, images = small_network(1).train(), torch.rand(3, 2, 5, 4)
    train_for(network, Faults(weight_noise=0.3, lost_spikes=0.3))  # these are of training alone
    before = deepcopy(network.state_dict())
    training = simulate(network, [images], keep_spike_times=True)
    assert network.training
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert_same(training, simulate(network.eval(), [images], keep_spike_times=True))
    assert_same(training, simulate(fold_weight_standardisation(network), [images], keep_spike_times=True))
    assert simulate(network.double(), [images.double()]).samples == 3


WRONG = {"steps": 0, "weight_bits": 1, "state_bits": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: value}, f"{name}\n.*input_value={value}") for name, value in WRONG.items()),
        ({"state_bits": 8}, "simulate: state_bits must hold every .* which is .* in 1; got 8, which hold 127"),
    ],
)
def test_simulate_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(small_network(0), [torch.rand(1, 2, 5, 4)], **options)


IMAGES, LABELS = torch.rand(2, 2, 5, 4), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches must not be empty; got none"),
        ([IMAGES[:0]], "batches must hold at least one image; got none"),
        ([(IMAGES, LABELS[:, None])], r"labels must be \[2\], one an image; got \[2, 1\]"),
        ([(IMAGES, LABELS), IMAGES], "batches must all have labels, or none; got both"),
        ([IMAGES, (IMAGES, LABELS)], "batches must all have labels, or none; got both"),
    ],
)
def test_simulate_rejects_batches(batches, message):
    with pytest.raises(ValueError, match=f"simulate: {message}"):
        simulate(small_network(0), batches)
