"""Decodes images to pixels: once into memory, or batch by batch from a memory-mapped table.

All images are decoded once before training, since a damaged one must not end a run in its tenth hour. Photographs
that are cropped anew in each epoch are checked at an eighth of their size, and the result is cached: checking ImageNet
takes hours on one core.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import psutil
import pyarrow
import pyarrow.compute
import torch
from datasets import config as datasets_config
from torch import Tensor

from ttfs_triton.atomic import write_json
from ttfs_triton.data.pixels import GRAYSCALE_MODES, Crop, centre_crop, image_pixels, random_crop
from ttfs_triton.data.reading import BadImages, decode_image, file_bytes, open_image, read_rows, row_names

logger = logging.getLogger(__name__)

_MODES = {1: "L", 3: "RGB"}
_MEMORY_FRACTION = 0.8  # share of the available memory that the pixels may take
_FORMAT = 3  # format version of the cached checks
_SAMPLED = 256  # images whose bytes are part of a check's key


class NotEnoughMemoryError(RuntimeError):
    """Decoded images do not fit into main memory."""


@dataclass(frozen=True)
class InMemoryImages:
    """Images that are decoded in memory.

    Attributes:
        pixels: [N, height, width, C], uint8, on any device.
        pinned: batches are gathered into page-locked memory, from which copies to a GPU do not wait.
    """

    pixels: Tensor
    pinned: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, height, width)."""
        n, height, width, channels = self.pixels.shape
        return n, channels, height, width

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64, on the pixels' device): [b, C, height, width], uint8, channels last."""
        shape = (len(indices), *self.pixels.shape[1:])
        gathered = torch.empty(shape, dtype=torch.uint8, device=self.pixels.device, pin_memory=self.pinned)
        return torch.index_select(self.pixels, 0, indices, out=gathered).permute(0, 3, 1, 2)


class DataLostError(RuntimeError):
    """An image that could be decoded when the run began can no longer be decoded."""


