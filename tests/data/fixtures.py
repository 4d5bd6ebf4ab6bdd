"""Small image data sets for the tests."""

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def image_file(image: Image.Image, file_format: str = "PNG") -> bytes:
    """Content of an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """PNG file of [height, width] or [height, width, 3] uint8 pixels, or of [height, width] uint16."""
    return image_file(Image.fromarray(pixels))


def random_images(n: int, channels: int = 1, height: int = 6, width: int = 6) -> np.ndarray:
    """[n, height, width] or [n, height, width, 3], uint8; the same in every call."""
    shape = (n, height, width) if channels == 1 else (n, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_parquet(
    path: Path,
    images: Sequence[np.ndarray | bytes | None] | np.ndarray,
    labels: Sequence[object],
    *,
    names: list[str] | None = None,
    image: str = "image",
    label: str = "label",
    more: dict[str, list] | None = None,
) -> None:
    """Write images (pixels, encoded bytes or None) and labels in the shape that the Hub uses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [png(pixels) if isinstance(pixels, np.ndarray) else pixels for pixels in images]
    rows = datasets.Dataset.from_dict(
        {image: [file and {"bytes": file, "path": None} for file in files], label: list(labels), **(more or {})}
    ).cast_column(image, datasets.Image())
    if names is not None:
        rows = rows.cast_column(label, datasets.ClassLabel(names=names))
    rows.to_parquet(path)
