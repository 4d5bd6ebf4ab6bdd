"""From image files to the pixels that networks read, in training and when a published model classifies.

Crops equal torchvision's RandomResizedCrop, and its Resize with CenterCrop, on images of Pillow. A random
crop is a function of seed, epoch and the image's number, so that batches, processes and restarts do not change it.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ttfs_triton.untrusted_files import read_regular

# Crops an image, upright and in its final mode, to (height, width) pixels.
Crop = Callable[[Image.Image, tuple[int, int]], Image.Image]
# What Pillow raises for damaged files.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# Allowed image formats. Pillow would pass others to external programs, such as EPS to Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 2**27  # of an image: 0.5 GiB when decoded
MAX_BYTES = 2**29  # of a file

AREA = (0.08, 1.0)  # of a random crop, as a share of the image's area
ASPECT = (3 / 4, 4 / 3)  # width over height of a random crop
ATTEMPTS = 10
MARGIN = 8 / 7  # evaluation crops the middle 224 pixels of 256
GRAYSCALE_MODES = ("1", "L", "LA")
DARKEST_16_BIT = 2**12  # brightest level of a 16-bit image, at least: else its upper 8 bits have fewer than 16 levels


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
    """The `image_pixels` of an encoded image: the `bytes` of its file, or else its `path`, as `datasets` gives them."""
    content = encoded["bytes"] if encoded else None
    if encoded and content is None and encoded["path"]:
        content = read_regular(Path(encoded["path"]), MAX_BYTES)
    if not content:
        raise ValueError("no image")
    with open_image(content) as file:
        return image_pixels(file, size, mode, crop)


def image_pixels(
    image: Image.Image, size: tuple[int, int] | None = None, mode: str | None = None, crop: Crop | None = None
) -> np.ndarray:
    """8-bit pixels of an image.

    Args:
        image: image of any Pillow mode but "I" and "F". EXIF data turn photographs upright, transparency is dropped,
            16-bit grayscale keeps its upper 8 bits.
        size: (height, width) to resize to, bilinear over the area that a pixel covers. Default: the image's size.
        mode: "L" or "RGB". Default: "L" for grayscale images, else "RGB".
        crop: crops the image to `size`. Default: the whole image is stretched to that size.
    Returns:
        [height, width, C], uint8; C = 1 for mode "L", else 3.
    """
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel mode {image.mode} has no 8-bit meaning")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if 0 < (brightest := int(levels.max())) < DARKEST_16_BIT:
            raise ValueError(
                f"16-bit pixels must use their upper bits; the brightest is {brightest} of 65535, as from 10- or "
                "12-bit cameras. Multiply them up to 16 bits"
            )
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    image = image.convert(mode or ("L" if image.mode in GRAYSCALE_MODES else "RGB"))
    if size is not None and crop is not None:
        image = crop(image, size)
    elif size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def to_float(images: Tensor) -> Tensor:
    """Pixel values as activations: [n, C, height, width] uint8 -> float32 in [0, 1], channels last if C > 1."""
    return images.to(torch.float32, memory_format=pixel_layout(images)).div_(255)


def pixel_layout(images: Tensor) -> torch.memory_format:
    """Memory format of images: channels last; contiguous with one channel, where channels last would be ambiguous."""
    return torch.channels_last if images.shape[1] > 1 else torch.contiguous_format


def centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image until it just covers 8/7 of `size`, then crop `size` from its centre."""
    height, width = size
    needed_height, needed_width = round(height * MARGIN), round(width * MARGIN)
    if image.width * needed_height >= image.height * needed_width:
        needed_width = int(needed_height * image.width / image.height)
    else:
        needed_height = int(needed_width * image.height / image.width)
    image = image.resize((needed_width, needed_height), Image.Resampling.BILINEAR)
    top, left = round((needed_height - height) / 2), round((needed_width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def random_crop(seed: int, epoch: int, number: int) -> Crop:
    """The random crop of an image in an epoch, by the image's number: takes a part of the image and resizes it."""

    def crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        top, left, height, width = random_part(image.height, image.width, crop_numbers(seed, epoch, number))
        part = image.crop((left, top, left + width, top + height))
        return part.resize((size[1], size[0]), Image.Resampling.BILINEAR)

    return crop


def crop_numbers(seed: int, epoch: int, number: int) -> np.ndarray:
    """Random numbers for an image's crop: [ATTEMPTS, 4], float64 in [0, 1), by Philox-4x64 without a state."""
    words = np.random.Philox(key=[seed % 2**64, epoch], counter=[0, number, 0, 0]).random_raw(4 * ATTEMPTS)
    return (words >> np.uint64(11)).reshape(ATTEMPTS, 4) * 2.0**-53


def random_part(height: int, width: int, numbers: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part: 8 to 100 % of the area, 3:4 to 4:3, else the largest part in the middle.

    `numbers`, [ATTEMPTS, 4], in [0, 1), are area, aspect, top and left of an attempt.
    """
    for area, aspect, top, left in numbers.tolist():
        pixels = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        ratio = math.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspect)
        part_height, part_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < part_height <= height and 0 < part_width <= width:
            corner = int((height - part_height + 1) * top), int((width - part_width + 1) * left)
            return *corner, part_height, part_width
    part_height = min(height, round(width / ASPECT[0]))
    part_width = min(width, round(height * ASPECT[1]))
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width
