"""Small networks that the simulator's tests run, and equality of simulations."""

import torch
from torch import nn

from tests.nn.common import randomised
from ttfs_triton.nn import (
    DFTConv2d,
    DFTLinear,
    EarliestSpikePool2d,
    FirstSpikeReadout,
    LatencyEncoder,
    Neuron,
    PotentialReadout,
)

READOUTS = {
    "start": lambda sigma: PotentialReadout(5, 3, neuron=Neuron(sigma)),
    "end": lambda sigma: PotentialReadout(5, 3, at="end", neuron=Neuron(sigma)),
    "first_spike": lambda sigma: FirstSpikeReadout(5, 3, neuron=Neuron(sigma), threshold=4.0, initial_potential=1.0),
}


def linear_network(weight, readout=None, *, bias=0.0, sigma=1.0):
    """A latency encoder, one hidden layer with these weights, a readout."""
    weight = torch.tensor(weight)
    layer = DFTLinear(*weight.shape[::-1], weight_standardisation=False, neuron=Neuron(sigma))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.fill_(bias)
    return nn.Sequential(LatencyEncoder(), layer, readout or PotentialReadout(len(weight), 2))


def readout_with(weight, kind=FirstSpikeReadout, **options):
    """A readout with these weights and no bias."""
    weight = torch.tensor(weight)
    readout = kind(*weight.shape[::-1], bias=False, weight_standardisation=False, **options)
    with torch.no_grad():
        readout.weight.copy_(weight)
    return readout


def saturating_network():
    """One hidden neuron of 40 inputs: at 8 steps and 8-bit weights, 11 bits hold its threshold, but not its sums."""
    readout = readout_with([[1.0], [-1.0]], threshold=1.0, initial_potential=0.0)
    return linear_network([[1.0, -0.5] * 20], readout)


def small_network(seed, sigma=1.0, readout="start", kernel=3, **geometry):
    """A convolution of 2 × 5 × 4 images, pooling and a fully connected layer, in few neurons."""
    geometry = geometry or {"padding": 1, "groups": 2}
    first = nn.Sequential(
        LatencyEncoder(),
        DFTConv2d(2, 4, kernel, **geometry, neuron=Neuron(sigma)),
        EarliestSpikePool2d(2, 1),
        nn.Dropout(),
        nn.Flatten(),
    )
    inputs = first(torch.zeros(1, 2, 5, 4)).shape[1]
    return randomised(nn.Sequential(*first, DFTLinear(inputs, 5, neuron=Neuron(sigma)), READOUTS[readout](sigma)), seed)


def assert_same(one, other):
    for name in ("samples", "correct", "first_spike_correct", "ties", "no_spike", "counts", "activity"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("predictions", "first_spike_predictions", "latency_steps"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name, stamps in one.spike_steps.items():
        assert torch.equal(stamps, other.spike_steps[name])
