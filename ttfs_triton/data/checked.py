"""Finds damaged photographs once, before training. The result is cached: ImageNet takes hours on one core."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
import torch
from datasets import config as datasets_config
from torch import Tensor

from ttfs_triton.atomic import write_json
from ttfs_triton.data.decode import Decoded, EncodedImages
from ttfs_triton.data.pixels import GRAYSCALE_MODES
from ttfs_triton.data.reading import BadImages, file_bytes, open_image, read_rows, row_names

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the files in the cache
_SAMPLED = 256  # images whose bytes are part of the key


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

    The result is kept in the cache of `datasets`, under a key of the sizes of all files, the times of files outside of
    the table, and the bytes of 256 of them.

    Args:
        size: (height, width) of the parts that are cut out.
        rows, row_numbers, where, channels, max_bad_images, progress: as of `decode_rows`.
    Returns:
        Images that are cropped; `digest` is of the encoded files.
    Raises:
        ValueError: colour images where grayscale is asked for, too many that cannot be decoded, or none left.
    """
    path = Path(datasets_config.HF_DATASETS_CACHE) / "checked-images" / f"{_key(rows, row_numbers)}.json"
    bad = BadImages(where, max_bad_images, row_names(rows, where))
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        for row, reason in found["bad"]:
            bad.add(row, reason)
    else:
        found = _check(rows, row_numbers, bad, progress)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        except OSError as error:
            logger.warning("load_images: the check of %s will be repeated next time; %s.", where, error)
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


def _check(rows: datasets.Dataset, row_numbers: Tensor, bad: BadImages, progress: bool) -> dict[str, Any]:
    digest, channels = hashlib.sha256(), 1
    for _, found in bad.good(row_numbers, read_rows(rows, row_numbers, read_checked, progress)):
        digest.update(found[0])
        channels = max(channels, found[1])
    return {"bad": list(zip(bad.rows, bad.reasons, strict=True)), "channels": channels, "digest": digest.hexdigest()}


def read_checked(_: int, encoded: dict[str, Any] | None) -> tuple[bytes, int]:
    """Digest of the file, and the number of channels."""
    content = file_bytes(encoded)
    with open_image(content) as image:
        mode = image.mode
        if mode in ("I", "F"):
            raise ValueError(f"pixel mode {mode} has no 8-bit meaning")
        # A JPEG is still read to its end, but only one pixel of 64 is computed.
        image.draft(None, (1, 1))
        image.load()
    gray = mode in GRAYSCALE_MODES or mode.startswith("I;16")
    return hashlib.sha256(content).digest(), 1 if gray else 3


def _key(rows: datasets.Dataset, row_numbers: Tensor) -> str:
    """Hexadecimal SHA-256 of the rows that a check is of."""
    column = rows.column_names[0]
    content = hashlib.sha256(f"{_FORMAT}".encode())
    content.update(row_numbers.numpy().astype("<i8").tobytes())
    table = cast(pyarrow.Table, rows.with_format("arrow")[:]).flatten()
    # Lengths stand beside the bytes in the memory-mapped table: the images themselves are not touched.
    lengths = pyarrow.compute.call_function("binary_length", [table.column(f"{column}.bytes")])
    sizes = lengths.fill_null(0).to_numpy()
    content.update(sizes.astype("<i8").tobytes())
    for path in table.column(f"{column}.path").take(np.flatnonzero(sizes == 0)).to_pylist():
        if path is not None and os.path.isfile(path):
            about = os.stat(path)
            content.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    sampled = row_numbers[:: max(1, len(row_numbers) // _SAMPLED)]
    for encoded in rows[sampled.tolist()][column]:
        content.update(hashlib.sha256((encoded and encoded["bytes"]) or b"").digest())
    return content.hexdigest()
