"""Where the images of a run lie: in the memory of the device that trains, in main memory, or encoded on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData

# Of the free memory of a device, for images; the rest is for the network.
DEVICE_SHARE = 0.5


@dataclass(frozen=True)
class PlacedImages:
    """Decoded images, with labels, that are gathered where they lie.

    Attributes:
        pixels: [N, height, width, C], uint8.
        labels: [N], int64, on the same device.
        pinned: batches are gathered into page-locked memory, from which copies to a GPU do not wait.
    """

    pixels: Tensor
    labels: Tensor
    pinned: bool = False
    in_memory = True

    @property
    def device(self) -> torch.device:
        """Where images and labels are gathered, and indices are expected."""
        return self.pixels.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, height, width)."""
        n, height, width, channels = self.pixels.shape
        return n, channels, height, width

    def in_epoch(self, seed: int, epoch: int) -> PlacedImages:
        """As of `ImageData`: decoded images are the same in each epoch."""
        return self

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64, on `device`): [b, C, height, width], uint8, channels last."""
        shape = (len(indices), *self.pixels.shape[1:])
        gathered = torch.empty(shape, dtype=torch.uint8, device=self.device, pin_memory=self.pinned)
        return torch.index_select(self.pixels, 0, indices, out=gathered).permute(0, 3, 1, 2)


def place_images(
    splits: Sequence[ImageData], device: torch.device, wanted: Literal["auto", "device", "host"] = "auto"
) -> tuple[list[PlacedImages | ImageData], str]:
    """Put the splits of a data set where they are best gathered.

    Args:
        splits: as loaded.
        device: that trains.
        wanted: "device" or "host" (main memory); "auto": on the device if all splits take up at most half of its free
            memory, else the host. On a CPU both are main memory. Encoded images stay on disk.
    Returns:
        The splits, and a line that says where they are.
    Raises:
        RuntimeError: "device", and its memory is too small.
    """
    stores = [split.store for split in splits]
    size = sum(store.pixels.nbytes for store in stores if isinstance(store, InMemoryImages))
    if size == 0:
        return list(splits), "images: encoded on disk, decoded batch by batch"
    if device.type == "cpu":
        return _placed(splits, device), f"images: {_gib(size)} in main memory"
    free = torch.cuda.mem_get_info(device)[0]
    why = "as asked for" if wanted == "host" else f"{_gib(free)} are free on the device"
    if wanted == "device" or (wanted == "auto" and size <= DEVICE_SHARE * free):
        try:
            return _placed(splits, device), f"images: {_gib(size)} on the device, {_gib(free)} were free"
        except torch.OutOfMemoryError as error:
            if wanted == "device":
                raise RuntimeError(
                    f"place_images: the images must fit into the device's memory; got {_gib(size)}, with "
                    f"{_gib(free)} free. Use --data-placement host, or auto."
                ) from error
    return _placed(splits, torch.device("cpu"), pinned=True), f"images: {_gib(size)} in main memory, {why}"


def _placed(splits: Sequence[ImageData], device: torch.device, pinned: bool = False) -> list[PlacedImages | ImageData]:
    placed: list[PlacedImages | ImageData] = []
    for split in splits:
        store = split.store
        if isinstance(store, InMemoryImages):
            placed.append(PlacedImages(store.pixels.to(device), split.labels.to(device), pinned))
        else:
            placed.append(split)
    return placed


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
