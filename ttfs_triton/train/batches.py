"""Batches of an epoch, computed from their position: the same in one process, in several, and in a resumed run.

The order of the images depends on seed and epoch only, an image's augmentation on seed, epoch and the image's index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator

import torch
from torch import Tensor

from ttfs_triton.data.augment import Augmentation
from ttfs_triton.data.images import ImageData
from ttfs_triton.evaluate.batches import Batch, Batches, Gathered, load_batches

# Pixels augmented in one call: 512 images of CIFAR-10. With fewer, the overhead of PyTorch's calls takes much time.
AUGMENTED_AHEAD = 512 * 32 * 32


class EpochBatches(Batches):
    """Augmented micro-batches of one epoch for one process.

    Item i is micro-batch `i % accumulation` of optimiser step `i // accumulation`. An incomplete last step is
    left out.

    Args:
        data: images and labels.
        indices: [n], int64, the images to train on.
        batch_size: images in an optimiser step, over all processes and micro-batches.
        seed, epoch: determine the order of the images and their augmentation.
        rank, world_size: number of this process, and number of processes.
        accumulation: micro-batches in an optimiser step.
        augmentation: augmentation of the images. Default: none.
    """

    def __init__(
        self,
        data: ImageData,
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
        self.seed, self.epoch = seed, epoch
        self.augmentation = augmentation or Augmentation()
        self.augmentation.check_shape(data.shape[1:])
        digest = hashlib.sha256(f"order/{seed}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        order = torch.randperm(len(indices), generator=generator)
        # Each micro-batch is split among the processes; this process keeps its own part.
        order = order[: len(order) // batch_size * batch_size].view(-1, world_size, self.micro_batch_size)[:, rank]
        self.order = indices[order.flatten()].to(data.device, non_blocking=True)

    @property
    def steps(self) -> int:
        """Optimiser steps in the epoch."""
        return len(self) // self.accumulation

    def __len__(self) -> int:
        return len(self.order) // self.micro_batch_size

    def gather(self, index: int, count: int = 1) -> Gathered:
        """Indices, images (uint8) and labels of `count` micro-batches from `index` on, as one batch."""
        indices = self.order[index * self.micro_batch_size : (index + count) * self.micro_batch_size]
        return indices, self.data.images_at(indices), self.data.labels[indices]

    def finish(self, gathered: Gathered) -> Batch:
        """The batch, augmented on the device of the gathered tensors."""
        indices, images, labels = gathered
        return self.augmentation(images, indices, seed=self.seed, epoch=self.epoch), labels


def train_loader(
    batches: EpochBatches, device: torch.device | None = None, *, start_step: int = 0, num_workers: int = 0
) -> Generator[Batch]:
    """Micro-batches of an epoch from the optimiser step `start_step` on; see `load_batches`."""
    first, count = start_step * batches.accumulation, 1
    at_hand = batches.data.in_memory and (device is None or device.type == batches.data.device.type)
    if at_hand and batches.augmentation.changes_images:
        height, width = batches.data.shape[2:]
        count = AUGMENTED_AHEAD // (batches.micro_batch_size * height * width)
    if count > 1:
        return _augment_ahead(batches, first, count)
    return load_batches(batches, device, first=first, num_workers=num_workers)


def _augment_ahead(batches: EpochBatches, first: int, count: int) -> Generator[Batch]:
    """Micro-batches, augmented `count` at a time: the augmentation of an image does not depend on its batch."""
    for index in range(first, len(batches), count):
        images, labels = batches.finish(batches.gather(index, count))
        yield from zip(*(tensor.split(batches.micro_batch_size) for tensor in (images, labels)), strict=True)
