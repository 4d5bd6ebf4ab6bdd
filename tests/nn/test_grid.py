"""Networks on a chip's grid: what they compute, how they are differentiated, what carries the grid."""

from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.chip.networks import READOUTS, small_network
from tests.nn.common import activations, randomised
from ttfs_kernels import dft_conv2d, dft_linear
from ttfs_triton.chip import simulate
from ttfs_triton.nn import (
    DFTConv2d,
    DFTLinear,
    Faults,
    Grid,
    NetworkConfig,
    TTFSNetwork,
    network_graph,
    put_on_grid,
    train_for,
)
from ttfs_triton.nn.grid import Clock, Ramp
from ttfs_triton.nn.integers import fitting_unit, quantise_weight
from ttfs_triton.nn.on_chip import RoundedLayer

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
    found = simulate(network, [images], keep_spike_times=True)
    assert (found.settings.steps, found.settings.weight_bits) == (grid.time_steps, grid.weight_bits)
    arriving = []

    def fire(stage, inputs, skip):
        arriving.append(inputs)
        value = stage.activations(inputs, skip)
        if stage.kind != "readout":
            assert torch.equal(((1 - value) * grid.time_steps).round().int(), found.spike_steps[stage.name])
        return value

    logits = network_graph(network, images.shape[1:]).run(images, fire)
    decided = network[-1].decide(arriving[-1])
    assert torch.equal(decided.prediction, found.first_spike_predictions)
    assert int(decided.tie.sum()) == found.ties
    assert int(decided.no_spike.sum()) == found.no_spike
    if network[-1].at != "first_spike":
        assert torch.equal(logits.argmax(1), found.predictions)


def test_network_on_a_grid_computes_the_same_on_every_device(device):
    for grid in GRIDS[:3]:
        images = activations(6, 2, 5, 4, seed=1).float()
        here, there = network_on(grid, 1), network_on(grid, 1, device=device)
        assert torch.equal(here(images), there(images.to(device)).cpu())
        fine = simulate(here, [images], steps=64, keep_spike_times=True).spike_steps["0"]
        assert len(fine.unique()) > 40  # the image is not rounded to the grid's steps first


def test_analog_encoder_on_a_grid_decides_as_its_simulation(device):
    config = NetworkConfig("6C3-P2-8", 2, (6, 6), 3, encoder="analog", mean=(0.4, 0.5), std=(0.2, 0.3))
    for encoder in ("analog", "signed"):
        network = TTFSNetwork(config.replace(encoder=encoder, grid=Grid(4, 3))).to(device).eval()
        images = torch.rand(130, 2, 6, 6)
        with torch.no_grad():
            logits = network(images.to(device))
        assert torch.equal(logits.argmax(1).cpu(), simulate(network, images.split(60)).predictions)


