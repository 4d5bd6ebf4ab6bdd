"""The operations of a policy, each on a batch: an affine map, a blend with a second image, or a table of 256 levels.

Rounding is Pillow's, also where the tensors of torchvision round otherwise: a blend is cut off towards 0, grey is
(19595·R + 38470·G + 7471·B + 32768) / 65536, cut off. Images are [n, C, height, width], uint8, C = 1 or 3, contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttfs_triton.augment.geometry import move
from ttfs_triton.augment.policy import Kind, Policy

GREY = (19595, 38470, 7471)  # in 1/65536


def apply_operations(images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """Apply one operation to each image.

    On a CPU each operation is applied to the images that drew it. On a GPU each is applied to all images, and the
    results of those that drew it are kept: counting them would make the host wait.

    Args:
        images: not changed.
        rows: [n], int64, of the policy's operations.
        policy: for images of this size, on this device.
        fill: level of what geometric operations uncover.
    Returns:
        As `images`.
    """
    kinds = policy.kinds[rows]
    if images.device.type != "cpu":
        result = images
        for kind in Kind:
            result = torch.where((kinds == kind).view(-1, 1, 1, 1), _apply(kind, images, rows, policy, fill), result)
        return result
    order = kinds.argsort()
    counts = torch.bincount(kinds, minlength=len(Kind)).tolist()
    groups = zip(Kind, images.index_select(0, order).split(counts), rows[order].split(counts), strict=True)
    results = [_apply(kind, some, of, policy, fill) for kind, some, of in groups if len(some)]
    return torch.cat(results).index_select(0, order.argsort())


def _apply(kind: Kind, images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """One operation of a kind to each image."""
    match kind:
        case Kind.IDENTITY:
            return images
        case Kind.GEOMETRY:
            return move(images, policy.maps[rows], fill)
        case Kind.COLOUR:
            return colour(images, policy.factors[rows])
        case Kind.SHARPNESS:
            return sharpness(images, policy.factors[rows])
    places = places_in_tables(images)
    match kind:
        case Kind.LEVELS:
            tables = policy.levels[rows][:, None]
        case Kind.CONTRAST:
            tables = contrast_tables(images, policy.factors[rows])
        case Kind.AUTO_CONTRAST:
            tables = auto_contrast_tables(images)
        case Kind.EQUALISE:
            tables = equalise_tables(images, places)
    tables = tables.expand(-1, images.shape[1], -1)
    return tables.reshape(-1).index_select(0, places).view(images.shape)


def places_in_tables(images: Tensor) -> Tensor:
    """Places of pixels in tables of 256 levels a plane that lie one behind another; [n · C · height · width], int32."""
    planes = images.flatten(2).flatten(0, 1)
    first = 256 * torch.arange(len(planes), dtype=torch.int32, device=images.device)
    return planes.int().add_(first[:, None]).view(-1)


def grey_levels(images: Tensor) -> Tensor:
    """Grey images, [n, height, width], of [n, C, height, width]; both float32, whole numbers in [0, 255]."""
    if images.shape[1] == 1:
        return images[:, 0]
    red, green, blue = images.unbind(1)
    # All sums are below 2²⁴, so that float32 is exact.
    weighted = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).add_(32768)
    return weighted.mul_(1 / 65536).floor_()


def blend(first: Tensor, second: Tensor, factors: Tensor) -> Tensor:
    """first + factors · (second − first) of levels, whole numbers in float32; cut off to uint8."""
    # By way of int16: PyTorch has no fast path from float to uint8.
    return (second - first).mul_(factors).add_(first).clamp_(0, 255).short().to(torch.uint8)


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the grey image; a factor for each image, 0: grey."""
    levels = images.float()
    return blend(grey_levels(levels)[:, None], levels, factors.view(-1, 1, 1, 1))


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the smoothed image; a factor for each image, 0: smooth. The outermost pixels stay.

    Smooth is the mean over a pixel and its eight neighbours, in which the pixel counts five times.
    """
    n, channels, height, width = images.shape
    if height < 3 or width < 3:
        return images
    # Planes as lines, which are faster than rows: at a row's ends the sums run over into the next one, unused.
    levels = images.view(n, channels, -1).float()
    three = (levels[..., : -2 * width] + levels[..., width:-width]).add_(levels[..., 2 * width :])
    centre = levels[..., width + 1 : -width - 1]
    thirteen = (three[..., :-2] + three[..., 1:-1]).add_(three[..., 2:]).add_(centre, alpha=4)
    # No thirteenth lies halfway between two levels: any rounding of the product gives the same.
    smooth = thirteen.mul_(1 / 13).add_(0.5).floor_()
    sharp = blend(smooth, centre, factors.view(-1, 1, 1))
    inner = (n, channels, height - 2, width - 2)
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = sharp.as_strided(inner, (*sharp.stride()[:2], width, 1))
    return result


def contrast_tables(images: Tensor, factors: Tensor) -> Tensor:
    """Levels blended with the mean grey level, rounded; [n, 1, 256], uint8."""
    area = images.shape[2] * images.shape[3]
    total = grey_levels(images.float()).sum((1, 2), dtype=torch.float64)
    mean = total.mul_(2).add_(area).div_(2 * area).floor_().float()
    level = torch.arange(256, dtype=torch.float32, device=images.device)
    return blend(mean.view(-1, 1, 1), level, factors.view(-1, 1, 1))


def auto_contrast_tables(images: Tensor) -> Tensor:
    """Levels stretched so that the darkest of a channel becomes 0 and its brightest 255; [n, C, 256], uint8."""
    planes = images.flatten(2)
    darkest, brightest = planes.amin(2, keepdim=True).double(), planes.amax(2, keepdim=True).double()
    # Pillow's double precision decides on which side of a level a product falls.
    constant = brightest == darkest
    scale = (torch.full_like(darkest, 255) / (brightest - darkest)).masked_fill_(constant, 1)
    offset = (-darkest * scale).masked_fill_(constant, 0)
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    return (level * scale).add_(offset).clamp_(0, 255).short().to(torch.uint8)


def equalise_tables(images: Tensor, places: Tensor) -> Tensor:
    """Levels spread so that each range of a channel holds as many pixels as any other; [n, C, 256], uint8."""
    n, channels, height, width = images.shape
    one = torch.ones_like(places[:1]).expand(len(places))
    counts = places.new_zeros(n * channels * 256).index_add_(0, places, one).view(n, channels, 256)
    brightest = images.flatten(2).amax(2, keepdim=True).long()
    step = (height * width - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2, dtype=torch.int32).sub_(counts).add_(step // 2)
    # Whole numbers in float64, which PyTorch divides faster: no quotient is rounded up to the next of them.
    spread = below.double().div_(step.clamp(min=1)).clamp_(max=255).short().to(torch.uint8)
    level = torch.arange(256, dtype=torch.uint8, device=images.device)
    return torch.where(step > 0, spread, level)
