"""The operations of a policy on a batch: images of one kind together, all that are tables in one look-up."""

from __future__ import annotations

import torch
from torch import Tensor

from ttfs_triton.augment.geometry import move
from ttfs_triton.augment.points import (
    auto_contrast_tables,
    colour,
    contrast_tables,
    equalise_tables,
    look_up,
    sharpness,
)
from ttfs_triton.augment.policy import TABLES, Kind, Policy


def apply_operations(images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: [n, C, height, width], uint8, C = 1 or 3, contiguous. Not changed.
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
    present = [(kind, some, of) for kind, some, of in groups if len(some)]
    results = [_apply(kind, some, of, policy, fill) for kind, some, of in present if kind not in TABLES]
    tables = [_tables(kind, some, of, policy) for kind, some, of in present if kind in TABLES]
    if tables:
        results.append(look_up(sorted_images[-sum(map(len, tables)) :], torch.cat(tables)))
    return torch.cat(results).index_select(0, order.argsort())


def _apply(kind: Kind, images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """Operations of one kind that is no table."""
    match kind:
        case Kind.GEOMETRY:
            return move(images, policy.maps[rows], fill)
        case Kind.COLOUR:
            return colour(images, policy.factors[rows])
        case Kind.SHARPNESS:
            return sharpness(images, policy.factors[rows])
        case _:
            return images


def _tables(kind: Kind, images: Tensor, rows: Tensor, policy: Policy) -> Tensor:
    """What becomes of each level of each channel, for operations of one kind: [n, C, 256], uint8."""
    match kind:
        case Kind.CONTRAST:
            tables = contrast_tables(images, policy.factors[rows])
        case Kind.AUTO_CONTRAST:
            tables = auto_contrast_tables(images)
        case Kind.EQUALISE:
            tables = equalise_tables(images)
        case _:
            tables = policy.levels[rows][:, None]
    return tables.expand(-1, images.shape[1], -1)