@pytest.mark.parametrize(
    ("make", "shape", "closed_form"),
    [
        (lambda: DFTConv2d(2, 4, 3, padding=1), (6, 2, 5, 4), partial(dft_conv2d, padding=1)),
        (lambda: DFTLinear(12, 5), (6, 12), dft_linear),
    ],
)
def test_gradients_are_those_of_the_closed_form_of_rounded_weights(make, shape, closed_form):
    layer = randomised(make(), 3)
    layer.put_on_grid(Grid(4, 8))
    layer.log2_unit.data += 0.1  # no weight is cut
    x = ((activations(*shape, seed=0) * 4).round() / 4).float().requires_grad_()
    upstream = torch.randn(layer(x).shape)
    ours = torch.autograd.grad((layer(x) * upstream).sum(), [x, layer.weight, layer.weight_gain, layer.bias])
    effective = layer.effective_weight()
    weight, bias = (tensor.float().requires_grad_() for tensor in RoundedLayer(layer, effective).numbers())
    y = closed_form(x, weight, bias, neuron=layer.neuron)
    by_x, by_weight, by_bias = torch.autograd.grad((y * upstream).sum(), [x, weight, bias])
    by_latent, by_gain = torch.autograd.grad((effective * by_weight).sum(), [layer.weight, layer.weight_gain])
    for found, expected in zip(ours, [by_x, by_latent, by_gain, by_bias], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_gradient_of_a_unit_is_that_of_the_rounded_weights():
    layer = DFTLinear(40, 3, weight_standardisation=False)
    layer.put_on_grid(Grid(4, 3))
    upstream, unit = torch.randn(3, 40), layer.log2_unit.detach().double().exp2()
    (found,) = torch.autograd.grad((RoundedLayer(layer, layer.weight).weight * upstream).sum(), layer.log2_unit)
    scaled = layer.weight.detach().double() / unit[:, None]
    integers = scaled.round().clamp(-3, 3)
    slope = torch.where(scaled.abs() > 3, integers, integers - scaled)  # Esser et al., Eq. 3
    expected = (slope * upstream).sum(1) * unit * torch.log(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_cut_weights_are_not_driven_further_out():
    layer = DFTLinear(4, 1, weight_standardisation=False)
    layer.put_on_grid(Grid(4, 2))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -3.0, 3.0, -3.0]]))
        layer.log2_unit.zero_()
    upstream = torch.tensor([[1.0, 1.0, -1.0, -1.0]])  # gradient descent goes against it
    (found,) = torch.autograd.grad((RoundedLayer(layer, layer.weight).weight * upstream).sum(), layer.weight)
    assert found.tolist() == [[1.0, 0.0, 0.0, -1.0]]


@settings(max_examples=20)
@given(st.integers(2, 6), st.booleans(), st.integers(0, 10**6))
def test_fitting_unit_rounds_better_than_the_largest_weight(bits, per_channel, seed):
    weight = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(seed))
    unit = fitting_unit(weight, bits, per_channel=per_channel)

    def error(unit):
        found = quantise_weight(weight, bits, per_channel=per_channel, unit=unit)
        return (found.dequantise() - weight).square().flatten(1).sum(1)

    fitted, widest = error(unit), error(None)
    assert (fitted <= widest + 1e-12).all() if per_channel else fitted.sum() <= widest.sum() + 1e-12
    assert per_channel or len(unit.unique()) == 1


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({"time_steps": 4} | {name: value}, f"1 validation error for Grid\n{name}\n.*input_value={value}")
            for name, value in (("time_steps", 0), ("time_steps", True), ("weight_bits", 1), ("state_bits", 63))
        ),
        ({"time_steps": 4, "bits": 2}, r"bits\n.*Unexpected keyword"),
        (4, r"values must be a mapping, with time_steps; got 4"),
    ],
)
def test_grid_rejects(values, message):
    with pytest.raises(ValueError, match=message):
        Grid.from_dict(values)


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
    ramp, instants = Ramp(Clock(steps), unit, threshold, dtype), [0, *range(1, 2 * steps, 2)]
    potential = torch.randint(-reach << 17, reach << 17, (50, 3), generator=generator)
    drift = torch.randint(-reach << 15, reach << 15, (50, 3), generator=generator)
    found = ramp.first_instant(potential.to(dtype), drift.to(dtype))
    for n, c in np.ndindex(50, 3):
        start, moves = int(potential[n, c]), int(drift[n, c])
        height, falls = int(ramp.height[c]), int(ramp.decrement[c])
        true = [index for index, half in enumerate(instants) if start + moves * half >= height - falls * half]
        assert int(found[n, c]) == (true[0] if true else ramp.never)


def test_first_instant_at_equality_fires():
    ramp = Ramp(Clock(4), torch.ones(1, dtype=torch.float64))
    # Potentials have 17 binary places a step. The ramp in the middle of step 1, instant 2, is 5/8 of its height.
    high, middle = 4 * 2**17, 4 * 2**17 * 5 // 8
    potential = torch.tensor([[middle], [middle - 1], [high], [high - 1]])
    assert ramp.first_instant(potential, torch.zeros_like(potential)).flatten().tolist() == [2, 3, 0, 1]
