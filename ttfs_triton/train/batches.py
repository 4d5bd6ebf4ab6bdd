"""Batches of an epoch. The only state is the position: any batch can be built again, by any process.

The order of the images is a function of seed and epoch. The random parameters of the augmentation are drawn for the
whole batch of an optimiser step from a generator seeded with seed, epoch and step; each process then takes its slice.
One process, several, and a resumed run see the same images.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ttfs_triton.scoring.batches import Batch, IndexedImages, check_rank, indexed_loader
from ttfs_triton.train.augment import Augmentation


class EpochBatches(Dataset[Batch]):
    """Augmented micro-batches of one epoch for one process.

    Item i is micro-batch `i % accumulation` of optimiser step `i // accumulation`. An incomplete last step is
    left out.

    Args:
        data: images and labels.
        indices: [n], int64, the images to train on.
        batch_size: images in an optimiser step, over all processes and micro-batches.
        seed: of order and augmentation.
        epoch: number of the epoch.
        rank: number of this process.
        world_size: number of processes.
        accumulation: micro-batches in an optimiser step.
        augmentation: default: none.
    Raises:
        ValueError: fewer images than one batch, or a batch that processes and micro-batches do not divide.
    """

    def __init__(
        self,
        data: IndexedImages,
        indices: Tensor,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        augmentation: Augmentation | None = None,
    ) -> None:
        check_rank("EpochBatches", rank, world_size)
        if batch_size < 1 or batch_size % (world_size * accumulation):
            raise ValueError(
                f"EpochBatches: batch_size must be a multiple of processes times accumulation steps; got {batch_size} "
                f"for {world_size} x {accumulation}. Use a multiple of {world_size * accumulation}."
            )
        if len(indices) < batch_size:
            raise ValueError(
                f"EpochBatches: batch_size must be at most the number of training images; got {batch_size} for "
                f"{len(indices)}. Lower --batch-size, or use more images."
            )
        self.data = data
        self.batch_size, self.accumulation = batch_size, accumulation
        self.micro_batch_size = batch_size // (world_size * accumulation)
        self.rank, self.world_size = rank, world_size
        self.seed, self.epoch = seed, epoch
        self.augmentation = augmentation or Augmentation()
        order = torch.randperm(len(indices), generator=_generator("order", seed, epoch))
        self.order = indices[order]

    @property
    def steps(self) -> int:
        """Optimiser steps in the epoch."""
        return len(self.order) // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __getitem__(self, index: int) -> Batch:
        """Images [b, C, height, width], float32 in [0, 1], and labels [b], int64."""
        if not 0 <= index < len(self):
            raise IndexError(f"EpochBatches: index must be in 0 to {len(self) - 1}; got {index}.")
        step, micro_batch = divmod(index, self.accumulation)
        first = (micro_batch * self.world_size + self.rank) * self.micro_batch_size
        rows = slice(first, first + self.micro_batch_size)
        chosen = self.order[step * self.batch_size :][rows]
        images = self.data.images_at(chosen)
        generator = _generator("augmentation", self.seed, self.epoch, step)
        parameters = self.augmentation.draw(self.batch_size, generator, images.shape[2], images.shape[3])
        return self.augmentation.apply(images, parameters[rows]), self.data.labels[chosen]


def train_loader(
    batches: EpochBatches, start_step: int = 0, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Micro-batches from an optimiser step on, whole batches built by the worker processes.

    Args:
        batches: of one epoch.
        start_step: first optimiser step, counted within the epoch.
        num_workers: worker processes; 0: in this process. The batches are the same.
        pin_memory: page-locked memory, for copies to a GPU.
    Raises:
        ValueError: start_step is outside the epoch.
    """
    if not 0 <= start_step <= batches.steps:
        raise ValueError(f"train_loader: start_step must be in 0 to {batches.steps}; got {start_step}. Lower it.")
    first = start_step * batches.accumulation
    return indexed_loader(batches, range(first, len(batches)), num_workers, pin_memory)


def _generator(*key: object) -> torch.Generator:
    """A generator whose stream is a function of the key; streams of different keys are unrelated."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
