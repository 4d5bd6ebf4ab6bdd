"""Chips with faults: what happens to spikes, weights and neurons, in training and in the simulator."""

import math
from functools import partial

import pytest
import torch

from tests.chip.networks import saturating_network
from tests.nn.common import randomised
from ttfs_triton.chip import simulate
from ttfs_triton.chip.simulator import FaultyChip
from ttfs_triton.nn import AnalogEncoder, DFTLinear, Faults, Grid, NetworkConfig, Neuron, TTFSNetwork, cnn1
from ttfs_triton.nn.faults import disturbed, draw_broken, spikes_in_training, weight_factors
from ttfs_triton.nn.grid import Clock
from ttfs_triton.nn.integers import quantise_weight
from ttfs_triton.nn.prepare import put_on_grid, train_for

ALL = Faults(spike_jitter=0.1, weight_noise=0.1, dead_neurons=0.1, stuck_neurons=0.05, lost_spikes=0.1)


@pytest.fixture
def network():
    config = NetworkConfig("4C3-P2-12", image_size=(8, 8), classes=3, neuron=Neuron(0.25, surrogate_width=0.5))
    return randomised(TTFSNetwork(config), 0)


def share(mask):
    return mask.double().mean().item()


def test_jitter_moves_spikes_within_their_window_by_its_standard_deviation_and_no_silent_neuron():
    times = torch.tensor([0.0, 0.5, 0.99, 0.01])[:, None].expand(4, 40_000)
    silent, middle, early, late = moved = disturbed(times, Faults(spike_jitter=0.1))
    assert not silent.any()
    assert (middle.mean().item(), middle.std().item()) == (pytest.approx(0.5, abs=0.002), pytest.approx(0.1, rel=0.02))
    beyond = pytest.approx(0.5 * math.erfc(0.1 / math.sqrt(2)), abs=0.02)  # at the window's start, and lost behind it
    assert (share(early == 1), share(late == 0)) == (beyond, beyond)
    assert ((moved >= 0) & (moved <= 1)).all()
    stamps = disturbed(times[1], Faults(spike_jitter=0.2), clock=Clock(4)).unique()
    assert stamps.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_shares_of_spikes_and_neurons_are_those_asked_for():
    activations = torch.rand(50, 4000).clamp(1e-3)
    assert share(disturbed(activations, Faults(lost_spikes=0.2)) == 0) == pytest.approx(0.2, abs=0.01)
    broken = draw_broken(activations, Faults(dead_neurons=0.1, stuck_neurons=0.3))
    assert (share(broken.dead), share(broken.stuck)) == (pytest.approx(0.1, abs=0.02), pytest.approx(0.3, abs=0.03))
    assert not (broken.dead & broken.stuck).any()


def test_gradients_go_through_what_is_left():
    activations = torch.rand(100, 50).mul_(torch.rand(100, 50) > 0.3).requires_grad_()
    left = spikes_in_training(activations, Faults(spike_jitter=0.05, lost_spikes=0.3, dead_neurons=0.2), None)
    (gradient,) = torch.autograd.grad(left.sum(), activations)
    assert (gradient[(left == 0) & (activations > 0)] == 0).all()
    assert (gradient[left > 0] == 1).all()
    assert 0.7 < gradient[activations == 0].mean().item() < 0.9  # of those that are not dead, spikes can appear


def test_weights_are_off_by_a_share_of_their_magnitude():
    weight = torch.tensor([[2.0, -0.5, 0.0]]).expand(40_000, 3)
    factors = weight_factors(weight, 0.1)
    assert factors.std().item() == pytest.approx(0.1, rel=0.02)
    assert (factors - 1).abs().max().item() <= 0.4 + 1e-6
    quantised = quantise_weight(weight[:10], 4)
    off, unit = quantised.multiplied(factors[:10], None), float(quantised.unit.max()) / 2**8
    torch.testing.assert_close(off.dequantise(), quantised.dequantise() * factors[:10], rtol=0, atol=unit)
    assert int(off.integers.abs().max()) <= off.limit


def test_registers_hold_disturbed_weights_as_they_hold_others():
    network = saturating_network()
    for state_bits in (11, 62):
        run = partial(simulate, network, [torch.rand(6, 40)], steps=8, weight_bits=8, state_bits=state_bits)
        whole, off = (run(faults=Faults(weight_noise=noise)).to_dict()["activity"] for noise in (0.0, 1e-9))
        assert whole == off


@pytest.mark.parametrize("grid", [None, Grid(64, 8)])
def test_weight_noise_disturbs_the_weights_of_delayed_spikes(grid):
    layer = DFTLinear(4, 4, skip=4, weight_standardisation=False, neuron=Neuron(0.0))
    layer.weight.data.zero_()
    layer.put_on_grid(grid)
    train_for(layer, Faults(weight_noise=0.2))
    spikes = layer(torch.zeros(2, 4), skip=torch.full((2, 4), 0.25))
    spikes.sum().backward()
    factors = 4 * spikes[0].detach()
    torch.testing.assert_close(layer.skip_weight.grad, 0.5 * factors, rtol=0, atol=0.1)
    quantised = quantise_weight(torch.eye(4), 8).with_skip_weights(torch.ones(4))
    noisy = FaultyChip(Faults(weight_noise=0.2), Clock(8), 0).weights(quantised)
    for drawn in (factors, noisy.skip_weight / (256 * quantised.skip_weight)):
        assert (drawn - 1).abs().max() < 0.9
        assert len(set(drawn.tolist())) == 4


@pytest.mark.parametrize("grid", [None, Grid(8, 4), Grid(4)])
def test_faults_happen_in_training_alone(network, grid, device):
    images = torch.rand(8, 1, 8, 8, device=device)
    put_on_grid(network.to(device), grid)
    whole = network.eval()(images)
    train_for(network, ALL)
    assert torch.equal(network.eval()(images), whole)
    network.train()
    first, second = network(images), network(images)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    train_for(network, None)
    assert torch.equal(network(images), whole)


def test_faults_are_of_every_layer_and_broken_neurons_are_broken_for_all_images():
    network, encoder = cnn1(width=0.25), AnalogEncoder(1, 4, 3)
    train_for(network, Faults(dead_neurons=0.5, stuck_neurons=0.5))
    first, second = network.hidden(torch.rand(2, 1, 28, 28)).detach()
    assert torch.equal(first, second)
    assert first.unique().tolist() == [0.0, 1.0]
    train_for(encoder, Faults(lost_spikes=1.0))
    assert not encoder(torch.rand(2, 1, 6, 6)).any()


@pytest.mark.parametrize("name", ["spike_jitter", "weight_noise", "dead_neurons", "stuck_neurons", "lost_spikes"])
def test_simulated_chip_is_that_of_its_seed(network, name):
    run = partial(simulate, network, [torch.rand(40, 1, 8, 8)], steps=16, keep_spike_times=True)
    faults = Faults(**{name: 0.2})
    one, *others = (run(**options).spike_steps for options in ({"faults": faults}, {"faults": faults, "seed": 1}, {}))
    assert all(torch.equal(steps, one[layer]) for layer, steps in run(faults=faults).spike_steps.items())
    for other in others:
        assert any(not torch.equal(steps, one[layer]) for layer, steps in other.items())
