"""The operations of a policy on a batch: images of one kind of operation are computed together."""

from __future__ import annotations

import torch
from torch import Tensor

from ttfs_triton.augment.geometry import move
from ttfs_triton.augment.points import (
    auto_contrast_tables,
    colour,
    contrast_tables,
    equalise_tables,
    histograms,
    look_up,
    sharpness,
)
from ttfs_triton.augment.policy import Kind, Policy


def apply_operations(images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: [n, C, height, width], uint8, C = 1 or 3. Not changed.
        rows: [n], int64, of the policy's operations.
        policy: for images of this size, on this device.
        fill: level of what geometric operations uncover.
    Returns:
        As `images`.
    """
    kinds = policy.kinds[rows]
    order = kinds.argsort()
    sorted_images, sorted_rows = images.index_select(0, order), rows[order]
    counts = torch.bincount(kinds, minlength=len(Kind)).tolist()
    groups = zip(Kind, sorted_images.split(counts), sorted_rows.split(counts), strict=True)
    results = [_apply(kind, some, of, policy, fill) for kind, some, of in groups if len(some)]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return torch.cat(results).index_select(0, back)


def _apply(kind: Kind, images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """Operations of one kind."""
    match kind:
        case Kind.IDENTITY:
            return images
        case Kind.GEOMETRY:
            return move(images, policy.maps[rows], fill)
        case Kind.LEVELS:
            return look_up(images, policy.levels[rows][:, None])
        case Kind.CONTRAST:
            return look_up(images, contrast_tables(images, policy.factors[rows]))
        case Kind.AUTO_CONTRAST:
            return look_up(images, auto_contrast_tables(histograms(images)))
        case Kind.EQUALISE:
            return look_up(images, equalise_tables(histograms(images)))
        case Kind.COLOUR:
            return colour(images, policy.factors[rows])
        case Kind.SHARPNESS:
            return sharpness(images, policy.factors[rows])
