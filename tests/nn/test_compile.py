"""`torch.compile` of whole networks, forward and backward, equal to eager."""

import pytest
import torch

from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork

SMALL = {"in_channels": 2, "image_size": (12, 12), "classes": 4}


@pytest.mark.parametrize(
    ("model", "one_graph", "options"),
    [
        ("4C3-P2-(4C3-4C3)-8", True, {"neuron": Neuron(0.25, surrogate_width=0.5)}),
        pytest.param("4C3-A2-8C3-8", True, {"readout": "potential_end", "encoder": "analog"}, marks=pytest.mark.slow),
        pytest.param("4C3-P2-8-8", True, {"readout": "first_spike"}, marks=pytest.mark.slow),
        ("4C3-P2-8", False, {"batch_norm": True}),
    ],
)
def test_a_compiled_network_is_the_network(model, one_graph, options):
    """In one graph, but for layers with batch norm, which the compiler leaves to eager PyTorch."""
    torch.compiler.reset()
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig(model, **SMALL, **options))
    images = torch.rand(3, 2, 12, 12)

    def results(function):
        network.zero_grad()
        logits = function(images)
        logits.square().sum().backward()
        return logits, *(parameter.grad for parameter in network.parameters())

    compiled = results(torch.compile(network, fullgraph=one_graph, backend="aot_eager"))
    for found, expected in zip(compiled, results(network), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
