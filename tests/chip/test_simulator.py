"""Simulations against loops over steps and synapses, and against the closed form."""

import dataclasses
import math
from copy import deepcopy
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.chip.networks import READOUTS, assert_same, saturating_network, small_network
from tests.clocked_oracle import FRACTION, Neurons, Work, earliest, layer
from tests.nn.common import activations, randomised
from ttfs_triton.chip.simulator import simulate
from ttfs_triton.energy.counter import count
from ttfs_triton.nn import Faults, Grid, NetworkConfig, Neuron, TTFSNetwork, train_for
from ttfs_triton.nn.integers import largest_integer, quantise_weight

GEOMETRIES = (
    {"kernel": 3, "padding": 1, "groups": 2},
    {"kernel": (2, 3), "stride": (2, 1), "padding": (0, 1)},
    {"kernel": 2, "stride": 1, "padding": 2, "dilation": 2},
    {"kernel": (1, 2), "padding": (2, 0), "dilation": (1, 2), "groups": 2},
)


def neurons_of(module, bits, steps, gating, state_bits):
    quantised = quantise_weight(module.effective_weight(), bits)
    return Neurons(
        quantised.integers.long().numpy(),
        quantised.unit.numpy(),
        module.bias.detach().double().numpy() + module.initial_potential,
        steps,
        gating=gating,
        psp_persistence=module.neuron.psp_persistence,
        threshold=module.threshold,
        register=None if state_bits is None else largest_integer(state_bits),
    )


def fewest_state_bits(network, steps, bits):
    """Bits of registers that hold every layer's threshold."""
    layers = [module for module in network if hasattr(module, "threshold_height")]
    units = [quantise_weight(module.effective_weight(), bits).unit.min() for module in layers]
    heights = [steps * module.threshold_height / unit for module, unit in zip(layers, units, strict=True)]
    return math.ceil(max(heights)).bit_length() + 1


def by_loops(network, images, options):
    """Stamps of stages, work of layers, spikes delivered, classes by readout and first spike, whether one fires."""
    _, conv, _, _, _, fc, readout = network
    steps = options["steps"]
    late = (1 - images.double()).numpy() * steps
    pixels = np.where(images.numpy() > 0, np.ceil(late - 0.5).clip(0, steps), steps).astype(np.int64)
    neurons = [neurons_of(module, **options) for module in (conv, fc)]
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    first = neurons[0].stamps(layer(neurons[0], pixels, geometry=geometry)[0])
    pooled = earliest(first, 2)
    hidden = neurons[1].stamps(layer(neurons[1], pooled.reshape(len(images), -1))[0])

    outputs, free = (neurons_of(readout, **options | changed) for changed in ({}, {"gating": False}))
    instants, potential, slope = layer(free, hidden)
    largest = np.inf if free.register is None else free.register * 2 * FRACTION
    potential, share = potential * 2 * FRACTION, round(readout.neuron.psp_persistence * FRACTION)
    at_end = (potential + slope * share * 2 * steps).clip(-largest, largest)
    if readout.at == "first_spike":  # all stop with the first
        layer(outputs, hidden, instants.min(1) if options["gating"] else None)
    else:
        layer(outputs, hidden, np.full(len(hidden), -1))
        if readout.at == "potential_end" and share:
            moving = (hidden < steps).any(1).sum() if options["gating"] else len(hidden)
            outputs.work.firing_updates += int(moving) * instants.shape[1] * steps
    stamps = [pixels, first, hidden, outputs.stamps(instants)]
    work = [simulated.work for simulated in (*neurons, outputs)]
    delivered = [int((values < steps).sum()) for values in (pooled, hidden)]
    start, end = (values * outputs.units / (steps * 2 * FRACTION) for values in (potential, at_end))
    fires = instants.min(1) < len(outputs.instants())
    earliest_class = np.where(fires, stamps[-1].argmin(1), end.argmax(1))
    read = {"potential_start": start, "potential_end": end, "first_spike": -stamps[-1]}[readout.at]
    classes = (read - readout.initial_potential).astype(np.float32).argmax(1)
    return stamps, work, delivered, (classes, earliest_class), fires


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
    stamps, work, delivered, decisions, fires = by_loops(network, images, options)
    options["weight_bits"] = options.pop("bits")
    result = simulate(network, [images], **options, keep_spike_times=True)
    for expected, kept in zip(stamps, result.spike_steps.values(), strict=True):
        np.testing.assert_array_equal(kept.numpy(), expected)
    for expected, classes in zip(decisions, (result.predictions, result.first_spike_predictions), strict=True):
        np.testing.assert_array_equal(classes.numpy(), expected)
    assert result.potential_latency_steps == (4 if readout == "end" else 3) * steps
    for counts, activity, expected in zip(result.counts.layers, result.activity, work, strict=True):
        assert counts.synaptic_operations == expected.synaptic_operations
        for name in (field.name for field in dataclasses.fields(Work)[1:]):
            assert getattr(activity, name) == getattr(expected, name), name
    assert [counts.spikes_delivered for counts in result.counts.layers] == [*delivered, 0]
    for counts, expected in zip(result.counts.layers[:-1], stamps[1:], strict=False):
        assert (counts.spikes, counts.saturated) == ((expected < steps).sum(), (expected == 0).sum())
        assert counts.histogram == tuple((expected == step).sum() for step in range(steps))
        assert counts.summed_spike_time == pytest.approx(expected[expected < steps].sum() / steps)
        assert counts.never_active == (expected == steps).all(0).sum()
    assert result.counts.input.spikes == (stamps[0] < steps).sum()
    output, first = stamps[-1], stamps[-1].min(1)
    np.testing.assert_array_equal(result.latency_steps, 3 * steps + first)
    ties = ((output == first[:, None]).sum(1) > 1) & fires
    assert (result.no_spike, result.ties) == ((~fires).sum(), ties.sum())


