"""Images to score, in order, each once: this process's share as batches; and what training's batches share with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ttfs_triton.data.pixels import to_float

Batch = tuple[Tensor, Tensor]


class IndexedImages(Protocol):
    """What batches are made from (`ttfs_triton.data.images.ImageData`)."""

    @property
    def labels(self) -> Tensor:
        """[N], int64."""
        ...

    def images_at(self, indices: Tensor) -> Tensor:
        """[b, C, height, width], uint8."""
        ...


class EvaluationBatches(Dataset[Batch]):
    """This process's share of the images, each exactly once over all processes, in order.

    Args:
        data: images and labels.
        indices: [n], int64, the images to score; None: all.
        batch_size: images in a batch of this process; the last one may be smaller.
        rank: number of this process.
        world_size: number of processes. Shares differ by at most one image, and may be empty.
    Raises:
        ValueError: batch_size is not positive, or rank and world_size do not fit.
    """

    def __init__(
        self, data: IndexedImages, indices: Tensor | None, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_rank("EvaluationBatches", rank, world_size)
        if batch_size < 1:
            raise ValueError(f"EvaluationBatches: batch_size must be at least 1; got {batch_size}. Raise it.")
        chosen = torch.arange(len(data.labels)) if indices is None else indices
        n = len(chosen)
        self.data, self.batch_size = data, batch_size
        self.indices = chosen[n * rank // world_size : n * (rank + 1) // world_size]

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        """Images [b, C, height, width], float32 in [0, 1], and labels [b], int64."""
        if not 0 <= index < len(self):
            raise IndexError(f"EvaluationBatches: index must be in 0 to {len(self) - 1}; got {index}.")
        chosen = self.indices[index * self.batch_size :][: self.batch_size]
        return to_float(self.data.images_at(chosen)), self.data.labels[chosen]

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def evaluation_loader(batches: EvaluationBatches, num_workers: int = 0, pin_memory: bool = False) -> DataLoader[Batch]:
    """The batches, built by worker processes; pin_memory for copies to a GPU."""
    return indexed_loader(batches, range(len(batches)), num_workers, pin_memory)


def indexed_loader(batches: Dataset[Batch], order: range, num_workers: int, pin_memory: bool) -> DataLoader[Batch]:
    """Items of `batches` in an order; whole batches are built by worker processes, 0: in this one."""
    # Its own generator: otherwise every epoch would take a number from the global one, and a resumed run another.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=generator,
    )


def check_rank(function: str, rank: int, world_size: int) -> None:
    """ValueError, in the name of a function, unless rank is one of world_size processes."""
    if not 0 <= rank < world_size:
        raise ValueError(f"{function}: rank must be in 0 to world_size - 1; got {rank} of {world_size}.")