@dataclass(frozen=True)
class EncodedImages:
    """Images that are decoded at each access, from a memory-mapped table that all processes share.

    Attributes:
        rows: one column, the encoded images.
        row_numbers: [N], int64, the row of each image.
        shape: (N, C, height, width).
        image_size: (height, width) to resize to, or None.
        cropped: crop the images to `image_size` instead of stretching them.
        drawn: seed and epoch of random crops; None: centre crops.
    """

    rows: datasets.Dataset
    row_numbers: Tensor
    shape: tuple[int, int, int, int]
    image_size: tuple[int, int] | None = None
    cropped: bool = False
    drawn: tuple[int, int] | None = None

    def in_epoch(self, seed: int, epoch: int) -> EncodedImages:
        """The images of an epoch: with its random crops, if they are cropped."""
        return replace(self, drawn=(seed, epoch)) if self.cropped else self

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64): [b, C, height, width], uint8, channels last."""
        _, channels, height, width = self.shape
        pixels = np.empty((len(indices), height, width, channels), dtype=np.uint8)
        row_numbers = self.row_numbers[indices]

        def read(row: int, encoded: Any) -> np.ndarray:
            return decode_image(encoded, self.image_size, _MODES[channels], self._crop(row))

        for place, found in enumerate(read_rows(self.rows, row_numbers, read)):
            if isinstance(found, Exception):
                raise DataLostError(
                    "images_at: every image must stay as it was when the run began; got "
                    f"{row_names(self.rows, 'the data')(int(row_numbers[place]))}, which cannot be decoded any more "
                    f"({type(found).__name__}: {found}). Put it back."
                ) from found
            pixels[place] = found
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _crop(self, row: int) -> Crop | None:
        if not self.cropped:
            return None
        return centre_crop if self.drawn is None else random_crop(*self.drawn, row)


@dataclass(frozen=True)
class Decoded:
    """The images that could be decoded.

    Attributes:
        images: the images, in memory or encoded.
        kept: [N], int64, their positions in `row_numbers`.
        skipped: row numbers of the images that could not be decoded.
        digest: hexadecimal SHA-256 of all pixels in order.
    """

    images: InMemoryImages | EncodedImages
    kept: Tensor
    skipped: list[int]
    digest: str


def decode_rows(
    rows: datasets.Dataset,
    row_numbers: Tensor,
    *,
    keep: bool,
    where: str,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    resize: bool = False,
    max_bad_images: int = 10,
    progress: bool = False,
) -> Decoded:
    """Decode every image once; keep the pixels, or only check them.

    Args:
        rows: one column, the encoded images.
        row_numbers: [n], int64, rows to decode.
        keep: keep the pixels in memory; else images are decoded again at each access.
        where: split and origin, for messages.
        channels: number of channels. Default: 1 if all images are grayscale, else 3.
        size: (height, width) of all images. Default: the size of the first image.
        resize: resize to `size` rather than raise.
        max_bad_images: number of images that may be undecodable; each is logged and skipped.
        progress: show a progress bar.
    """
    target = size if resize else None
    depth: int = channels or 0  # channels of the images so far
    digest = hashlib.sha256()
    pixels: np.ndarray | None = None
    bad = BadImages(where, max_bad_images, row_names(rows, where))
    results = read_rows(rows, row_numbers, lambda _, encoded: decode_image(encoded, target), progress)
    for row, image in bad.good(row_numbers, results):
        size = size or image.shape[:2]
        if image.shape[:2] != size:
            first = int(row_numbers[bad.kept[0]])
            reference = "the training images have" if first == row else f"{bad.name(first)} has"
            raise ValueError(
                f"load_images: image sizes must be equal; got {image.shape[0]}x{image.shape[1]} in {bad.name(row)}, "
                f"where {reference} {size[0]}x{size[1]}. Resize with --image-size."
            )
        more_channels = image.shape[2] > depth
        if more_channels and channels is not None:
            raise ValueError(
                f"load_images: images must be grayscale like the training images; got a colour image, "
                f"{bad.name(row)}. Convert one of the splits."
            )
        depth = max(image.shape[2], depth)
        digest.update(image.tobytes())
        place = len(bad.kept) - 1
        if keep and (pixels is None or more_channels):  # at the first image, and at the first one in colour
            shape = (len(row_numbers), *size, depth)
            require_memory(math.prod(shape), f"{len(row_numbers)} images of {where}")
            widened = np.empty(shape, dtype=np.uint8)
            if pixels is not None:
                widened[:place] = pixels[:place]
            pixels = widened
        if pixels is not None:
            pixels[place] = image
    assert size is not None  # otherwise no image was left, and `good` raised
    images: InMemoryImages | EncodedImages
    if pixels is not None:
        images = InMemoryImages(torch.from_numpy(pixels[: len(bad.kept)]))
    else:
        images = EncodedImages(rows, row_numbers[bad.kept], (len(bad.kept), depth, *size), target)
    return Decoded(images, torch.tensor(bad.kept), bad.rows, digest.hexdigest())


def check_rows(
    rows: datasets.Dataset,
    row_numbers: Tensor,
    size: tuple[int, int],
    *,
    where: str,
    channels: int | None = None,
    max_bad_images: int = 10,
    progress: bool = False,
) -> Decoded:
    """Decode every image once, at an eighth of its size where its format allows, to find the damaged ones.

    The result is kept in the cache of `datasets`, under a hash of the sizes of all images, the files that hold them and
    their times, and the bytes of 256 images.

    Arguments are as in `decode_rows`; `size` is that of the crops. The images are cropped at each access; the `digest`
    is a hash of their files.
    """
    path = Path(datasets_config.HF_DATASETS_CACHE) / "checked-images" / f"{_key(rows, row_numbers)}.json"
    bad = BadImages(where, max_bad_images, row_names(rows, where))
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        read = json.loads(path.read_text(encoding="utf-8"))
        damaged = [(int(row), str(reason)) for row, reason in read["bad"]]
        found = {"bad": damaged, "channels": int(read["channels"]), "digest": str(read["digest"])}
    if found:
        for row, reason in found["bad"]:
            bad.add(row, reason)
    else:
        digest, depth = hashlib.sha256(), 1
        for _, (hashed, own_channels) in bad.good(row_numbers, read_rows(rows, row_numbers, read_checked, progress)):
            digest.update(hashed)
            depth = max(depth, own_channels)
        damaged = list(zip(bad.rows, bad.reasons, strict=True))
        found = {"bad": damaged, "channels": depth, "digest": digest.hexdigest()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        except OSError as error:
            logger.warning("the check of %s will be repeated next time; %s.", where, error)
    skipped = set(bad.rows)
    kept = [position for position, row in enumerate(row_numbers.tolist()) if row not in skipped]
    bad.require_any(kept)
    if channels == 1 and found["channels"] == 3:
        raise ValueError(
            f"load_images: images must be grayscale like the training images; got colour images in {where}. "
            "Convert one of the splits."
        )
    shape = (len(kept), channels or found["channels"], *size)
    images = EncodedImages(rows, row_numbers[kept], shape, size, cropped=True)
    return Decoded(images, torch.tensor(kept, dtype=torch.int64), bad.rows, found["digest"])


def read_checked(_: int, encoded: dict[str, Any] | None) -> tuple[bytes, int]:
    """SHA-256 of an image's file, and its number of channels; raises if the image cannot be decoded."""
    content = file_bytes(encoded)
    with open_image(content) as image:
        mode = image.mode
        # A JPEG is still read to its end, but only one pixel of 64 is computed.
        image.draft(None, (1, 1))
        image_pixels(image)
    gray = mode in GRAYSCALE_MODES or mode.startswith("I;16")
    return hashlib.sha256(content).digest(), 1 if gray else 3


