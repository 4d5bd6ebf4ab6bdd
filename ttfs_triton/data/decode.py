"""Decodes images to pixels: once into memory, or batch by batch from a memory-mapped table.

Images of one size are decoded once before training, so that a damaged image cannot end a run in its tenth hour.
Photographs that are cropped anew in every epoch are decoded only then, since runs would wait; damaged ones are black.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import datasets
import numpy as np
import psutil
import pyarrow
import pyarrow.compute
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import get_worker_info

from ttfs_triton.data.pixels import DECODER_ERRORS, centre_crop, decode_image, random_crop

logger = logging.getLogger(__name__)

Read = TypeVar("Read")
Item = TypeVar("Item")

_MODES = {1: "L", 3: "RGB"}
_MEMORY_FRACTION = 0.8  # share of the available memory that the pixels may take
_SAMPLE = 64  # photographs that are decoded before training
_CHUNK = 512  # rows read at a time
_GROUP = 32  # images decoded by a thread at a time
_AHEAD_BYTES = 2**25  # bytes of pixels that a thread decodes ahead


class NotEnoughMemoryError(RuntimeError):
    """Decoded images do not fit into main memory."""


class DataLostError(RuntimeError):
    """Image files vanished during a run, or more of them than allowed cannot be decoded."""


@dataclass(frozen=True)
class InMemoryImages:
    """Images that are decoded in memory."""

    pixels: Tensor  # [N, height, width, C], uint8, on any device
    pinned: bool = False  # batches are gathered into page-locked memory, from which copies to a GPU do not wait

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


@dataclass(frozen=True)
class EncodedImages:
    """Images that are decoded at every access, from a memory-mapped table that all processes share."""

    rows: datasets.Dataset  # one column, the encoded images
    row_numbers: Tensor  # [N], int64, rows by image
    shape: tuple[int, int, int, int]  # (N, C, height, width)
    image_size: tuple[int, int] | None = None  # (height, width) to resize to
    cropped: bool = False  # whether images are cropped to that size; False: stretched
    epoch: tuple[int, int] | None = None  # seed and number of an epoch, for its random crops; None: crops of the middle
    most_black: int = 0  # images that may be undecodable, and are black; 0: all were decoded before
    black: set[int] = field(default_factory=set)  # rows of black images so far, in this process

    def in_epoch(self, seed: int, epoch: int) -> EncodedImages:
        """The images as an epoch shows them: with its random crops, if they are cropped."""
        return replace(self, epoch=(seed, epoch))

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64): [b, C, height, width], uint8, channels last."""
        _, channels, height, width = self.shape
        pixels = np.empty((len(indices), height, width, channels), dtype=np.uint8)
        row_numbers = self.row_numbers[indices]

        def read(row: int, encoded: Any) -> np.ndarray:
            crop = centre_crop if self.epoch is None else random_crop(*self.epoch, row)
            return decode_image(encoded, self.image_size, _MODES[channels], crop if self.cropped else None)

        for place, result in enumerate(read_rows(self.rows, row_numbers, read)):
            if isinstance(result, Exception):
                self._blacken(int(row_numbers[place]), result)
                result = 0
            pixels[place] = result
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _blacken(self, row: int, error: Exception) -> None:
        """Log that the image in this row is black; raise DataLostError if too many are, or its file cannot be read."""
        name, reason = row_name(self.rows, "the data", row), f"{type(error).__name__}: {error}"
        if row not in self.black:
            logger.warning("%s cannot be decoded (%s); it is black.", name, reason)
        self.black.add(row)
        if len(self.black) > self.most_black or getattr(error, "errno", None):  # set where a file cannot be read
            raise DataLostError(
                f"images_at: all but {self.most_black} images must be readable to the end; got {name} ({reason}). "
                "Put it back, or train with a larger --max-bad-images."
            ) from error


