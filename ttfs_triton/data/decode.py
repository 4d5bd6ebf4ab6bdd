"""Encoded rows to pixels: once into memory, or batch by batch from a memory-mapped table."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ttfs_triton.data.pixels import image_pixels

logger = logging.getLogger(__name__)

_CHUNK = 512  # rows read at a time
_GROUP = 32  # images decoded by a thread at a time
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_MEMORY_FRACTION = 0.8  # of the available memory, for the pixels


@dataclass(frozen=True)
class InMemoryImages:
    """All images decoded.

    Attributes:
        pixels: [N, height, width, C], uint8.
    """

    pixels: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, height, width)."""
        n, height, width, channels = self.pixels.shape
        return n, channels, height, width

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64): [b, C, height, width], uint8, channels last."""
        return self.pixels[indices].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class EncodedImages:
    """Images decoded when they are asked for; the table is memory-mapped and shared by all processes.

    Attributes:
        rows: one column, the encoded images.
        row_numbers: [N], int64, the row of each image.
        shape: (N, C, height, width).
        image_size: (height, width) to resize to, or None.
    """

    rows: datasets.Dataset
    row_numbers: Tensor
    shape: tuple[int, int, int, int]
    image_size: tuple[int, int] | None = None

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64): [b, C, height, width], uint8, channels last."""
        _, channels, height, width = self.shape
        pixels = np.empty((len(indices), height, width, channels), dtype=np.uint8)
        column = self.rows.column_names[0]
        for i, encoded in enumerate(self.rows[self.row_numbers[indices].tolist()][column]):
            pixels[i] = decode_image(encoded, self.image_size)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Decoded:
    """Result of `decode_rows`.

    Attributes:
        images: the images that could be decoded.
        kept: [N], int64, positions in `row_numbers` of these images.
        skipped: row numbers of the others.
        digest: hexadecimal SHA-256 of all pixels in order.
    """

    images: InMemoryImages | EncodedImages
    kept: Tensor
    skipped: list[int]
    digest: str


