"""What changes levels where they are: tables of 256 levels an image and channel, and blends with a second image.

Rounding is Pillow's, also where the tensors of torchvision round otherwise: a blend is cut off towards 0, grey is
(19595·R + 38470·G + 7471·B + 32768) / 65536, cut off. Images are [n, C, height, width], uint8, C = 1 or 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = (19595, 38470, 7471)  # in 1/65536


def grey_levels(images: Tensor) -> Tensor:
    """Grey images, [n, height, width], int32 in [0, 255]."""
    if images.shape[1] == 1:
        return images[:, 0].int()
    red, green, blue = images.int().unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).add_(32768) >> 16


def blend(first: Tensor, second: Tensor, factors: Tensor) -> Tensor:
    """first + factors · (second − first) of levels, whole numbers, in float32; cut off to uint8."""
    # By way of int16: PyTorch has no fast path from float to uint8.
    return (second - first).mul(factors).add_(first).clamp_(0, 255).short().to(torch.uint8)


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the grey image; a factor for each image, 0: grey."""
    return blend(grey_levels(images)[:, None], images, factors.view(-1, 1, 1, 1))


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the smoothed image; a factor for each image, 0: smooth. The outermost pixels stay.

    Smooth is the mean over a pixel and its eight neighbours, in which the pixel counts five times.
    """
    height, width = images.shape[2:]
    if height < 3 or width < 3:
        return images
    levels = images.short()
    three = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    centre = levels[:, :, 1:-1, 1:-1]
    thirteen = three[..., :-2] + three[..., 1:-1] + three[..., 2:] + 4 * centre
    # No thirteenth lies halfway between two levels: any rounding of the product gives the same.
    smooth = thirteen.float().mul_(1 / 13).add_(0.5).short()
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = blend(smooth, centre, factors.view(-1, 1, 1, 1))
    return result


def histograms(images: Tensor) -> Tensor:
    """How many pixels have each level: [n, C, 256], int64."""
    planes = images.shape[0] * images.shape[1]
    index = images.view(planes, -1).int()
    index += 256 * torch.arange(planes, dtype=torch.int32, device=images.device)[:, None]
    return torch.bincount(index.view(-1), minlength=planes * 256).view(*images.shape[:2], 256)


def contrast_tables(images: Tensor, factors: Tensor) -> Tensor:
    """Levels blended with the mean grey level, rounded; [n, 1, 256], uint8."""
    area = images.shape[2] * images.shape[3]
    mean = (2 * grey_levels(images).sum((1, 2)) + area) // (2 * area)
    level = torch.arange(256, dtype=torch.int32, device=images.device)
    return blend(mean.view(-1, 1, 1), level, factors.view(-1, 1, 1))


def auto_contrast_tables(counts: Tensor) -> Tensor:
    """Levels stretched so that the darkest becomes 0 and the brightest 255; from histograms, [n, C, 256], uint8."""
    present = counts > 0
    level = torch.arange(256, device=counts.device)
    darkest = torch.where(present, level, 255).amin(2, keepdim=True)
    brightest = torch.where(present, level, 0).amax(2, keepdim=True)
    # Pillow's double precision decides on which side of a level a product falls.
    spread = (brightest - darkest).clamp(min=1).double()
    scale = torch.full_like(spread, 255) / spread  # `255 / spread` would multiply by the reciprocal
    stretched = (level * scale + -darkest * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(brightest > darkest, stretched, level.to(torch.uint8))


def equalise_tables(counts: Tensor) -> Tensor:
    """Levels spread so that each range holds as many pixels as any other; from histograms, [n, C, 256], uint8."""
    level = torch.arange(256, device=counts.device)
    brightest = torch.where(counts > 0, level, 0).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2) - counts
    spread = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255).to(torch.uint8)
    return torch.where(step > 0, spread, level.to(torch.uint8))


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Levels through tables, [n, C, 256] or, one for all channels, [n, 1, 256]."""
    tables = tables.expand(-1, images.shape[1], -1)
    return tables.gather(2, images.flatten(2).long()).view(images.shape)
