from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from tests.clocked_oracle import Neurons, conv2d, linear
from tests.nn.common import activations, randomised
from ttfs_triton.nn import DFTConv2d, DFTLinear, Neuron, PotentialReadout
from ttfs_triton.nn.clock import Clock, Ramp
from ttfs_triton.nn.clocked import ClockedLayer, earliest_input
from ttfs_triton.nn.integers import exact_products, quantise_weight

PAIR = st.tuples(st.integers(1, 2), st.integers(1, 2))
SIGMAS = st.sampled_from([0.0, 0.25, 0.3, 1.0])
BITS = st.sampled_from([2, 4, 8, 16, None])
COMPARE_AT = st.sampled_from(["middle", "start"])


def clocked(layer, clock, bits=8, per_channel=True, **options):
    quantised = quantise_weight(layer.effective_weight(), bits, per_channel=per_channel)
    return ClockedLayer(layer, quantised, clock, **options), quantised


def neurons(layer, quantised, clock, register=None):
    """The same layer for the oracle."""
    return Neurons(
        quantised.integers.long().numpy(),
        quantised.unit.numpy(),
        np.zeros(len(quantised.unit)) if layer.bias is None else layer.bias.detach().double().numpy(),
        clock.steps,
        middle=clock.compare_at == "middle",
        psp_persistence=layer.neuron.psp_persistence,
        register=register,
    )


def remaining_steps(*shape, steps, seed):
    return (activations(*shape, seed=seed) * steps).round().float()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    PAIR,
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    PAIR,
    st.sampled_from([1, 2]),
    SIGMAS,
    BITS,
    st.booleans(),
    COMPARE_AT,
    st.integers(1, 9),
    st.integers(0, 10**6),
)
def test_conv2d_engines_and_loops_agree(
    kernel, stride, padding, dilation, groups, sigma, bits, per_channel, compare_at, steps, seed
):
    assume(all(4 + 2 * padding[i] > dilation[i] * (kernel[i] - 1) for i in (0, 1)))
    assume(kernel != (1, 1))
    layer = DFTConv2d(2, 4, kernel, stride, padding, dilation, groups, neuron=Neuron(sigma))
    clock = Clock(steps, compare_at)
    simulated, quantised = clocked(randomised(layer, seed), clock, bits, per_channel)
    x = remaining_steps(2, 2, 4, 4, steps=steps, seed=seed)
    with exact_products():
        summed, stepped = simulated.integrate(x), simulated.integrate_stepped(x)
    assert torch.equal(summed.potential, stepped.potential)
    assert torch.equal(summed.drift, stepped.drift)
    ramp = Ramp(clock, simulated.unit)
    instant = ramp.first_instant(*summed)
    assert torch.equal(instant, ramp.first_instant_stepped(*stepped))
    oracle = neurons(layer, quantised, clock)
    expected = conv2d(oracle, steps - x.long().numpy(), stride, padding, dilation, groups)
    np.testing.assert_array_equal(instant.numpy(), expected)
    np.testing.assert_array_equal(clock.step_of(instant).numpy(), oracle.stamps(expected))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), SIGMAS, BITS, COMPARE_AT, st.integers(1, 20), st.booleans(), st.integers(0, 10**6))
def test_linear_engines_and_loops_agree(inputs, sigma, bits, compare_at, steps, bias, seed):
    layer = DFTLinear(inputs, 5, neuron=Neuron(sigma), bias=bias, weight_standardisation=False)
    clock = Clock(steps, compare_at)
    simulated, quantised = clocked(randomised(layer, seed), clock, bits)
    x = remaining_steps(3, inputs, steps=steps, seed=seed)
    summed, stepped = simulated.integrate(x), simulated.integrate_stepped(x)
    assert torch.equal(summed.potential, stepped.potential)
    assert torch.equal(summed.drift, stepped.drift)
    indices, potential, slope = linear(neurons(layer, quantised, clock), steps - x.long().numpy())
    np.testing.assert_array_equal(summed.potential.numpy(), potential * 2**17)
    np.testing.assert_array_equal(summed.drift.numpy(), slope * round(sigma * 2**16))
    instant = Ramp(clock, simulated.unit).first_instant(*summed)
    np.testing.assert_array_equal(instant.numpy(), indices)
    height = potential * quantised.unit.numpy() / steps
    np.testing.assert_allclose(simulated.height(summed.potential).numpy(), height, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SIGMAS, st.sampled_from([2, 4]), COMPARE_AT, st.integers(1, 12), st.integers(3, 200), st.integers(0, 10**6))
