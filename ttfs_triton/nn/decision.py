"""Decisions of any network: by its readout, and by the first output spike."""

import torch
from torch import Tensor, nn

from ttfs_triton.nn.readout import FirstSpikeDecision, Readout
from ttfs_triton.nn.trace import network_graph


@torch.no_grad()
def decide(network: nn.Module, images: Tensor) -> FirstSpikeDecision:
    """Classify images by the earliest output spike, whichever readout the network was trained with.

    Args:
        network: what `network_graph` takes; runs in the mode it has.
        images: [N, ...], as the network takes them, on its device.
    Raises:
        NetworkError: as `network_graph`.
    Example:
        >>> from ttfs_triton.nn import DFTLinear, LatencyEncoder, PotentialReadout
        >>> network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 8), PotentialReadout(8, 2))
        >>> decide(network, torch.rand(4, 1, 8, 8)).prediction.shape
        torch.Size([4])
    """
    graph = network_graph(network, images.shape[1:])
    return logits_and_decision(network, graph.readout, images)[1]


def logits_and_decision(network: nn.Module, readout: Readout, images: Tensor) -> tuple[Tensor, FirstSpikeDecision]:
    """Logits of a network and its decision by the first spike, in one pass.

    Args:
        network: any module that ends with `readout`; runs in the mode it has.
        readout: its output layer.
        images: [N, ...], as the network takes them.
    """
    seen: list[Tensor] = []
    hook = readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = network(images)
    finally:
        hook.remove()
    return logits, readout.decide(seen[0])
