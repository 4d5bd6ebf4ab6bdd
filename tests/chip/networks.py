"""Small networks that the simulator's tests run, their spikes, and equality of simulations."""

import torch
from torch import Tensor, nn

from tests.nn.common import randomised
from ttfs_triton.nn import DFTConv2d, DFTLinear, EarliestSpikePool2d, LatencyEncoder, Neuron, Readout, network_graph

READOUTS = {
    "start": lambda sigma: Readout(5, 3, neuron=Neuron(sigma)),
    "end": lambda sigma: Readout(5, 3, at="potential_end", neuron=Neuron(sigma)),
    "first_spike": lambda sigma: Readout(
        5, 3, at="first_spike", neuron=Neuron(sigma), threshold=4.0, initial_potential=1.0
    ),
}


def saturating_network():
    """A hidden neuron of 40 inputs: at 8 steps and 8-bit weights, 11 bits hold its threshold, but not its sums."""
    hidden = DFTLinear(40, 1, weight_standardisation=False)
    readout = Readout(1, 2, threshold=1.0, initial_potential=0.0, weight_standardisation=False)
    with torch.no_grad():
        hidden.weight.copy_(torch.tensor([1.0, -0.5] * 20))
        nn.init.ones_(readout.weight)
    return nn.Sequential(LatencyEncoder(), hidden, readout)


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
    spikes: dict[str, Tensor] = {}
    hooks = [
        stage.layer.register_forward_hook(lambda *args, name=stage.name: spikes.__setitem__(name, args[-1]))
        for stage in network_graph(model).weighted[:-1]
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return spikes


def assert_same(one, other):
    for name in ("samples", "accuracy", "first_spike_accuracy", "ties", "no_spike", "counts", "activity"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("predictions", "first_spike_predictions", "latency_steps"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name, stamps in one.spike_steps.items():
        assert torch.equal(stamps, other.spike_steps[name])
