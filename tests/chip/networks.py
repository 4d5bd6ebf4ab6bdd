"""Small networks that the simulator's tests run, their spikes, and equality of simulations."""

from functools import partial

import torch
from torch import Tensor, nn

from tests.nn.common import randomised
from ttfs_triton.nn import DFTConv2d, DFTLinear, EarliestSpikePool2d, LatencyEncoder, Neuron, Readout, network_graph

FIRST_SPIKE = partial(Readout, at="first_spike")
READOUTS = {
    "start": lambda sigma: Readout(5, 3, neuron=Neuron(sigma)),
    "end": lambda sigma: Readout(5, 3, at="potential_end", neuron=Neuron(sigma)),
    "first_spike": lambda sigma: FIRST_SPIKE(5, 3, neuron=Neuron(sigma), threshold=4.0, initial_potential=1.0),
}


def linear_network(weight, readout=None, *, bias=0.0, sigma=1.0):
    """A latency encoder, one hidden layer with these weights, a readout."""
    layer = readout_with(weight, DFTLinear, bias=True, neuron=Neuron(sigma))
    nn.init.constant_(layer.bias, bias)
    return nn.Sequential(LatencyEncoder(), layer, readout or Readout(len(weight), 2))


def readout_with(weight, kind=FIRST_SPIKE, *, bias=False, **options):
    """A readout, or another layer, with these weights; without initial potentials unless they are asked for."""
    weight = torch.tensor(weight)
    readout = kind(*weight.shape[::-1], bias=bias, weight_standardisation=False, **options)
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


@torch.no_grad()
def emitted(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Activations of every hidden layer by its name, from the network itself."""
    found: dict[str, Tensor] = {}
    hooks = [
        stage.layer.register_forward_hook(lambda *args, name=stage.name: found.__setitem__(name, args[-1]))
        for stage in network_graph(model).weighted[:-1]
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


def assert_same(one, other):
    for name in ("samples", "accuracy", "first_spike_accuracy", "ties", "no_spike", "counts", "activity"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("predictions", "first_spike_predictions", "latency_steps"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name, stamps in one.spike_steps.items():
        assert torch.equal(stamps, other.spike_steps[name])
