"""Places the images of a run in device memory or in main memory, or leaves them on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData

DEVICE_SHARE = 0.5  # share of a device's free memory that images may take; the rest is for the network


def place_images(
    splits: Sequence[ImageData], device: torch.device, wanted: Literal["auto", "device", "host"] = "auto"
) -> tuple[list[ImageData], str]:
    """Move the splits of a data set to where batches are gathered fastest.

    Args:
        splits: the splits as loaded.
        device: the device that trains.
        wanted: "device" or "host" (main memory); "auto": on the device if all splits take up at most half of its free
            memory, else the host. On a CPU both are main memory. Encoded images stay on disk.
    Returns:
        The splits, and a line that says where they are.
    Raises:
        RuntimeError: `wanted` is "device", but its memory is too small.
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


def _placed(splits: Sequence[ImageData], device: torch.device, pinned: bool = False) -> list[ImageData]:
    return [
        replace(split, store=InMemoryImages(split.store.pixels.to(device), pinned), labels=split.labels.to(device))
        if isinstance(split.store, InMemoryImages)
        else split
        for split in splits
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
