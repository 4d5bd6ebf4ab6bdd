from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.hardware.simulation.event_driven import event_driven
from tests.nn.common import activations, randomised
from tests.oracles import event_driven as neuron_by_neuron
from ttfs_triton.hardware.simulation.simulator import simulate
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    EarliestSpikePool2d,
    FirstSpikeReadout,
    LatencyEncoder,
    NetworkError,
    Neuron,
    PotentialReadout,
    SignedEncoder,
    activation_to_spike_time,
)
from ttfs_triton.nn.specification import output_size

TOLERANCE = dict(rtol=0, atol=1e-9)


def small_network(seed, sigma, readout, *, bias=True, stride=1, padding=1, groups=1):
    size = output_size(output_size(6, 3, stride, padding), 2, 2)
    layers = [
        LatencyEncoder(),
        DFTConv2d(2, 4, 3, stride, padding, groups=groups, bias=bias, neuron=Neuron(sigma)),
        EarliestSpikePool2d(2),
        nn.Flatten(),
        DFTLinear(4 * size**2, 6, bias=bias, neuron=Neuron(sigma)),
        nn.Dropout(),
        readout(6, 3, neuron=Neuron(sigma)),
    ]
    return randomised(nn.Sequential(*layers).double(), seed).eval()


def layer_activations(network, x):
    """What each layer with neurons gives, by the closed form."""
    found = {}
    with torch.no_grad():
        for name, layer in network.named_children():
            if isinstance(layer, PotentialReadout | FirstSpikeReadout):
                return found, layer.decide(x), layer(x)
            x = layer(x)
            if not isinstance(layer, EarliestSpikePool2d | nn.Flatten | nn.Dropout):
                found[name] = x
    raise AssertionError


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.integers(1, 2),
    st.integers(0, 2),
    st.sampled_from([1, 2]),
    st.sampled_from([PotentialReadout, FirstSpikeReadout]),
    st.integers(0, 10**6),
)
def test_event_driven_equals_the_closed_form(sigma, bias, stride, padding, groups, readout, seed):
    network = small_network(seed, sigma, readout, bias=bias, stride=stride, padding=padding, groups=groups)
    x = activations(3, 2, 6, 6, seed=seed)
    run = event_driven(network, x)
    expected, decision, logits = layer_activations(network, x)
    for window, (name, values) in enumerate(expected.items()):
        times = run.spike_times[name]
        found = torch.where(times.isinf(), 0.0, window + 1 - times)
        torch.testing.assert_close(found, values, **TOLERANCE)
        finite = times.isfinite() & (values > 1e-9)
        torch.testing.assert_close(times[finite], activation_to_spike_time(values, window)[finite], **TOLERANCE)
    torch.testing.assert_close(run.spike_times["6"] - 3, decision.spike_times, **TOLERANCE)
    if readout is PotentialReadout:
        torch.testing.assert_close(run.potential, logits, **TOLERANCE)
    else:
        potential, _ = network[-1].potential_and_slope(layer_input(network, x))
        torch.testing.assert_close(run.potential, potential.detach(), **TOLERANCE)


def layer_input(network, x):
    with torch.no_grad():
        return network[:-1](x)


def test_potential_at_the_end_and_own_ramp():
    def readout(inputs, classes, neuron):
        options = dict(threshold=3.0, window=1.5, initial_potential=1.0, neuron=neuron)
        return PotentialReadout(inputs, classes, at="end", **options)

    network, x = small_network(0, 0.25, readout), activations(4, 2, 6, 6, seed=0)
    run = event_driven(network, x)
    _, decision, logits = layer_activations(network, x)
    torch.testing.assert_close(run.potential, logits, **TOLERANCE)
    torch.testing.assert_close(run.spike_times["6"] - 3, decision.spike_times, **TOLERANCE)


def test_event_driven_equals_neuron_by_neuron():
    layer = randomised(DFTLinear(8, 20, neuron=Neuron(0.3)).double(), 0)
    network = nn.Sequential(LatencyEncoder(), layer, PotentialReadout(20, 2).double())
    x = activations(3, 8, seed=1)
    run, weight, bias = event_driven(network, x), layer.effective_weight().detach(), layer.bias.tolist()
    for n, k in torch.cartesian_prod(torch.arange(3), torch.arange(20)).tolist():
        times = run.spike_times["0"][n].tolist()
        expected = neuron_by_neuron(times, weight[k].tolist(), bias[k], psp_persistence=0.3)
        assert float(run.spike_times["1"][n, k]) == pytest.approx(expected, abs=1e-9)


def test_analog_encoder():
    layer = randomised(AnalogEncoder(1, 2, 3, padding=1, mean=[0.5], std=[0.25], batch_norm=True).double(), 0).eval()
    network = nn.Sequential(layer, nn.Flatten(), PotentialReadout(32, 2).double())
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    times = event_driven(network, x).spike_times["0"]
    with torch.no_grad():
        torch.testing.assert_close(torch.where(times.isinf(), 0.0, 1 - times), layer(x), **TOLERANCE)


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
def test_signed_encoder(sigma):
    layer = randomised(SignedEncoder(1, 3, 3, 2, mean=[0.5], std=[0.25], neuron=Neuron(sigma)).double(), 0).eval()
    network = nn.Sequential(layer, nn.Flatten(), PotentialReadout(12, 2).double())
    x = torch.rand(8, 1, 5, 6, dtype=torch.float64)
    times = event_driven(network, x).spike_times["0"]
    with torch.no_grad():
        torch.testing.assert_close(torch.where(times.isinf(), 0.0, 1 - times), layer(x), **TOLERANCE)


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("compare_at", ["middle", "start"])
def test_simulator_converges_to_event_driven(sigma, compare_at):
    network, x = small_network(0, sigma, PotentialReadout), activations(60, 2, 6, 6, seed=0)
    run, errors = event_driven(network, x), []
    for steps in (16, 64, 256, 1024):
        found = simulate(network, [x], steps=steps, weight_bits=None, compare_at=compare_at, keep_spike_times=True)
        assert found.spike_steps is not None
        differences = []
        for window, name in enumerate(("0", "1", "4")):
            stamps = window + found.spike_steps[name].double() / steps
            differences.append((run.spike_times[name].clamp_max(window + 1) - stamps).abs().flatten())
        errors.append(float(torch.cat(differences).mean()))
    for coarse, fine in pairwise(errors):
        assert fine < 0.5 * coarse
    assert errors[-1] < 0.002


def test_unknown_layers_are_named():
    with pytest.raises(NetworkError, match=r"got Tanh \(1\)"):
        event_driven(nn.Sequential(LatencyEncoder(), nn.Tanh(), PotentialReadout(4, 2)), torch.rand(1, 4))
