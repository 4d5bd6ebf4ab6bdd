"""Batches of images to score: all images once, in order, shared among processes. Training uses `load_batches`, too."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from threading import Timer
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ttfs_triton.data.pixels import to_float

if TYPE_CHECKING:
    from ttfs_triton.data.images import ImageData  # it needs the package datasets

WORKER_SECONDS = 10.0  # how long a worker process lives after SIGTERM: the main process may still need batches
Batch = tuple[Tensor, Tensor]

Gathered = tuple[Tensor, ...]


class Batches(Protocol):
    """Batches are made in two steps: gathered where the images lie, finished on the device that uses them."""

    data: ImageData

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch:
        """Images [b, C, height, width], float32 in [0, 1], and labels [b], int64."""
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index must be in 0 to {len(self) - 1}; got {index}.")
        return self.finish(self.gather(index))

    def gather(self, index: int) -> Gathered:
        """The tensors of batch number `index`, images as uint8."""
        ...

    def finish(self, gathered: Gathered) -> Batch:
        """The batch, on the device of the gathered tensors."""
        ...


class EvaluationBatches(Batches):
    """This process's share of the images, in order; over all processes, every image comes exactly once.

    Args:
        data: images and labels.
        indices: [n], int64, the images to score; None: all.
        batch_size: images in a batch of this process; the last batch may be smaller.
        rank, world_size: number of this process, and number of processes. Shares differ by at most one image.
    """

    def __init__(
        self, data: ImageData, indices: Tensor | None, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        chosen = torch.arange(len(data.labels)) if indices is None else indices
        n = len(chosen)
        self.data, self.batch_size = data, batch_size
        self.indices = chosen[n * rank // world_size : n * (rank + 1) // world_size].to(data.device, non_blocking=True)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def gather(self, index: int) -> Gathered:
        """Images (uint8) and labels of batch number `index`."""
        chosen = self.indices[index * self.batch_size :][: self.batch_size]
        return self.data.images_at(chosen), self.data.labels[chosen]

    def finish(self, gathered: Gathered) -> Batch:
        """Images in [0, 1], and labels."""
        images, labels = gathered
        return to_float(images), labels

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def load_batches(
    batches: Batches, device: torch.device | None = None, *, first: int = 0, num_workers: int = 0
) -> Generator[Batch]:
    """Batches from number `first` on, in order, on a device, by default the data's; closing ends worker processes.

    `num_workers` processes decode images that are not in memory; 0: this process does. Batches are the same with any.
    """
    device = batches.data.device if device is None else device
    order = range(first, len(batches))
    gathered, end = map(batches.gather, order), lambda: None
    if num_workers and not batches.data.in_memory:
        # Without this generator, every epoch would draw from the global one, and a resumed run would differ.
        loader = DataLoader(
            cast(Any, order),
            batch_size=None,
            collate_fn=cast(Any, batches.gather),
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
            multiprocessing_context="fork" if sys.platform == "linux" else None,  # Python 3.14 would import all anew
            worker_init_fn=_leave_signals_to_the_main_process,
        )
        gathered = iter(loader)
        end = cast(Any, gathered)._shutdown_workers  # PyTorch calls it when nothing refers to `gathered` any more
    try:
        for tensors in gathered:
            yield batches.finish(tuple(tensor.to(device, non_blocking=True) for tensor in tensors))
    finally:
        end()  # a traceback refers to `gathered` until Python ends, which would wait for WORKER_SECONDS


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore Ctrl-C and delay SIGTERM, which workers get too: the main process needs workers until it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: Timer(WORKER_SECONDS, os._exit, [0]).start())
