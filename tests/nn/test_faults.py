"""Chips with faults: what happens to spikes, weights and neurons, in training and in the simulator."""

import math
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from tests.chip.networks import saturating_network
from tests.nn.common import randomised
from ttfs_triton.chip import simulate
from ttfs_triton.chip.simulator import FaultyChip
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTLinear,
    Faults,
    Grid,
    NetworkConfig,
    Neuron,
    TTFSNetwork,
    cnn1,
    put_on_grid,
    train_for,
)
from ttfs_triton.nn.faults import disturbed, draw_broken, spikes_in_training, weight_factors
from ttfs_triton.nn.grid import Clock
from ttfs_triton.nn.integers import quantise_weight

ALL = Faults(spike_jitter=0.1, weight_noise=0.1, dead_neurons=0.1, stuck_neurons=0.05, lost_spikes=0.1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def network():
    config = NetworkConfig("4C3-P2-12", image_size=(8, 8), classes=3, neuron=Neuron(0.25, surrogate_width=0.5))
    return randomised(TTFSNetwork(config), 0)


def test_jitter_moves_spikes_within_their_window_by_its_standard_deviation_and_no_silent_neuron():
    silent, middle, early, late = (torch.full((40_000,), value) for value in (0.0, 0.5, 0.99, 0.01))
    found = disturbed(torch.stack([silent, middle, early, late]), Faults(spike_jitter=0.1), generator=generator())
    assert (found[0] == 0).all()
    assert found[1].std().item() == pytest.approx(0.1, rel=0.02)
    assert found[1].mean().item() == pytest.approx(0.5, abs=0.002)
    share = pytest.approx(0.5 * math.erfc(0.1 / math.sqrt(2)), abs=0.02)  # at the window's start, and lost behind it
    assert ((found[2] == 1).float().mean().item(), (found[3] == 0).float().mean().item()) == (share, share)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize(("jitter", "stamps"), [(0.2, [0.0, 0.25, 0.5, 0.75, 1.0]), (0.01, [0.5])])
def test_jitter_on_a_clock_moves_whole_steps(jitter, stamps):
    found = disturbed(torch.full((1000,), 0.5), Faults(spike_jitter=jitter), clock=Clock(4), generator=generator())
    assert sorted(found.unique().tolist()) == stamps


def test_shares_of_spikes_and_neurons_are_those_asked_for():
    activations = torch.rand(50, 4000) + 1e-3
    lost = disturbed(activations.clamp(max=1), Faults(lost_spikes=0.2), generator=generator())
    assert (lost == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    broken = draw_broken(activations, Faults(dead_neurons=0.1, stuck_neurons=0.3), generator())
    assert broken is not None
    assert broken.dead.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert broken.stuck.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not (broken.dead & broken.stuck).any()
    assert draw_broken(activations, Faults(lost_spikes=0.5)) is None


def test_gradients_go_through_what_is_left():
    activations = torch.rand(100, 50).mul_(torch.rand(100, 50) > 0.3).requires_grad_()
    found = spikes_in_training(activations, Faults(spike_jitter=0.05, lost_spikes=0.3, dead_neurons=0.2), None)
    (gradient,) = torch.autograd.grad(found.sum(), activations)
    lost = (found == 0) & (activations > 0)
    assert (gradient[lost] == 0).all()
    assert (gradient[found > 0] == 1).all()
    silent = gradient[activations == 0]
    assert 0.7 < silent.mean().item() < 0.9  # of those that are not dead, spikes can appear


def test_weights_are_off_by_a_share_of_their_magnitude():
    weight = torch.tensor([[2.0, -0.5, 0.0]]).expand(40_000, 3)
    factors = weight_factors(weight, 0.1, generator())
    assert factors.std().item() == pytest.approx(0.1, rel=0.02)
    assert (factors - 1).abs().max().item() <= 0.4 + 1e-6
    quantised = quantise_weight(weight[:10], 4)
    off, unit = quantised.multiplied(factors[:10], None), float(quantised.unit.max()) / 2**8
    torch.testing.assert_close(off.dequantise(), quantised.dequantise() * factors[:10], rtol=0, atol=unit)
    assert int(off.integers.abs().max()) <= off.limit


@pytest.mark.parametrize("state_bits", [11, 62])
def test_registers_hold_disturbed_weights_as_they_hold_others(state_bits):
    run = partial(simulate, saturating_network(), [torch.rand(6, 40)], steps=8, weight_bits=8, state_bits=state_bits)
    whole, off = (run(faults=Faults(weight_noise=noise)).to_dict()["activity"] for noise in (0.0, 1e-9))
    assert whole == off


@pytest.mark.parametrize("grid", [None, Grid(64, 8)])
def test_weight_noise_disturbs_the_weights_of_delayed_spikes(grid):
    layer = DFTLinear(4, 4, skip=4, weight_standardisation=False, neuron=Neuron(0.0))
    layer.weight.data.zero_()
    layer.put_on_grid(grid)
    train_for(layer, Faults(weight_noise=0.2))
    found = layer(torch.zeros(2, 4), skip=torch.full((2, 4), 0.25))
    found.sum().backward()
    factors = 4 * found[0].detach()
    torch.testing.assert_close(layer.skip_weight.grad, 0.5 * factors, rtol=0, atol=0.1)
    quantised = quantise_weight(torch.eye(4), 8).with_skip_weights(torch.ones(4))
    noisy = FaultyChip(Faults(weight_noise=0.2), Clock(8), 0).weights(quantised)
    for each in (factors, noisy.skip_weight / (256 * quantised.skip_weight)):
        assert (each - 1).abs().max() < 0.9
        assert len(set(each.tolist())) == 4


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
    network = cnn1(width=0.25)
    train_for(network, Faults(dead_neurons=1.0))
    assert not network.hidden(torch.rand(2, 1, 28, 28)).any()
    train_for(network, Faults(dead_neurons=0.5, stuck_neurons=0.5))
    first, second = network.hidden(torch.rand(2, 1, 28, 28)).detach()
    assert torch.equal(first, second)
    assert first.unique().tolist() == [0.0, 1.0]
    encoder = AnalogEncoder(1, 4, 3)
    train_for(encoder, Faults(lost_spikes=1.0))
    assert not encoder(torch.rand(2, 1, 6, 6)).any()


@pytest.mark.parametrize(
    "faults",
    [Faults(0.1), Faults(0, 0.2), Faults(0, 0, 0.2), Faults(0, 0, 0, 0.1), Faults(0, 0, 0, 0, 0.3)],
    ids=lambda faults: faults.text(),
)
def test_simulated_chip_is_that_of_its_seed(network, faults):
    run = partial(simulate, network, [torch.rand(40, 1, 8, 8)], steps=16, keep_spike_times=True)
    one, *others = (run(**options).spike_steps for options in ({"faults": faults}, {"faults": faults, "seed": 1}, {}))
    assert all(torch.equal(steps, one[name]) for name, steps in run(faults=faults).spike_steps.items())
    for other in others:
        assert any(not torch.equal(steps, one[name]) for name, steps in other.items())


def test_spikes_in_the_simulator_come_at_the_stamps_that_they_were_moved_to():
    clock, faults, instant = Clock(100), Faults(spike_jitter=0.2), torch.arange(101)[None]
    moved = disturbed(clock.remaining(instant) / 100, faults, None, clock, torch.Generator().manual_seed(0))
    assert torch.equal(clock.remaining(FaultyChip(faults, clock, 0).spikes(Mock(kind="spiking"), instant)) / 100, moved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({"lost_spikes": value}, f"lost_spikes\n.*input_value={value}") for value in (-0.1, float("nan"), True)),
        ({"dead_neurons": 0.7, "stuck_neurons": 0.6}, r"must be at most 1 together; got 1\.3"),
    ],
)
def test_faults_reject_what_is_no_share(values, message):
    with pytest.raises(ValueError, match=message):
        Faults(**values)
