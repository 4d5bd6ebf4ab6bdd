"""All that moves pixels — crop, flip, shift, shear, translation, rotation — through one affine map in fixed point.

A map gives for the centre of output pixel (x, y) a place in the input, in 1/65536 pixel: a·x + b·y + c across and
d·x + e·y + f down. Pillow computes its affine maps in the same integers, so the nearest pixel is Pillow's, and the
same on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

ONE = 65536  # a pixel in 16.16 fixed point
IDENTITY = (ONE, 0, ONE // 2, 0, ONE, ONE // 2)
LARGEST_SIDE = 8192  # of an image, so that no place leaves int32


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


def window_maps(corner: Tensor, flip: Tensor | None, width: int) -> Tensor:
    """Maps of windows of the image's own size.

    Args:
        corner: [n, 2], int64, row and column of the window's corner in the image; outside of it is allowed.
        flip: [n], bool, mirror the window left to right.
        width: of the window in pixels.
    Returns:
        [n, 6], int32.
    """
    maps = torch.tensor(IDENTITY, dtype=torch.int32, device=corner.device).repeat(len(corner), 1)
    top, left = corner.unbind(1)
    if flip is not None:
        maps[:, 0] -= 2 * ONE * flip.int()
        left = left + (width - 1) * flip
    maps[:, 2] += (left * ONE).int()
    maps[:, 5] += (top * ONE).int()
    return maps


def places(maps: Tensor, height: int, width: int, *, aligned: bool = False) -> tuple[Tensor, Tensor]:
    """Where output pixels come from, in 1/65536 pixel.

    Args:
        maps: [n, 6], int32.
        height, width: in pixels.
        aligned: the maps neither turn nor shear, so that rows are a matter of y alone and columns of x.
    Returns:
        Row and column, int32, each [n, height, width]; if aligned, [n, height, 1] and [n, 1, width].
    """
    x = torch.arange(width, dtype=torch.int32, device=maps.device)
    y = torch.arange(height, dtype=torch.int32, device=maps.device)[:, None]
    a, b, c, d, e, f = (term[:, None, None] for term in maps.unbind(1))
    if aligned:
        return e * y + f, a * x + c
    return (e * y + f) + d * x, (b * y + c) + a * x


def pixels_at(images: Tensor, rows: Tensor, columns: Tensor, fill: int) -> Tensor:
    """Pixels of images [n, C, height, width] at whole places that broadcast to [n, height, width]; `fill` outside."""
    n, channels, height, width = images.shape
    # A border of one pixel stands for all that is outside: clamping is cheaper than asking each place.
    framed = pad(images, (1, 1, 1, 1), value=fill).view(n, channels, -1)
    rows, columns = rows.clamp(-1, height), columns.clamp(-1, width)
    index = (rows.add_(1).mul_(width + 2).add_(1) + columns).view(n, 1, -1).long()
    return framed.gather(2, index.expand(-1, channels, -1)).view(images.shape)


def move(images: Tensor, maps: Tensor, fill: int, *, aligned: bool = False) -> Tensor:
    """Map images, each pixel from the nearest.

    Args:
        images: [n, C, height, width], uint8.
        maps: [n, 6], int32.
        fill: level outside the image.
        aligned: as for `places`.
    Returns:
        As `images`.
    """
    rows, columns = places(maps, *images.shape[2:], aligned=aligned)
    return pixels_at(images, rows >> 16, columns >> 16, fill)


def move_bilinear(images: Tensor, maps: Tensor) -> Tensor:
    """Map images, each pixel from the four around its place, which counts in 1/256 pixel; 0 outside the image."""
    rows, columns = places(maps, *images.shape[2:])
    # Places are of centres: half a pixel back, the pixel above and to the left has its centre at a whole number.
    rows, columns = rows - ONE // 2, columns - ONE // 2
    down, across = (rows >> 8 & 255)[:, None], (columns >> 8 & 255)[:, None]
    rows, columns = rows >> 16, columns >> 16
    result = torch.full(images.shape, ONE // 2, dtype=torch.int32, device=images.device)
    for i, weight_down in enumerate((256 - down, down)):
        for j, weight_across in enumerate((256 - across, across)):
            result += pixels_at(images, rows + i, columns + j, 0) * (weight_down * weight_across)
    return (result >> 16).to(torch.uint8)