def test_simulation_does_not_depend_on_the_device(device):
    for network, shape, state_bits in ((small_network(2), (2, 5, 4), None), (saturating_network(), (40,), 11)):
        batch = (torch.rand(6, *shape), torch.arange(6) % 2)
        run = partial(simulate, batches=[batch], steps=8, state_bits=state_bits, keep_spike_times=True)
        assert_same(run(network.cpu()), run(network.to(device)))


@pytest.mark.parametrize(("encoder", "sigma"), [("analog", 1.0), ("signed", 0.0), ("signed", 1.0)])
@torch.no_grad()
def test_encoders_of_pixels_are_simulated_and_counted_as_they_compute(encoder, sigma):
    options = {"neuron": Neuron(sigma), "bias": False, "batch_norm": encoder == "analog", "encoder": encoder}
    config = NetworkConfig("6C3-P2-8", 2, (6, 6), 3, mean=(0.4, 0.5), std=(0.2, 0.3), **options)
    network, images = randomised(TTFSNetwork(config), 0).eval(), torch.rand(16, 2, 6, 6)
    images[0, :, 0, 0] = network.features.conv1.mean.flatten()  # its products are with zero
    fine = simulate(network, [images], steps=4096, weight_bits=None, keep_spike_times=True)
    assert torch.equal(fine.predictions, network(images).argmax(1))
    error = network.features.conv1(images) - (1 - fine.spike_steps["conv1"] / 4096)
    assert error.abs().max() <= 0.5 / 4096 + 1e-5
    coarse = simulate(network, [images], steps=4096, weight_bits=2, keep_spike_times=True)
    assert not torch.equal(coarse.spike_steps["conv1"], fine.spike_steps["conv1"])  # its weights are quantised too
    first, closed, work = fine.counts.layers[0], count(network, [images]).layers[0], fine.activity[0]
    for key in ("kind", "synaptic_operations", "analog_macs", "nonzero_macs", "active_inputs", "neurons"):
        assert getattr(first, key) == getattr(closed, key), key
    assert first.spikes == pytest.approx(closed.spikes, rel=0.01)
    bright = (images > network.features.conv1.mean).any(1)
    reached = nn.functional.max_pool2d(bright.float()[:, None], 3, 1, 1).sum() * 6 * 4096
    sloped = encoder == "signed" and sigma > 0
    assert (0 < work.firing_updates <= reached) if sloped else work.firing_updates == 0
    assert (work.integration_updates, work.compares > 0) == (0, True)
    network.put_on_grid(Grid(4, 3))
    assert torch.equal(network(images).argmax(1), simulate(network, images.split(5)).predictions)


def test_batches_mode_and_precision_make_no_difference_and_stay():
    network = small_network(1).train()
    train_for(network, Faults(weight_noise=0.3, lost_spikes=0.3))  # these are of training alone
    images, labels, before = torch.rand(120, 2, 5, 4), torch.arange(120) % 3, deepcopy(network.state_dict())
    run = partial(simulate, steps=8, keep_spike_times=True)
    training = run(network, [(images, labels)])
    assert network.training
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert_same(training, run(network.eval(), zip(images.split(7), labels.split(7), strict=True)))
    assert run(network.double(), [images.double()]).samples == 120


IMAGES = torch.rand(2, 2, 5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps\n.*input_value=0"),
        ({"weight_bits": 1}, "weight_bits\n.*input_value=1"),
        ({"state_bits": 8}, "simulate: state_bits must hold every .* which is .* in 1; got 8, which hold 127"),
        ({"batches": []}, "simulate: batches must not be empty; got none"),
        ({"batches": [(IMAGES, torch.zeros(2, 1))]}, r"simulate: labels must be \[2\], one per image; got \[2, 1\]"),
        ({"batches": [IMAGES, (IMAGES, torch.zeros(2))]}, "simulate: batches must all have labels, or none; got both"),
    ],
)
def test_simulate_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(small_network(0), **{"batches": [IMAGES]} | options)