def test_registers_saturate_after_each_step(sigma, bits, compare_at, steps, register, seed):
    layer = randomised(DFTLinear(20, 6, neuron=Neuron(sigma), weight_standardisation=False), seed)
    clock = Clock(steps, compare_at)
    simulated, quantised = clocked(layer, clock, bits, register=register)
    x = remaining_steps(4, 20, steps=steps, seed=seed)
    membrane = simulated.integrate(x)
    indices, potential, slope = linear(neurons(layer, quantised, clock, register), steps - x.long().numpy())
    np.testing.assert_array_equal(membrane.potential.numpy(), potential * 2**17)
    np.testing.assert_array_equal(membrane.drift.numpy(), slope * round(sigma * 2**16))
    np.testing.assert_array_equal(simulated.ramp().first_instant(*membrane).numpy(), indices)
    assert simulated.may_saturate or abs(potential).max() <= register


def test_wide_registers_change_nothing_and_cost_nothing():
    layer = randomised(DFTLinear(20, 6), 0)
    wide, narrow = (clocked(layer, Clock(8), 4, register=register)[0] for register in (2**20, 20))
    assert (wide.may_saturate, narrow.may_saturate) == (False, True)
    x = remaining_steps(4, 20, steps=8, seed=0)
    assert torch.equal(wide.integrate(x).potential, clocked(layer, Clock(8), 4)[0].integrate(x).potential)


@pytest.mark.parametrize("known", [False, True])
def test_a_known_reach_gives_the_same_membranes(known):
    layer = randomised(DFTConv2d(2, 4, 3, padding=1, neuron=Neuron(0.3)), 0)
    quantised = quantise_weight(layer.effective_weight(), 4)
    reach = 7 * 18 if known else None
    found = ClockedLayer(layer, quantised, Clock(9), reach=reach)
    assert found.dtype is torch.float64  # divisions of eight numbers at a time
    x = remaining_steps(3, 2, 5, 5, steps=9, seed=0)
    exact = ClockedLayer(layer, quantised, Clock(9))
    exact.dtype, exact.preset, exact._start = torch.int64, exact.preset.long(), exact._start.long()
    for ours, theirs in zip(found.integrate(x), exact.integrate(x), strict=True):
        assert torch.equal(ours.long(), theirs)
    fired = [layer.ramp().first_instant(*layer.integrate(x)).long() for layer in (found, exact)]
    assert torch.equal(*fired)


def closed_form_error(layer, clock, x, bits):
    """Spike-time error of each neuron in windows, and activations, given the same inputs and weights."""
    simulated, quantised = clocked(layer, clock, bits)
    with torch.no_grad(), exact_products():
        exact = type(layer).forward(rounded(layer, simulated, quantised), x)
        instant = Ramp(clock, simulated.unit).first_instant(*simulated.integrate((x * clock.steps).float()))
    return exact - clock.remaining(instant).double() / clock.steps


def rounded(layer, simulated, quantised):
    """The layer with the weights and initial potentials that its integers stand for."""
    same = type(layer)(*sizes(layer), weight_standardisation=False, neuron=layer.neuron).double()
    with torch.no_grad():
        same.weight.copy_(quantised.dequantise())
        same.bias.copy_(simulated.height(simulated.preset).flatten())
    return same


