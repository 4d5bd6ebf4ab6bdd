"""Images that carry their number."""

import torch
from torch import Tensor

from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData


def numbered(n: int, channels: int = 1) -> ImageData:
    """Image i and label i carry the number i."""
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 8, 8, channels).contiguous()
    return ImageData(InMemoryImages(pixels), torch.arange(n), [str(i) for i in range(n)], "a/b", "train", "0")


def join(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)
