"""Layers in integers: exactness and error; loops over steps and synapses judge them in `tests/chip`."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.nn.common import activations, randomised
from ttfs_triton.nn import DFTConv2d, DFTLinear, Neuron, Readout
from ttfs_triton.nn.grid import Clock, Ramp
from ttfs_triton.nn.integers import exact_products, quantise_weight
from ttfs_triton.nn.on_chip import ClockedLayer


def clocked(layer, clock, bits=8, **options):
    quantised = quantise_weight(layer.effective_weight(), bits).with_skip_weights(layer.skip_weights())
    return ClockedLayer(layer, quantised, clock, **options)


def remaining_steps(*shape, steps, seed):
    return (activations(*shape, seed=seed) * steps).round().float()


@settings(max_examples=30)
@given(
    st.booleans(),
    st.sampled_from([2, 4, 8, 16, 64]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([3, 8, None]),
    st.integers(0, 10**6),
)
def test_spike_time_error_is_at_most_half_a_step(convolution, steps, sigma, bits, seed):
    """Against the closed form of the same inputs, and of the weights and potentials that the integers stand for."""
    sizes, shape = ((2, 4, 3, 2, 1), (4, 2, 7, 7)) if convolution else ((30, 40), (4, 30))
    kind = DFTConv2d if convolution else DFTLinear
    layer = randomised(kind(*sizes, neuron=Neuron(sigma)).double(), seed)
    x = remaining_steps(*shape, steps=steps, seed=seed)
    simulated = clocked(layer, Clock(steps), bits)
    rounded = kind(*sizes, weight_standardisation=False, neuron=layer.neuron).double()
    with torch.no_grad(), exact_products():
        rounded.weight.copy_(quantise_weight(layer.effective_weight(), bits).dequantise())
        rounded.bias.copy_(simulated.height(simulated.preset).flatten())
        instant = Ramp(simulated.clock, simulated.unit).first_instant(*simulated.integrate(x))
        error = rounded(x.double() / steps) - simulated.clock.remaining(instant).double() / steps
    tolerance = 1e-4 / steps  # σ and the ramp are kept to 16 binary places
    assert (error.abs() <= 0.5 / steps + tolerance).all()


def test_too_many_steps_for_62_bits_are_rejected():
    layer = DFTLinear(4, 2, weight_standardisation=False)
    torch.nn.init.constant_(layer.weight, 1e-9)
    torch.nn.init.constant_(layer.bias, 100.0)
    with pytest.raises(ValueError, match=r"simulate: steps must keep potentials below 2\^62; got 4096 steps"):
        clocked(layer, Clock(4096), None)


def test_neurons_without_their_common_initial_potential():
    layer, x = Readout(3, 2, threshold=20.0, initial_potential=10.0), remaining_steps(4, 3, steps=8, seed=0)
    with_common = clocked(layer, Clock(8))
    layer.initial_potential = 0.0
    without, membrane = clocked(layer, Clock(8)), with_common.integrate(x)
    found, expected = membrane._replace(potential=membrane.potential - with_common.common), without.integrate(x)
    assert torch.equal(without.after(found, 3), expected.potential + 3 * expected.drift)
