"""How closely the layers of a spiking network follow those of an ANN."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ttfs_triton.convert.folded import FoldedANN
from ttfs_triton.nn import LatencyEncoder, TTFSNetwork
from ttfs_triton.nn.weighted import WeightedLayer


@torch.no_grad()
def layer_correlations(
    network: TTFSNetwork, ann: FoldedANN, images: Tensor, batch_size: int = 64
) -> dict[str, float | None]:
    """Correlation of each hidden layer's activations with the ANN's, over all neurons and images, before pooling.

    Args:
        network: in the mode, training or evaluation, that is meant.
        ann: with the same layers.
        images: [N, in_channels, height, width], as the networks read them.
        batch_size: images that run at once.
    Returns:
        Pearson's coefficient by name of the layer, in [−1, 1]; None where either side is constant.
    """
    moments: dict[str, Tensor] = {}
    for batch in images.split(batch_size):
        for name, spiking, analog in _side_by_side(network, ann, batch):
            pairs = torch.stack([spiking.flatten(), analog.flatten()]).double()
            sums = torch.cat(
                [torch.tensor([float(pairs.shape[1])]), pairs.sum(1).cpu(), (pairs @ pairs.T).view(-1).cpu()]
            )
            moments[name] = moments.get(name, torch.zeros_like(sums)) + sums
    return {name: _pearson(*sums.tolist()) for name, sums in moments.items()}


def _side_by_side(network: TTFSNetwork, ann: FoldedANN, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, spiking, analog) activations of each hidden layer with weights."""
    spiking, analog = images, ann.encode(images)
    for name, layer in network.features.named_children():
        spiking = layer(spiking)
        if isinstance(layer, LatencyEncoder):
            continue  # done by `encode`
        analog = ann.run_layer(name, analog)
        if isinstance(layer, WeightedLayer):
            yield name, spiking, analog


def _pearson(count: float, x: float, y: float, xx: float, xy: float, _: float, yy: float) -> float | None:
    covariance, spread = xy - x * y / count, (xx - x * x / count) * (yy - y * y / count)
    # Rounding leaves about 1e-16 of the squares where nothing varies.
    return covariance / spread**0.5 if spread > 1e-20 * xx * yy and xx * yy > 0 else None
