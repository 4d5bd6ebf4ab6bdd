"""Operations that move pixels: windows for crop and shift, flips, affine maps for shear, translation and rotation.

A map takes the centre of output pixel (x, y) to a place in the input, in 1/65536 pixel: a·x + b·y + c across and
d·x + e·y + f down. These are Pillow's integers, so the nearest pixel is Pillow's, on every device.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

ONE = 65536  # a pixel in 16.16 fixed point
IDENTITY = (ONE, 0, ONE // 2, 0, ONE, ONE // 2)
LARGEST_SIDE = 8192  # largest side of an image, so that places fit int32


def affine(a: float, b: float, c: float, d: float, e: float, f: float) -> tuple[int, ...]:
    """The map (x, y) → (a·x + b·y + c, d·x + e·y + f) of continuous coordinates, rounded as Pillow does."""
    terms = (a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2)
    return tuple(math.floor(term * ONE + 0.5) for term in terms)


def rotation(degrees: float, height: int, width: int) -> tuple[int, ...]:
    """Counter-clockwise rotation about the image's centre, as `PIL.Image.rotate` computes it."""
    angle = -math.radians(degrees % 360)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return affine(cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)


def windows(images: Tensor, corners: Tensor, padding: int, fill: int | Literal["reflect"]) -> Tensor:
    """One window of each padded image, of the image's own size.

    Args:
        images: [n, C, height, width], uint8, in any memory format.
        corners: [n, 2], int64, row and column of each window's corner in its image, from -padding to padding.
        padding: number of pixels around the image that a window may reach into; if reflected, less than its sides.
        fill: level of these pixels, or "reflect" to mirror the image about its outermost pixels.
    Returns:
        As `images`, contiguous.
    """
    n, channels, height, width = images.shape
    padding = min(padding, max(height, width))  # a window farther away holds no pixel of the image either
    framed = images.new_empty((n, channels, height + 2 * padding, width + 2 * padding))
    if fill != "reflect":
        framed.fill_(fill)
    framed[:, :, padding : padding + height, padding : padding + width] = images
    if fill == "reflect":
        _reflect(framed, padding)
    # `views` has a window for every pixel of the frame where one could begin; those at the corners are copied.
    image, plane, row, _ = framed.stride()
    top, left = (corners + padding).clamp_(0, 2 * padding).unbind(1)
    begin = image * torch.arange(n, device=images.device) + row * top + left
    views = framed.as_strided(
        (image * (n - 1) + 2 * padding * (row + 1) + 1, channels, height, width), (1, plane, row, 1)
    )
    return views.index_select(0, begin)


def _reflect(framed: Tensor, padding: int) -> None:
    """Reflect images into a border of `padding` pixels; `torch.nn.functional.pad` does not take uint8 on a GPU."""
    for axis in (2, 3):
        end = framed.shape[axis] - padding
        framed.narrow(axis, 0, padding).copy_(framed.narrow(axis, padding + 1, padding).flip(axis))
        framed.narrow(axis, end, padding).copy_(framed.narrow(axis, end - 1 - padding, padding).flip(axis))


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Images [n, C, height, width], mirrored left to right where `chosen`, [n], int64, is 1."""
    # Where all bits of the mask are set, two differences leave the mirrored image; faster than `torch.where` on bytes.
    mask = (-chosen).to(torch.uint8).view(-1, 1, 1, 1)
    return images.flip(3).bitwise_xor_(images).bitwise_and_(mask).bitwise_xor_(images)


def move(images: Tensor, maps: Tensor, fill: int) -> Tensor:
    """Map images [n, C, height, width], uint8, by maps [n, 6], int32, each pixel from the nearest; `fill` outside."""
    channels, height, width = images.shape[1:]
    x = torch.arange(width, dtype=torch.int32, device=maps.device)
    y = torch.arange(height, dtype=torch.int32, device=maps.device)[:, None]
    a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
    # Places outside are clamped to a border of `fill`, which is cheaper than to test each.
    framed = pad(images, (1,) * 4, value=fill)
    rows = (((e * y + f) + d * x) >> 16).clamp_(-1, height)
    columns = (((b * y + c) + a * x) >> 16).clamp_(-1, width)
    index = rows.mul_(width + 2).add_(columns).add_(width + 3).flatten(1)[:, None].long()
    return framed.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)
