"""Networks on a chip's grid: what they compute, how they are differentiated, what carries the grid."""

import math
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from tests.chip.networks import READOUTS, small_network
from tests.nn.common import activations, randomised
from ttfs_kernels import dft_conv2d, dft_linear
from ttfs_triton.chip import simulate
from ttfs_triton.nn import DFTConv2d, DFTLinear, Faults, Grid, NetworkConfig, Neuron, TTFSNetwork, network_graph
from ttfs_triton.nn.grid import Clock, first_instant
from ttfs_triton.nn.on_chip import RoundedLayer
from ttfs_triton.nn.prepare import plain_synapses, put_on_grid, train_for

GRIDS = [
    Grid(4, 4),
    Grid(1, 2, per_channel=False),
    Grid(7, None),
    Grid(16, 8),
    Grid(5, 4, state_bits=11),
    Grid(3, 16, state_bits=24),
]


def network_on(grid, seed, sigma=0.25, readout="start", device=None):
    network = small_network(seed, sigma, readout).to(device).eval()
    put_on_grid(network, grid)
    return network


@settings(max_examples=40)
@given(
    st.sampled_from(GRIDS),
    st.sampled_from(sorted(READOUTS)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_network_on_a_grid_fires_in_the_simulators_steps(grid, readout, sigma, seed, training):
    network = network_on(grid, seed, sigma, readout).train(training)
    images = activations(6, 2, 5, 4, seed=seed).float()
    result = simulate(network, [images], keep_spike_times=True)
    assert (result.settings.steps, result.settings.weight_bits) == (grid.time_steps, grid.weight_bits)
    arriving = []

    def fire(stage, inputs, skip):
        arriving.append(inputs)
        value = stage.activations(inputs, skip)
        if stage.kind != "readout":
            assert torch.equal(((1 - value) * grid.time_steps).round().int(), result.spike_steps[stage.name])
        return value

    logits = network_graph(network, images.shape[1:]).run(images, fire)
    decided = network[-1].decide(arriving[-1])
    assert torch.equal(decided.prediction, result.first_spike_predictions)
    assert int(decided.tie.sum()) == result.ties
    assert int(decided.no_spike.sum()) == result.no_spike
    if network[-1].at != "first_spike":
        assert torch.equal(logits.argmax(1), result.predictions)
        read = arriving[-1].double()
        read = read + sigma * (read > 0) if network[-1].at == "potential_end" else read
        torch.testing.assert_close(logits.double(), F.linear(read, *plain_synapses(network[-1])), rtol=0, atol=1e-3)


def test_network_on_a_grid_computes_the_same_on_every_device(device):
    for grid in GRIDS[:3]:
        images = activations(6, 2, 5, 4, seed=1).float()
        here, there = network_on(grid, 1), network_on(grid, 1, device=device)
        rounding = 1e-6 if grid.weight_bits is None else 0.0  # of real weights' sums
        torch.testing.assert_close(here(images), there(images.to(device)).cpu(), rtol=0, atol=rounding)
        fine = simulate(here, [images], steps=64, keep_spike_times=True).spike_steps["0"]
        assert len(fine.unique()) > 40  # the image is not rounded to the grid's steps first


@pytest.mark.parametrize(
    ("make", "shape", "closed_form"),
    [
        (lambda: DFTConv2d(2, 4, 3, padding=1, neuron=Neuron(0.25)), (6, 2, 5, 4), partial(dft_conv2d, padding=1)),
        (lambda: DFTLinear(12, 5, neuron=Neuron(0.0)), (6, 12), dft_linear),
        (lambda: DFTLinear(12, 5), (6, 12), dft_linear),
    ],
)
@pytest.mark.parametrize("steps", [4, 64])
def test_spikes_are_half_a_step_from_the_closed_form_of_rounded_weights_and_have_its_gradients(
    make, shape, closed_form, steps
):
    layer = randomised(make(), 3)
    layer.put_on_grid(Grid(steps, 8))
    layer.log2_unit.data += 0.1  # no weight is cut
    x = ((activations(*shape, seed=0) * steps).round() / steps).float().requires_grad_()
    spikes, effective = layer(x), layer.effective_weight()
    upstream = torch.randn(spikes.shape)
    ours = torch.autograd.grad((spikes * upstream).sum(), [x, layer.weight, layer.weight_gain, layer.bias])
    weight, bias = (tensor.float().requires_grad_() for tensor in RoundedLayer(layer, effective).numbers())
    y = closed_form(x, weight, bias, neuron=layer.neuron)
    assert (spikes - y).abs().max() <= (0.5 + 1e-4) / steps  # σ and the ramp have 16 binary places
    by_x, by_weight, by_bias = torch.autograd.grad((y * upstream).sum(), [x, weight, bias])
    by_latent, by_gain = torch.autograd.grad((effective * by_weight).sum(), [layer.weight, layer.weight_gain])
    for gradient, expected in zip(ours, [by_x, by_latent, by_gain, by_bias], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_gradients_of_weights_and_units_pass_through_rounding():
    """Of a unit: Esser et al., Eq. 3. Weights that are cut are not driven further out."""
    layer = DFTLinear(40, 3, weight_standardisation=False)
    layer.put_on_grid(Grid(4, 3))
    upstream, unit = torch.randn(3, 40), layer.log2_unit.detach().double().exp2()
    rounded = RoundedLayer(layer, layer.weight).weight
    by_weight, by_unit = torch.autograd.grad((rounded * upstream).sum(), [layer.weight, layer.log2_unit])
    scaled = layer.weight.detach().double() / unit[:, None]
    integers, cut = scaled.round().clamp(-3, 3), scaled.abs() > 3
    slope = torch.where(cut, integers, integers - scaled)
    torch.testing.assert_close(by_unit.double(), (slope * upstream).sum(1) * unit * math.log(2), rtol=1e-5, atol=1e-6)
    further = cut & (upstream.sign() == -scaled.sign())  # gradient descent goes against `upstream`
    assert further.any()
    assert torch.equal(by_weight, upstream.masked_fill(further, 0.0))


@pytest.mark.parametrize("grid", [None, Grid(8, 4), Grid(8)])
def test_networks_in_16_bits_train_on_grids_and_with_faults(grid):
    """By autocast they compute the same integers."""
    config = NetworkConfig("4C3-(4C3-4C3)-P2-8", image_size=(8, 8), readout="potential_end", grid=grid)
    network, images = TTFSNetwork(config), torch.rand(4, 1, 8, 8)
    expected = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert grid is None or torch.equal(network(images), expected)
    network.bfloat16()
    train_for(network, Faults(spike_jitter=0.1))
    network(images.bfloat16()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@settings(max_examples=100)
@given(
    st.integers(1, 40),
    st.sampled_from([torch.int64, torch.float64]),
    st.sampled_from([0.5, 1.0, 20.0]),
    st.integers(1, 2**18),
    st.integers(0, 10**6),
)
def test_first_instant_is_the_first_true_comparison(steps, dtype, threshold, reach, seed):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(3, generator=generator, dtype=torch.float64) + 0.01
    fall, instants = (2**16 * threshold / unit).round(), [0, *range(1, 2 * steps, 2)]
    potential = torch.randint(-reach << 17, reach << 17, (50, 3), generator=generator)
    drift = torch.randint(-reach << 15, reach << 15, (50, 3), generator=generator)
    first = first_instant(potential.to(dtype), drift.to(dtype), fall.to(dtype), Clock(steps))
    for n, c in np.ndindex(50, 3):
        start, moves = int(potential[n, c]), int(drift[n, c])
        falls = int(fall[c])
        true = [index for index, half in enumerate(instants) if start + moves * half >= falls * (2 * steps - half)]
        assert int(first[n, c]) == (true[0] if true else Clock(steps).never)


def test_first_instant_at_equality_fires():
    # Potentials have 17 binary places a step. The ramp in the middle of step 1, instant 2, is 5/8 of its height.
    high, middle = 4 * 2**17, 4 * 2**17 * 5 // 8
    potential = torch.tensor([[middle], [middle - 1], [high], [high - 1]])
    first = first_instant(potential, torch.zeros_like(potential), torch.tensor([2**16]), Clock(4))
    assert first.flatten().tolist() == [2, 3, 0, 1]
