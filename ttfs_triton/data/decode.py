"""Encoded rows to pixels: once into memory, or batch by batch from a memory-mapped table."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import datasets
import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ttfs_triton.data.pixels import Crop, centre_crop, random_crop
from ttfs_triton.data.reading import DECODER_ERRORS, BadImages, decode_image, decoding_threads, read_rows, row_names

_MODES = {1: "L", 3: "RGB"}
_MEMORY_FRACTION = 0.8  # of the available memory, for the pixels
_CHECK_EVERY = 4096  # images: memory is taken when it is filled, and others may have taken it by then


class NotEnoughMemoryError(RuntimeError):
    """Decoded images do not fit into main memory."""


@dataclass(frozen=True)
class InMemoryImages:
    """All images decoded.

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
    """An image that could be decoded when the data were checked can no longer be."""


@dataclass(frozen=True)
class EncodedImages:
    """Images decoded when they are asked for; the table is memory-mapped and shared by all processes.

    Attributes:
        rows: one column, the encoded images.
        row_numbers: [N], int64, the row of each image.
        shape: (N, C, height, width).
        image_size: (height, width) to resize to, or None.
        cropped: cut parts of `image_size` out rather than stretch the whole.
        drawn: seed and epoch of random parts; None: the middle.
    """

    rows: datasets.Dataset
    row_numbers: Tensor
    shape: tuple[int, int, int, int]
    image_size: tuple[int, int] | None = None
    cropped: bool = False
    drawn: tuple[int, int] | None = None

    def in_epoch(self, seed: int, epoch: int) -> EncodedImages:
        """The same images as they are trained on in an epoch: random parts, where they are cropped."""
        return replace(self, drawn=(seed, epoch)) if self.cropped else self

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64): [b, C, height, width], uint8, channels last.

        Decoded by threads, but for worker processes: these are the parallel ones themselves.

        Raises:
            DataLostError: an image is no longer what it was when the data were checked.
        """
        _, channels, height, width = self.shape
        pixels = np.empty((len(indices), height, width, channels), dtype=np.uint8)
        row_numbers = self.row_numbers[indices].tolist()
        encoded = self.rows[row_numbers][self.rows.column_names[0]]

        def fill(places: Iterable[int]) -> None:
            for place in places:
                row = row_numbers[place]
                try:
                    pixels[place] = decode_image(encoded[place], self.image_size, _MODES[channels], self._crop(row))
                except DECODER_ERRORS as error:
                    name = row_names(self.rows, "the data")(row)
                    raise DataLostError(
                        f"images_at: every image must stay as it was when the run began; got {name}, which cannot "
                        f"be decoded any more ({type(error).__name__}: {error}). Put it back."
                    ) from error

        threads = 1 if get_worker_info() is not None else min(decoding_threads(), len(indices))
        if threads <= 1:
            fill(range(len(indices)))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, [range(first, len(indices), threads) for first in range(threads)]))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _crop(self, row: int) -> Crop | None:
        if not self.cropped:
            return None
        return centre_crop if self.drawn is None else random_crop(*self.drawn, row)


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


class _Decoder:
    """Collects images one by one; allocates when the first one is known."""

    def __init__(
        self,
        total: int,
        keep: bool,
        channels: int | None,
        size: tuple[int, int] | None,
        where: str,
        name: Callable[[int], str],
    ) -> None:
        self.total, self.keep, self.channels, self.size = total, keep, channels, size
        self.where, self.name = where, name
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
            reference = f"{self.name(self.first_row)} has" if self.count else "the training images have"
            raise ValueError(
                f"load_images: image sizes must be equal; got {height}x{width} in {self.name(row)}, where {reference} "
                f"{self.size[0]}x{self.size[1]}. Resize with --image-size."
            )
        self._set_channels(row, channels)
        if self.pixels is not None:
            if self.count and self.count % _CHECK_EVERY == 0:
                require_memory(self.pixels[self.count :].nbytes, f"{self.total - self.count} more of {self._images()}")
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
                f"load_images: images must be grayscale like the training images; got a colour image, "
                f"{self.name(row)}. Convert one of the splits."
            )
        self.channels = wanted
        if not self.keep:
            return
        assert self.size is not None
        shape = (self.total, *self.size, wanted)
        require_memory(math.prod(shape), self._images())
        pixels = np.empty(shape, dtype=np.uint8)
        if self.pixels is not None:
            pixels[: self.count] = self.pixels[: self.count]
        self.pixels = pixels

    def _images(self) -> str:
        return f"{self.total} images of {self.where}"


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
        NotEnoughMemoryError: the pixels do not fit into memory.
    """
    target = size if resize else None
    name = row_names(rows, where)
    decoder = _Decoder(len(row_numbers), keep, channels, size, where, name)
    bad = BadImages(where, max_bad_images, name)
    for row, image in bad.good(row_numbers, read_rows(rows, row_numbers, partial(decode_image, size=target), progress)):
        decoder.add(row, image)
    assert decoder.size is not None
    assert decoder.channels is not None
    height, width = decoder.size
    images: InMemoryImages | EncodedImages
    if decoder.pixels is not None:
        images = InMemoryImages(torch.from_numpy(decoder.pixels[: decoder.count]))
    else:
        shape = (decoder.count, decoder.channels, height, width)
        images = EncodedImages(rows, row_numbers[bad.kept], shape, target)
    return Decoded(images, torch.tensor(bad.kept), bad.rows, decoder.hash.hexdigest())


def require_memory(size: int, what: str, remedy: str = "Use --streaming to decode batch by batch.") -> None:
    """Raise unless `size` bytes fit into memory, once for each process on this machine.

    Raises:
        NotEnoughMemoryError: says `what` they are, and the remedy.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = psutil.virtual_memory().available
    if size * processes > _MEMORY_FRACTION * available:
        copies = f" in each of {processes} processes" if processes > 1 else ""
        raise NotEnoughMemoryError(
            f"load_images: the decoded images must fit into memory; got {what}, {size / 2**30:.1f} GiB{copies}, with "
            f"{available / 2**30:.1f} GiB available. {remedy}"
        )
