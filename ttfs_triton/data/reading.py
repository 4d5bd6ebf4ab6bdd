"""Opens and decodes encoded images, one or many at a time, and counts damaged ones."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import get_worker_info

from ttfs_triton.data.pixels import Crop, image_pixels
from ttfs_triton.untrusted_files import read_regular

logger = logging.getLogger(__name__)

Read = TypeVar("Read")
Item = TypeVar("Item")

DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Errors that Pillow raises for damaged files."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Allowed image formats. Pillow would pass others to external programs, such as EPS to Ghostscript."""
MAX_PIXELS = 2**27
"""Most pixels of an image: 0.5 GiB when decoded."""
MAX_BYTES = 2**29
"""Most bytes of a file."""

_CHUNK = 512  # rows read at a time
_GROUP = 32  # images decoded by a thread at a time
_AHEAD_BYTES = 2**25  # bytes of pixels that a thread decodes ahead


def file_bytes(encoded: dict[str, Any] | None) -> bytes:
    """The content of an image's file, of which `datasets.Image(decode=False)` gives the `bytes`, or else the `path`."""
    if encoded and encoded["bytes"] is None and encoded["path"]:
        return read_regular(Path(encoded["path"]), MAX_BYTES)
    if not encoded or not encoded["bytes"]:
        raise ValueError("no image")
    return encoded["bytes"]


def open_image(content: bytes) -> Image.Image:
    """Open an image from the content of its file; nothing is decoded yet.

    Pillow never sees the file: it would reserve as much memory as the file's headers claim.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"cannot identify image file; it must be one of {', '.join(FORMATS)}") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"must have at most {MAX_PIXELS} pixels; got {image.width} × {image.height}")
    return image


def decode_image(
    encoded: dict[str, Any] | None,
    size: tuple[int, int] | None = None,
    mode: str | None = None,
    crop: Crop | None = None,
) -> np.ndarray:
    """The `image_pixels` of an encoded image; raises what `file_bytes`, `open_image` and `image_pixels` raise."""
    with open_image(file_bytes(encoded)) as file:
        return image_pixels(file, size, mode, crop)


def read_rows(
    rows: datasets.Dataset, row_numbers: Tensor, read: Callable[[int, Any], Read], progress: bool = False
) -> Iterator[Read | Exception]:
    """Results of `read(row, encoded image)`, row by row; for an image that cannot be decoded, the error.

    Threads decode ahead, each at most about `_AHEAD_BYTES`: a file of some megabytes can hold hundreds of gigabytes.
    """
    column = rows.column_names[0]

    def attempt(row: tuple[int, Any]) -> Read | Exception:
        try:
            return read(*row)
        except DECODER_ERRORS as error:
            return error

    def begin(group: list[tuple[int, Any]]) -> list[Read | Exception]:
        found: list[Read | Exception] = []
        size = 0
        while len(found) < len(group) and size < _AHEAD_BYTES:
            found.append(attempt(group[len(found)]))
            size += getattr(found[-1], "nbytes", 0)
        return found

    chunks = with_progress_bar(row_numbers.split(_CHUNK), "Decoding images", progress)
    threads = decoding_threads()
    with ThreadPoolExecutor(threads) as pool:
        for chunk in chunks:
            numbers = chunk.tolist()
            encoded = list(zip(numbers, rows[numbers][column], strict=True))
            # Pillow releases the interpreter lock while it decodes; small images gain only if handed over in groups.
            size = max(1, min(_GROUP, len(encoded) // threads))
            groups = [encoded[i : i + size] for i in range(0, len(encoded), size)]
            ahead = deque(pool.submit(begin, group) for group in groups[:threads])
            for number, group in enumerate(groups):
                found = ahead.popleft().result()
                ahead.extend(pool.submit(begin, later) for later in groups[number + threads :][:1])
                yield from found
                yield from map(attempt, group[len(found) :])


def with_progress_bar(items: Sequence[Item], description: str, wanted: bool) -> Iterable[Item]:
    """The items, under a progress bar if it is wanted and there is a terminal."""
    # Not `disable=`: a disabled bar still prints empty lines into a log.
    return track(items, description, transient=True) if wanted and Console().is_terminal else items


def decoding_threads() -> int:
    """Number of decoding threads of this process: its share of the cores, at most 8; one in a worker process."""
    if get_worker_info() is not None:
        return 1
    return max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def row_names(rows: datasets.Dataset, where: str) -> Callable[[int], str]:
    """A function that names rows in messages: by their file, or by row number if the table holds the images."""
    column = rows.column_names[0]

    def name(row: int) -> str:
        encoded = rows[row][column]
        return encoded["path"] if encoded and not encoded["bytes"] and encoded["path"] else f"row {row} of {where}"

    return name


class BadImages:
    """The images of a split that cannot be decoded: each is logged, more than `limit` are an error.

    Attributes:
        rows, reasons: row number and error of each such image.
        kept: positions of the other images among the rows that `good` was given.
    """

    def __init__(self, where: str, limit: int, name: Callable[[int], str]) -> None:
        self.where, self.limit, self.name = where, limit, name
        self.rows: list[int] = []
        self.reasons: list[str] = []
        self.kept: list[int] = []

    def good(self, row_numbers: Tensor, results: Iterable[Read | Exception]) -> Iterator[tuple[int, Read]]:
        """(row number, result) of the images that could be decoded; the others are skipped."""
        for position, (row, result) in enumerate(zip(row_numbers.tolist(), results, strict=True)):
            if isinstance(result, Exception):
                self.add(row, f"{type(result).__name__}: {result}")
            else:
                self.kept.append(position)
                yield row, result
        self.require_any(self.kept)

    def add(self, row: int, reason: str) -> None:
        """Skip a row; raises ValueError if too many rows are skipped."""
        self.rows.append(row)
        self.reasons.append(reason)
        if len(self.rows) > self.limit:
            raise ValueError(
                f"load_images: at most {self.limit} images may be undecodable; got {len(self.rows)} up to "
                f"{self.name(row)} ({reason}). Repair the data, or raise --max-bad-images."
            )
        logger.warning("%s cannot be decoded (%s); skipped.", self.name(row), reason)

    def require_any(self, kept: Sequence[int]) -> None:
        """Raise ValueError if no image is left."""
        if not kept:
            raise ValueError(
                f"load_images: {self.where} must hold images; got none that can be decoded. Check the data."
            )