def sizes(layer):
    if isinstance(layer, DFTLinear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding


@settings(max_examples=40, deadline=None)
@given(
    st.booleans(),
    COMPARE_AT,
    st.sampled_from([2, 4, 8, 16, 64]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([3, 8, None]),
    st.integers(0, 10**6),
)
def test_spike_time_error_is_at_most_a_step(convolution, compare_at, steps, sigma, bits, seed):
    if convolution:
        layer, shape = DFTConv2d(2, 4, 3, 2, 1, neuron=Neuron(sigma)), (4, 2, 7, 7)
    else:
        layer, shape = DFTLinear(30, 40, neuron=Neuron(sigma)), (4, 30)
    x = remaining_steps(*shape, steps=steps, seed=seed).double() / steps
    error = closed_form_error(randomised(layer.double(), seed), Clock(steps, compare_at), x, bits)
    tolerance = 1e-4 / steps  # σ and the ramp are kept to 16 binary places
    if compare_at == "middle":
        assert (error.abs() <= 0.5 / steps + tolerance).all()
    else:  # never early
        assert ((error >= -tolerance) & (error <= 1 / steps + tolerance)).all()


@pytest.mark.parametrize("compare_at", ["middle", "start"])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_mean_spike_time_error_halves_with_doubled_steps(compare_at, sigma):
    layer = randomised(DFTLinear(50, 400, neuron=Neuron(sigma)).double(), 0)
    x = (activations(20, 50, seed=1) * 8).round() / 8
    errors = [
        float(closed_form_error(layer, Clock(steps, compare_at), x, 8).abs().mean()) for steps in (8, 16, 32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert 0.4 < fine / coarse < 0.6


def test_sums_use_float32_only_where_they_fit():
    layer = DFTLinear(4608, 2, weight_standardisation=False)
    torch.nn.init.uniform_(layer.weight, -1, 1)
    assert clocked(layer, Clock(32), 8)[0].weight.dtype is torch.float32
    large, quantised = clocked(layer, Clock(128), 16)
    assert large.weight.dtype is torch.float64
    x = remaining_steps(3, 4608, steps=128, seed=0)
    potential = x.long() @ quantised.integers.long().T
    with exact_products():
        assert torch.equal(large.integrate(x).potential, (potential << 17) + large.preset)


def test_too_many_steps_for_62_bits_are_rejected():
    layer = DFTLinear(4, 2, weight_standardisation=False)
    torch.nn.init.constant_(layer.weight, 1e-9)
    torch.nn.init.constant_(layer.bias, 100.0)
    with pytest.raises(ValueError, match=r"simulate: steps must keep potentials below 2\^62; got 4096 steps"):
        clocked(layer, Clock(4096), None)


def test_neurons_without_their_common_initial_potential():
    layer = PotentialReadout(3, 2, threshold=20.0, initial_potential=10.0)
    with_common, _ = clocked(layer, Clock(8))
    layer.initial_potential = 0.0
    without, _ = clocked(layer, Clock(8))
    x = remaining_steps(4, 3, steps=8, seed=0)
    found, expected = with_common.without_initial_potential(with_common.integrate(x)), without.integrate(x)
    assert torch.equal(found.potential, expected.potential)
    assert torch.equal(found.drift, expected.drift)
    assert torch.equal(without.after(found, 3), expected.potential + 3 * expected.drift)


def test_earliest_input_of_padded_groups():
    layer = DFTConv2d(2, 2, 2, 2, 2, groups=2)
    x = torch.zeros(1, 2, 2, 2)
    x[0, 0, 0, 0], x[0, 0, 1, 1], x[0, 1, 1, 0] = 3, 7, 1
    found = earliest_input(layer, x)
    assert found[0, 0].tolist() == [[0, 0, 0], [0, 7, 0], [0, 0, 0]]
    assert found[0, 1].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    dilated = DFTConv2d(2, 2, 2, dilation=2, groups=2)
    x = torch.zeros(1, 2, 3, 4)
    x[0, 0, 1, 1], x[0, 0, 2, 3] = 7, 3  # only the second lies on a tap
    assert earliest_input(dilated, x).tolist() == [[[[0, 3]], [[0, 0]]]]