def _key(rows: datasets.Dataset, row_numbers: Tensor) -> str:
    """Key of a check in the cache: hexadecimal SHA-256 of the checked rows."""
    column = rows.column_names[0]
    content = hashlib.sha256(f"{_FORMAT}".encode())
    content.update(row_numbers.numpy().astype("<i8").tobytes())
    table = cast(pyarrow.Table, rows.with_format("arrow")[:]).flatten()
    # Lengths stand beside the bytes in the memory-mapped table: the images themselves are not touched.
    lengths = pyarrow.compute.call_function("binary_length", [table.column(f"{column}.bytes")])
    sizes = lengths.fill_null(0).to_numpy()
    content.update(sizes.astype("<i8").tobytes())
    outside = table.column(f"{column}.path").take(np.flatnonzero(sizes == 0)).to_pylist()
    for path in (*(file["filename"] for file in rows.cache_files), *outside):
        if path is not None and os.path.isfile(path):
            about = os.stat(path)
            content.update(f"{path} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode())
    sampled = row_numbers[:: max(1, len(row_numbers) // _SAMPLED)]
    for encoded in rows[sampled.tolist()][column]:
        content.update(hashlib.sha256((encoded and encoded["bytes"]) or b"").digest())
    return content.hexdigest()


def require_memory(size: int, what: str, remedy: str = "Use --streaming to decode batch by batch.") -> None:
    """Raise NotEnoughMemoryError unless `size` bytes fit into memory, once for each process on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = psutil.virtual_memory().available
    if size * processes > _MEMORY_FRACTION * available:
        copies = f" in each of {processes} processes" if processes > 1 else ""
        raise NotEnoughMemoryError(
            f"load_images: the decoded images must fit into memory; got {what}, {size / 2**30:.1f} GiB{copies}, with "
            f"{available / 2**30:.1f} GiB available. {remedy}"
        )
