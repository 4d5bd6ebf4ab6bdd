"""From a decoded image to what networks read; the same in training and when a published model classifies."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ttfs_triton.data.crops import Crop

GRAYSCALE_MODES = ("1", "L", "LA")


def image_pixels(
    image: Image.Image, size: tuple[int, int] | None = None, mode: str | None = None, crop: Crop | None = None
) -> np.ndarray:
    """8-bit pixels of an image.

    Args:
        image: any mode of Pillow's but "I" and "F". Photographs are turned upright as their EXIF data say, transparency
            is dropped, 16-bit grayscale keeps its upper 8 bits.
        size: (height, width) to resize to, bilinear over the area that a pixel stands for. Default: as it is.
        mode: "L" or "RGB". Default: "L" for grayscale images, else "RGB".
        crop: what makes the image one of `size`. Default: all of it is stretched to that size.
    Returns:
        [height, width, C], uint8; C = 1 for mode "L", else 3.
    Raises:
        ValueError: a pixel format without a meaning as 8-bit values.
    """
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel mode {image.mode} has no 8-bit meaning")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
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
    """Channels last, but for one channel, where that would be ambiguous."""
    return torch.channels_last if images.shape[1] > 1 else torch.contiguous_format