def read_rows(
    rows: datasets.Dataset, row_numbers: Tensor, read: Callable[[int, Any], Read], progress: bool = False
) -> Iterator[Read | Exception]:
    """Results of `read(row, encoded image)`, row by row; for an image that cannot be decoded, the error.

    A thread decodes ahead at most about `_AHEAD_BYTES`, since a file of some megabytes can hold hundreds of gigabytes.
    """
    column = rows.column_names[0]

    def attempt(row: tuple[int, Any]) -> Read | Exception:
        try:
            return read(*row)
        except DECODER_ERRORS as error:
            return error

    def begin(group: list[tuple[int, Any]]) -> list[Read | Exception]:
        results: list[Read | Exception] = []
        size = 0
        while len(results) < len(group) and size < _AHEAD_BYTES:
            results.append(attempt(group[len(results)]))
            size += getattr(results[-1], "nbytes", 0)
        return results

    threads = decoding_threads()
    with ThreadPoolExecutor(threads) as pool:
        for chunk in with_progress_bar(row_numbers.split(_CHUNK), "Decoding images", progress):
            numbers = chunk.tolist()
            encoded = list(zip(numbers, rows[numbers][column], strict=True))
            # Pillow releases the interpreter lock while it decodes; small images gain only if handed over in groups.
            size = max(1, min(_GROUP, len(encoded) // threads))
            groups = [encoded[i : i + size] for i in range(0, len(encoded), size)]
            ahead = deque(pool.submit(begin, group) for group in groups[:threads])
            for number, group in enumerate(groups):
                results = ahead.popleft().result()
                ahead.extend(pool.submit(begin, later) for later in groups[number + threads :][:1])
                yield from results
                yield from map(attempt, group[len(results) :])


def with_progress_bar(items: Sequence[Item], description: str, wanted: bool) -> Iterable[Item]:
    """The items, under a progress bar if it is wanted and there is a terminal."""
    # Not `disable=`: a disabled bar still prints empty lines into a log.
    return track(items, description, transient=True) if wanted and Console().is_terminal else items


def decoding_threads() -> int:
    """Number of threads that decode in this process: its share of the cores, at most 8; one in a worker process."""
    if get_worker_info() is not None:
        return 1
    return max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def row_name(rows: datasets.Dataset, where: str, row: int) -> str:
    """A row's name in messages: its file, or its number if the table holds the image."""
    encoded = rows[row][rows.column_names[0]]
    return encoded["path"] if encoded and not encoded["bytes"] and encoded["path"] else f"row {row} of {where}"


class BadImages:
    """Collects the `rows` of a split whose images cannot be decoded, and logs them; more than `limit` are an error."""

    def __init__(self, where: str, limit: int, name: Callable[[int], str]) -> None:
        self.where, self.limit, self.name = where, limit, name
        self.rows: list[int] = []

    def good(self, row_numbers: Tensor, results: Iterable[Read | Exception]) -> Iterator[tuple[int, Read]]:
        """(row number, result) of the images that could be decoded; the others are skipped."""
        for row, result in zip(row_numbers.tolist(), results, strict=True):
            if not isinstance(result, Exception):
                yield row, result
                continue
            self.rows.append(row)
            reason = f"{type(result).__name__}: {result}"
            if len(self.rows) > self.limit:
                raise ValueError(
                    f"load_images: at most {self.limit} images may be undecodable; got {len(self.rows)} up to "
                    f"{self.name(row)} ({reason}). Repair the data, or train with a larger --max-bad-images."
                )
            logger.warning("%s cannot be decoded (%s); skipped.", self.name(row), reason)

    def kept(self, row_numbers: Tensor) -> Tensor:
        """Positions of the good rows in `row_numbers`; raises ValueError if there is none."""
        kept = (~torch.isin(row_numbers, torch.tensor(self.rows, dtype=torch.int64))).nonzero()[:, 0]
        if len(kept) == 0:
            raise ValueError(
                f"load_images: {self.where} must hold images; got none that can be decoded. Check the data."
            )
        return kept


@dataclass(frozen=True)
class Decoded:
    """The images that could be decoded."""

    images: InMemoryImages | EncodedImages
    kept: Tensor  # [N], int64, positions of these images in `row_numbers`
    skipped: list[int]  # row numbers of images that could not be decoded
    digest: str  # hexadecimal SHA-256 of all pixels in order


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
    """Decode every image once. With `keep`, pixels stay in memory; otherwise every access decodes again.

    All images get, or must have, the same size and channels. Default: the size of the first image, and three channels
    if any image is in colour. `rows` has one column, the encoded images; `where` names them in messages.
    """
    target, depth, digest = size if resize else None, channels or 0, hashlib.sha256()  # depth: channels so far
    pixels: np.ndarray | None = None
    reference = "the training images have"
    bad = BadImages(where, max_bad_images, partial(row_name, rows, where))
    results = read_rows(rows, row_numbers, lambda _, encoded: decode_image(encoded, target), progress)
    for place, (row, image) in enumerate(bad.good(row_numbers, results)):
        if size is None:
            size, reference = image.shape[:2], f"{bad.name(row)} has"
        if image.shape[:2] != size:
            raise ValueError(
                f"load_images: image sizes must be equal; got {image.shape[0]}x{image.shape[1]} in {bad.name(row)}, "
                f"where {reference} {size[0]}x{size[1]}. Resize them, or train with --image-size."
            )
        if more_channels := image.shape[2] > depth:
            _require_gray(channels, f"a colour image, {bad.name(row)}")
        depth = max(image.shape[2], depth)
        digest.update(image.tobytes())
        if keep and (pixels is None or more_channels):  # at the first image, and at the first one in colour
            shape = (len(row_numbers), *size, depth)
            require_memory(math.prod(shape), f"{len(row_numbers)} images of {where}")
            widened = np.empty(shape, dtype=np.uint8)
            if pixels is not None:
                widened[:place] = pixels[:place]
            pixels = widened
        if pixels is not None:
            pixels[place] = image
    kept = bad.kept(row_numbers)
    images: InMemoryImages | EncodedImages
    if pixels is not None:
        images = InMemoryImages(torch.from_numpy(pixels[: len(kept)]))
    else:
        assert size is not None  # that of the first image kept
        images = EncodedImages(rows, row_numbers[kept], (len(kept), depth, *size), target)
    return Decoded(images, kept, bad.rows, digest.hexdigest())


def _require_gray(channels: int | None, what: str) -> None:
    """Raise ValueError for images in colour if training images have one channel; `channels` is None for these."""
    if channels is not None:
        raise ValueError(
            f"load_images: images must be grayscale like the training images; got {what}. Convert one of the splits."
        )


def crop_rows(
    rows: datasets.Dataset,
    row_numbers: Tensor,
    size: tuple[int, int],
    *,
    where: str,
    channels: int | None = None,
    max_bad_images: int = 10,
    progress: bool = False,
) -> Decoded:
    """Images that every access decodes and crops to `size`; some are decoded here, to tell grey images from colour.

    Arguments are as in `decode_rows`; `digest` is a hash of the row numbers and of the files' lengths.
    """
    bad = BadImages(where, max_bad_images, partial(row_name, rows, where))
    some = row_numbers[:: -(-len(row_numbers) // _SAMPLE)]
    sample = read_rows(rows, some, lambda _, encoded: decode_image(encoded).shape[2], progress)
    depths = [depth for _, depth in bad.good(some, sample)]
    bad.kept(some)
    if max(depths) > (channels or 3):
        _require_gray(channels, f"colour images in {where}")
    kept = bad.kept(row_numbers)
    table = cast(pyarrow.Table, rows.with_format("arrow")[:]).flatten()
    encoded, paths = (table.column(f"{rows.column_names[0]}.{part}") for part in ("bytes", "path"))
    lengths = pyarrow.compute.call_function("binary_length", [encoded]).to_pylist()
    files = zip(lengths, paths.to_pylist(), strict=True)
    sizes = [length or (os.path.getsize(path) if path and os.path.isfile(path) else 0) for length, path in files]
    digest = hashlib.sha256(row_numbers.numpy().astype("<i8").tobytes() + np.array(sizes, "<i8").tobytes())
    shape = (len(kept), channels or max(depths), *size)
    images = EncodedImages(rows, row_numbers[kept], shape, size, cropped=True, most_black=max_bad_images)
    return Decoded(images, kept, bad.rows, digest.hexdigest())


def require_memory(size: int, what: str, remedy: str = "Use fewer, or train with --streaming.") -> None:
    """Raise NotEnoughMemoryError unless `size` bytes fit into memory, once per process on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = psutil.virtual_memory().available
    if size * processes > _MEMORY_FRACTION * available:
        copies = f" per process ({processes} processes)" if processes > 1 else ""
        raise NotEnoughMemoryError(
            f"load_images: the decoded images must fit into memory; got {what}, {size / 2**30:.1f} GiB{copies}, with "
            f"{available / 2**30:.1f} GiB available. {remedy}"
        )
