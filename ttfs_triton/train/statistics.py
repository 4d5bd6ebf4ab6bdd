"""Statistics of batch norm for evaluation: those of some training images with the weights that are scored.

Running statistics lag behind weights at a high rate, and behind averages of weights they say nothing of.
"""

from __future__ import annotations

from contextlib import closing

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.scoring import EvaluationBatches
from ttfs_triton.scoring.batches import IndexedImages, load_batches

IMAGES = 5_000
"""Training images whose statistics are taken."""


@torch.no_grad()
def refresh_statistics(
    network: nn.Module, images: IndexedImages, indices: Tensor, batch_size: int, accelerator: Accelerator
) -> None:
    """Take the statistics of all batch norms anew, from the first training images without augmentation.

    Every process takes those of the same images. A network without batch norm is left alone.

    Args:
        network: its buffers change; its mode stays.
        images, indices: [n], int64, of the training images.
        batch_size: images at a time; statistics are means over whole batches.
        accelerator: device and precision.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, WeightedLayer)]
    norms = [(layer, layer.batch_norm) for layer in layers if layer.batch_norm is not None]
    if not norms:
        return
    size = min(batch_size, len(indices))
    batches = EvaluationBatches(images, indices[: max(size, IMAGES // size * size)], size)
    was_training, before = network.training, [(norm.momentum, layer.statistics_group) for layer, norm in norms]
    network.eval()
    for layer, norm in norms:
        norm.reset_running_stats()
        norm.momentum, layer.statistics_group = 0.0, None  # a mean over all batches
        norm.train()
    try:
        with closing(load_batches(batches, accelerator.device)) as loaded, accelerator.autocast():
            for index, (some, _) in enumerate(loaded):
                if len(some) == size or index == 0:
                    network(some)
    finally:
        for (layer, norm), (momentum, group) in zip(norms, before, strict=True):
            norm.momentum, layer.statistics_group = momentum, group
        network.train(was_training)