def decode_image(encoded: dict[str, Any] | None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode one image.

    Args:
        encoded: `bytes` of the file, or else its `path`, as `datasets.Image(decode=False)` gives them.
        size: (height, width) to resize to (bilinear).
    Returns:
        [height, width, C], uint8; C = 1 for grayscale files, else 3. Transparency is dropped, 16-bit grayscale
        keeps its upper 8 bits.
    Raises:
        ValueError: no image, or a pixel format without a meaning as 8-bit values.
        OSError, SyntaxError and others: what Pillow raises for damaged files.
    """
    source = (encoded["bytes"] or encoded["path"]) if encoded else None
    if not source:
        raise ValueError("no image")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        return image_pixels(file, size)


class _Decoder:
    """Collects images one by one; allocates when the first one is known."""

    def __init__(self, total: int, keep: bool, channels: int | None, size: tuple[int, int] | None, where: str):
        self.total, self.keep, self.channels, self.size, self.where = total, keep, channels, size, where
        self.fixed_channels = channels is not None
        self.pixels: np.ndarray | None = None
        self.first_row = -1
        self.count = 0
        self.hash = hashlib.sha256()

    def add(self, row: int, image: np.ndarray) -> None:
        height, width, channels = image.shape
        self.size = self.size or (height, width)
        if self.count == 0:
            self.first_row = row
        if (height, width) != self.size:
            reference = f"row {self.first_row} has" if self.count else "the training images have"
            raise ValueError(
                f"load_images: image sizes must be equal; got {height}x{width} in row {row} of "
                f"{self.where}, where {reference} {self.size[0]}x{self.size[1]}. Resize with --image-size."
            )
        self._set_channels(row, channels)
        if self.pixels is not None:
            self.pixels[self.count] = image
        self.hash.update(image.tobytes())
        self.count += 1

    def _set_channels(self, row: int, channels: int) -> None:
        """Grayscale until the first colour image, unless the number of channels was given."""
        wanted = max(channels, self.channels or 1)
        if wanted == self.channels and self.count:
            return
        if self.fixed_channels and wanted != self.channels:
            raise ValueError(
                f"load_images: images must be grayscale like the training images; got a colour image in row {row} "
                f"of {self.where}. Convert one of the splits."
            )
        self.channels = wanted
        if not self.keep:
            return
        assert self.size is not None
        shape = (self.total, *self.size, wanted)
        _require_memory(int(np.prod(shape)), f"{self.total} images of {self.where}")
        pixels = np.empty(shape, dtype=np.uint8)
        if self.pixels is not None:
            pixels[: self.count] = self.pixels[: self.count]
        self.pixels = pixels


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
    """Decode every image once, keep the pixels or only check them.

    Args:
        rows: one column, the encoded images.
        row_numbers: [n], int64, rows to decode.
        keep: hold the pixels in memory; else decode again whenever images are asked for.
        where: split and origin, for messages.
        channels: number of channels; None: 1 if all images are grayscale, else 3.
        size: (height, width) of all images; None: that of the first.
        resize: resize to `size` rather than raise.
        max_bad_images: how many images that cannot be decoded are reported and skipped.
        progress: show a progress bar.
    Raises:
        ValueError: images of different sizes or channels, too many that cannot be decoded, or none left.
        RuntimeError: the pixels do not fit into memory.
    """
    target = size if resize else None
    decoder = _Decoder(len(row_numbers), keep, channels, size, where)
    kept: list[int] = []
    skipped: list[int] = []
    for position, image in enumerate(_decoded(rows, row_numbers, target, progress)):
        row = int(row_numbers[position])
        if not isinstance(image, BaseException):
            decoder.add(row, image)
            kept.append(position)
            continue
        skipped.append(row)
        reason = f"{type(image).__name__}: {image}"
        if len(skipped) > max_bad_images:
            raise ValueError(
                f"load_images: at most {max_bad_images} images must be undecodable; got {len(skipped)} up to row "
                f"{row} of {where} ({reason}). Repair the data, or raise "
                "--max-bad-images."
            ) from image
        logger.warning("load_images: row %d of %s cannot be decoded (%s); skipped.", row, where, reason)
    if not kept:
        raise ValueError(f"load_images: {where} must hold images; got none that can be decoded. Check the data.")
    assert decoder.size is not None
    assert decoder.channels is not None
    height, width = decoder.size
    images: InMemoryImages | EncodedImages
    if decoder.pixels is not None:
        images = InMemoryImages(torch.from_numpy(decoder.pixels[: decoder.count]))
    else:
        shape = (decoder.count, decoder.channels, height, width)
        images = EncodedImages(rows, row_numbers[kept], shape, target)
    return Decoded(images, torch.tensor(kept, dtype=torch.int64), skipped, decoder.hash.hexdigest())


def _decoded(
    rows: datasets.Dataset, row_numbers: Tensor, size: tuple[int, int] | None, progress: bool
) -> Iterator[np.ndarray | BaseException]:
    """Images in order, or the error of those that cannot be decoded."""
    column = rows.column_names[0]

    def attempt(encoded: Any) -> np.ndarray | BaseException:
        try:
            return decode_image(encoded, size)
        except _DECODER_ERRORS as error:
            return error

    def attempt_all(group: list[Any]) -> list[np.ndarray | BaseException]:
        return [attempt(encoded) for encoded in group]

    chunks = row_numbers.split(_CHUNK)
    # Pillow releases the interpreter lock while it decodes; small images gain only if handed over in groups.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        visible = progress and Console().is_terminal  # a disabled bar still prints empty lines into a log
        for chunk in track(chunks, description="Decoding images", transient=True, disable=not visible):
            encoded = rows[chunk.tolist()][column]
            groups = [encoded[i : i + _GROUP] for i in range(0, len(encoded), _GROUP)]
            for images in pool.map(attempt_all, groups):
                yield from images


def _require_memory(size: int, what: str) -> None:
    """Raise unless `size` bytes fit into memory, once for each process on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = psutil.virtual_memory().available
    if size * processes > _MEMORY_FRACTION * available:
        copies = f" in each of {processes} processes" if processes > 1 else ""
        raise RuntimeError(
            f"load_images: the decoded images must fit into memory; got {what}, {size / 2**30:.1f} GiB{copies}, with "
            f"{available / 2**30:.1f} GiB available. Use --streaming to decode batch by batch."
        )
