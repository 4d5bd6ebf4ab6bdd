"""Parts of photographs as networks are trained and scored on them: a random one, or the middle.

As torchvision's RandomResizedCrop, and its Resize and CenterCrop, do with Pillow's images. The random part is a
function of seed, epoch and the image's number: whichever process asks, in whatever batch, before or after a restart.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Crop = Callable[[Image.Image, tuple[int, int]], Image.Image]
"""From an image, upright and in its final mode, to one of (height, width) pixels."""

AREA = (0.08, 1.0)  # share of the image
ASPECT = (3 / 4, 4 / 3)  # width over height
ATTEMPTS = 10
# Evaluation looks at the middle 224 pixels of 256.
MARGIN = 8 / 7


def centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image whose shorter side is resized to 8/7 of what is wanted."""
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
    """The random part, resized, of the image with this number in this epoch."""

    def crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        top, left, height, width = random_part(image.height, image.width, crop_numbers(seed, epoch, number))
        part = image.crop((left, top, left + width, top + height))
        return part.resize((size[1], size[0]), Image.Resampling.BILINEAR)

    return crop


def crop_numbers(seed: int, epoch: int, number: int) -> np.ndarray:
    """Random numbers of an image: [ATTEMPTS, 4], float64 in [0, 1). Philox-4x64, a counter in place of a state."""
    words = np.random.Philox(key=[seed % 2**64, epoch], counter=[0, number, 0, 0]).random_raw(4 * ATTEMPTS)
    return (words >> np.uint64(11)).reshape(ATTEMPTS, 4) * 2.0**-53


def random_part(height: int, width: int, numbers: np.ndarray) -> tuple[int, int, int, int]:
    """A part of 8 to 100 % of an image's area whose sides are as 3:4 to 4:3.

    Args:
        height, width: of the image in pixels.
        numbers: [ATTEMPTS, 4], in [0, 1): area, aspect, top and left of each attempt.
    Returns:
        Top, left, height and width. If no attempt fits, the largest part in the middle.
    """
    for area, aspect, top, left in numbers.tolist():
        pixels = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        ratio = math.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspect)
        part_height, part_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < part_height <= height and 0 < part_width <= width:
            return (
                int((height - part_height + 1) * top),
                int((width - part_width + 1) * left),
                part_height,
                part_width,
            )
    part_height = min(height, round(width / ASPECT[0]))
    part_width = min(width, round(height * ASPECT[1]))
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width
