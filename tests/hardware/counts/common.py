"""Layers to count, in a network around them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ttfs_triton.hardware import LayerCounts, count
from ttfs_triton.nn import LatencyEncoder, PotentialReadout

PLAIN = {"weight_standardisation": False}


def counted(layers: Sequence[nn.Module], batches: Sequence[Tensor], **options) -> tuple[LayerCounts, ...]:
    """Counts of hidden layers, in a network that begins with an encoder and ends with a readout as it must."""
    layers = [LatencyEncoder(), *layers, nn.Flatten()]
    with torch.no_grad():
        features = nn.Sequential(*layers)(batches[0][:1]).shape[1]
    counts = count(nn.Sequential(*layers, PotentialReadout(features, 2, **PLAIN)), batches, **options)
    assert [layer.kind for layer in counts.layers[-1:]] == ["readout"]
    return counts.layers[:-1]
