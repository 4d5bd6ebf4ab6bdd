"""Counts and activity of simulations against loops over steps and synapses, and against hands."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.clocked_oracle import Neurons, Work, conv2d, earliest, linear
from tests.hardware.simulation.networks import READOUTS, assert_same, linear_network, readout_with, small_network
from tests.nn.common import activations, randomised
from ttfs_triton.hardware.counts.counter import count
from ttfs_triton.hardware.counts.counts import LayerActivity
from ttfs_triton.hardware.simulation.simulator import simulate
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    FirstSpikeReadout,
    PotentialReadout,
)
from ttfs_triton.nn.integers import quantise_weight

WORK = tuple(field.name for field in dataclasses.fields(Work))


def neurons_of(layer, *, steps, bits, compare_at, gating, **ramp):
    quantised = quantise_weight(layer.effective_weight(), bits)
    initial = np.zeros(len(quantised.unit)) if layer.bias is None else layer.bias.detach().double().numpy()
    return Neurons(
        quantised.integers.long().numpy(),
        quantised.unit.numpy(),
        initial + ramp.pop("initial_potential", 0.0),
        steps,
        middle=compare_at == "middle",
        gating=gating,
        psp_persistence=layer.neuron.psp_persistence,
        **ramp,
    )


def read_out(readout, stamps, options):
    """Instants of output spikes, and the work until the decision."""
    ramp = dict(threshold=readout.threshold, window=readout.window, initial_potential=readout.initial_potential)
    work = neurons_of(readout, **options, **ramp)
    instants, *_ = linear(neurons_of(readout, **options | {"gating": False}, **ramp), stamps)
    if isinstance(readout, FirstSpikeReadout):
        linear(work, stamps, instants.min(1) if options["gating"] else None)
        return work.stamps(instants), work.work
    linear(work, stamps, np.full(len(stamps), -1))
    if readout.at == "end" and readout.neuron.psp_persistence:
        moving = (stamps < options["steps"]).any(1).sum() if options["gating"] else len(stamps)
        updates = int(moving) * instants.shape[1] * options["steps"]
        work.work += Work(firing_updates=updates, state_reads=2 * updates, state_writes=updates)
    return work.stamps(instants), work.work


def by_loops(network, images, options):
    """Stamps of each stage of `small_network`, work of each layer, and spikes delivered."""
    _, conv1, _, _, conv2, _, fc, readout = network
    steps = options["steps"]
    late = (1 - (images / 2).clamp(0, 1).double()).numpy() * steps
    stamp = np.ceil(late - 0.5) if options["compare_at"] == "middle" else np.ceil(late)
    stamps = [np.where(images.numpy() > 0, stamp.clip(0, steps), steps).astype(np.int64)]
    layers = [neurons_of(layer, **options) for layer in (conv1, conv2, fc)]
    stamps.append(layers[0].stamps(conv2d(layers[0], stamps[0], (1, 1), (1, 1), (1, 1), 2)))
    pooled = earliest(stamps[1], 2, 1)
    stamps.append(layers[1].stamps(conv2d(layers[1], pooled, (2, 2), (0, 1), (1, 1), 1)))
    stamps.append(layers[2].stamps(linear(layers[2], stamps[2].reshape(len(images), -1))[0]))
    last, work = read_out(readout, stamps[3], options)
    delivered = [int((values < steps).sum()) for values in (pooled, stamps[2], stamps[3])]
    return [*stamps, last], [*(layer.work for layer in layers), work], [*delivered, 0]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(READOUTS)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["middle", "start"]),
    st.booleans(),
    st.integers(1, 7),
    st.sampled_from([2, 5, 8]),
    st.integers(0, 10**6),
)
def test_simulation_equals_loops_over_steps_and_synapses(readout, sigma, compare_at, gating, steps, bits, seed):
    network = small_network(seed, sigma, READOUTS[readout](sigma))
    images = 2 * activations(2, 2, 5, 4, seed=seed).float()
    options = dict(steps=steps, bits=bits, compare_at=compare_at, gating=gating)
    stamps, work, delivered = by_loops(network, images, options)
    options["weight_bits"] = options.pop("bits")
    found = simulate(network, [images], **options, keep_spike_times=True)
    assert found.spike_steps is not None
    for expected, kept in zip(stamps, found.spike_steps.values(), strict=True):
        np.testing.assert_array_equal(kept.numpy(), expected)
    for layer, activity, expected in zip(found.counts.layers, found.activity, work, strict=True):
        assert layer.synaptic_operations == expected.synaptic_operations
        assert [getattr(activity, name) for name in WORK[1:]] == [getattr(expected, name) for name in WORK[1:]]
    assert [layer.spikes_delivered for layer in found.counts.layers] == delivered
    for layer, expected in zip(found.counts.layers[:-1], stamps[1:], strict=False):
        assert layer.spikes == (expected < steps).sum()
        assert layer.saturated == (expected == 0).sum()
        assert layer.histogram == tuple((expected == step).sum() for step in range(steps))
        assert layer.summed_spike_time == pytest.approx(expected[expected < steps].sum() / steps)
        assert layer.never_active == (expected == steps).all(0).sum()
    assert found.counts.input.spikes == (stamps[0] < steps).sum()
    assert found.counts.input.saturated == (stamps[0] == 0).sum()


def test_counts_equal_those_of_the_closed_form_where_stamps_lose_nothing():
    # σ = 0 and binary activations: every spike is at a window's start, every potential a sum of weights.
    network = small_network(3, 0.0)
    for layer in network:
        if isinstance(layer, DFTConv2d | DFTLinear):
            nn.init.constant_(layer.bias, 0.0)
            layer.weight_gain = None
            with torch.no_grad():
                layer.weight.copy_(2 * layer.weight.sign())
    images = 2 * (torch.rand(7, 2, 5, 4) > 0.5).float()
    expected = count(network, [images], histogram_bins=8)
    found = simulate(network, [images[:3], images[3:]], steps=8, weight_bits=None).counts
    for one, other in zip(expected.layers[:-1], found.layers[:-1], strict=True):
        assert dataclasses.replace(one, summed_spike_time=0.0) == dataclasses.replace(other, summed_spike_time=0.0)
        assert one.summed_spike_time == pytest.approx(other.summed_spike_time, abs=1e-4)
    assert found.input == expected.input
    assert found.synaptic_operations_by_sample == expected.synaptic_operations_by_sample
    last = (found.layers[-1], expected.layers[-1])
    for name in ("name", "kind", "neurons", "inputs", "synapses", "weights", "biases"):
        assert getattr(last[0], name) == getattr(last[1], name)
    for name in ("active_inputs", "synaptic_operations", "dense_macs", "spikes", "spikes_delivered"):
        assert getattr(last[0], name) == getattr(last[1], name)


def test_counts_approach_those_of_the_closed_form():
    network = small_network(5, 0.25)
    images = 2 * torch.rand(50, 2, 5, 4)
    expected, found = count(network, [images]), simulate(network, [images], steps=4096, weight_bits=None).counts
    for one, other in zip(expected.layers, found.layers, strict=True):
        assert other.spikes == pytest.approx(one.spikes, abs=0.01 * one.neurons)
        assert other.synaptic_operations == pytest.approx(one.synaptic_operations, rel=0.01)
        assert other.summed_spike_time == pytest.approx(one.summed_spike_time, rel=0.02, abs=0.2)


def test_analog_encoder_counts_and_stamps():
    layer = randomised(AnalogEncoder(1, 2, 2, mean=[0.5], std=[0.25], batch_norm=True), 0).eval()
    network = nn.Sequential(layer, nn.Flatten(), PotentialReadout(8, 2))
    images = torch.rand(4, 1, 3, 3)
    images[0, 0, 0, 0] = 0.5  # the mean: its products are with zero
    found = simulate(network, [images], steps=1024, weight_bits=None, keep_spike_times=True)
    first = found.counts.layers[0]
    assert (first.kind, first.analog_macs, first.dense_macs, first.synaptic_operations) == ("analog", 128, 128, 0)
    assert (first.nonzero_macs, first.active_inputs) == (126, 35)
    expected = layer(images)
    assert found.spike_steps is not None
    error = expected - (1 - found.spike_steps["0"] / 1024)
    assert error.abs().max() <= 0.5 / 1024 + 1e-5
    active = found.activity[0]
    assert (active.integration_updates, active.firing_updates, active.state_writes) == (0, 0, 0)
    assert active.state_reads == active.compares > 0
    coarse = simulate(network, [images], steps=1024, weight_bits=2, keep_spike_times=True)
    assert coarse.spike_steps is not None
    assert not torch.equal(coarse.spike_steps["0"], found.spike_steps["0"])  # its weights are quantised too


def test_hand_count_of_one_neuron():
    # Weight 1 is 127 units of 1/127. The input fires at step 1 of 4; 3/4 of the potential is there when the window
    # starts, and it meets the ramp at s = (1 − 3/4)/(1 + 1) = 1/8: in the middle of step 0.
    network = linear_network([[1.0]], readout_with([[0.5], [-0.5]], PotentialReadout))
    found = simulate(network, [torch.tensor([[0.75]])], steps=4, keep_spike_times=True)
    assert found.spike_steps is not None
    assert {name: stamps.flatten().tolist() for name, stamps in found.spike_steps.items()}["1"] == [0]
    # Slope at step 1: updates in steps 1, 2, 3; compares at the start and in the middle of step 0, an update between.
    assert found.activity[0] == LayerActivity("1", 3, 1, 2, 1 + 2 * 3 + 1 + 2, 1 + 3 + 1)
    assert found.activity[0].neuron_updates == 4
    # By comparing at the start of a step: at 1/4 the potential is above the ramp for the first time.
    late = simulate(network, [torch.tensor([[0.75]])], steps=4, compare_at="start", keep_spike_times=True)
    assert late.spike_steps is not None
    assert late.spike_steps["1"].item() == 1
    assert late.activity[0] == LayerActivity("1", 3, 1, 2, 1 + 2 * 3 + 1 + 2, 1 + 3 + 1)
    always = simulate(network, [torch.tensor([[0.75]])], steps=4, gating=False)
    assert always.activity[0] == LayerActivity("1", 4, 4, 5, 1 + 2 * 4 + 4 + 5, 1 + 4 + 4)
    assert always.counts == found.counts


@pytest.mark.parametrize("compare_at", ["middle", "start"])
def test_all_silent(compare_at):
    network = linear_network([[-1.0, -1.0], [0.5, -2.0]], bias=-0.1)
    found = simulate(network, [torch.ones(3, 2)], steps=4, compare_at=compare_at)
    layer, readout = found.counts.layers
    assert (layer.spikes, layer.spikes_delivered, layer.never_active) == (0, 0, 2)
    assert (layer.synaptic_operations, readout.synaptic_operations, readout.active_inputs) == (12, 0, 0)
    instants = 5 if compare_at == "middle" else 4
    assert found.activity[0].compares == 6 * instants
    assert found.activity[0].firing_updates == 6 * (instants - 1)
    assert found.activity[1] == LayerActivity("2", 0, 0, 0, 0, 0)  # nothing arrives
    dark = simulate(network, [torch.zeros(3, 2)], steps=4, compare_at=compare_at)
    assert dark.counts.input.spikes == dark.counts.layers[0].synaptic_operations == 0
    assert dark.activity[0].neuron_updates == 0  # without a slope there is nothing to add, but thresholds fall
    assert dark.activity[0].compares == 6 * instants


def test_all_saturated():
    network = linear_network([[1.0, 1.0], [2.0, 0.0]])
    found = simulate(network, [torch.ones(3, 2)], steps=4)
    layer, readout = found.counts.layers
    assert layer.spikes == layer.saturated == 6
    assert (layer.summed_spike_time, layer.histogram) == (0.0, (6, 0, 0, 0))
    assert (found.counts.input.spikes, found.counts.input.saturated) == (6, 6)
    assert found.activity[0] == LayerActivity("1", 24, 0, 6, 12 + 48 + 6, 12 + 24)
    assert readout.synaptic_operations == 12


def test_gating_changes_activity_alone():
    network, images = small_network(0), 2 * torch.rand(3, 2, 5, 4)
    gated, free = (simulate(network, [images], gating=gating, keep_spike_times=True) for gating in (True, False))
    assert_same(dataclasses.replace(gated, activity=()), dataclasses.replace(free, activity=()))
    for one, other in zip(gated.activity, free.activity, strict=True):
        assert one.neuron_updates < other.neuron_updates


def test_neuron_at_the_threshold_fires_at_step_0_although_its_potential_falls():
    # Weights are −127 units of 1/64. Ten inputs fire in the last step of 4; the initial potential makes up for it, so
    # that A = 1 exactly, and W = −19.8: half a step later the potential is far below the ramp.
    weight = -127 / 64
    network = linear_network([[weight] * 10, [weight] * 10], bias=1 - 10 * weight / 4)
    for compare_at in ("middle", "start"):
        found = simulate(network, [torch.full((1, 10), 0.25)], steps=4, compare_at=compare_at, keep_spike_times=1)
        assert found.spike_steps is not None
        assert found.spike_steps["1"].tolist() == [[0, 0]]
        assert (found.counts.layers[0].saturated, found.activity[0].firing_updates) == (2, 0)
    network[1].bias.data.sub_(1 / 64 / 4)  # one unit less
    assert simulate(network, [torch.full((1, 10), 0.25)], steps=4).counts.layers[0].spikes == 0
