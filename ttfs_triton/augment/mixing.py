"""MixUp and CutMix: each image with a partner from the whole data set, not from its batch.

Partner, share and rectangle are functions of (seed, epoch, index of the image), and the partner is augmented by its own
random numbers. So a mixed image is the same in any batch and under any number of processes. The price is a second image
for each one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttfs_triton.augment.augmentation import Augmentation
from ttfs_triton.augment.philox import (
    MIXING_BLOCKS,
    MIXING_COLUMN,
    MIXING_KIND,
    MIXING_ROW,
    MIXING_SHARE,
    PARTNER,
    below,
    random_words,
)
from ttfs_triton.data.pixels import pixel_layout

SHARES = 4096  # quantiles of the Beta distribution to draw from


@dataclass(frozen=True)
class Mixing:
    """How n images are mixed: a few numbers an image, drawn for a whole epoch at once.

    Attributes:
        partners: [n], int64, indices of the other images in the data set.
        values: [n], float32, share of the partner at a pixel of the rectangle; 0 outside of it.
        shares: [n], float32, of the partner in the whole image.
        rectangles: [n, 4], int64, top, bottom, left and right, the ends outside; None: the whole image.
    """

    partners: Tensor
    values: Tensor
    shares: Tensor
    rectangles: Tensor | None = None

    def __getitem__(self, images: slice) -> Mixing:
        """That of some of the images."""
        rectangles = None if self.rectangles is None else self.rectangles[images]
        return Mixing(self.partners[images], self.values[images], self.shares[images], rectangles)

    def weights(self, height: int, width: int) -> Tensor:
        """Share of the partner at each pixel: [n, 1, height, width], or [n, 1, 1, 1] where all pixels have the same."""
        if self.rectangles is None:
            return self.values.view(-1, 1, 1, 1)
        top, bottom, left, right = self.rectangles[:, None].unbind(2)
        row, column = (torch.arange(size, device=self.values.device) for size in (height, width))
        inside = ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None]
        return (inside * self.values.view(-1, 1, 1))[:, None]


def draw_mixing(
    augmentation: Augmentation, seed: int, epoch: int, indices: Tensor, among: Tensor, height: int, width: int
) -> Mixing:
    """Partners and shares of images; on a GPU some hundred launches, whatever the number of images.

    Args:
        augmentation: with MixUp, CutMix or both.
        seed, epoch: of the run, of the epoch.
        indices: [n], int64, of the images in their data set.
        among: [N], int64, images that can be partners, in an order that all processes share.
        height, width: of the images in pixels.
    """
    words = random_words(seed, epoch, indices, MIXING_BLOCKS)
    partners, number = among[below(words[:, PARTNER], len(among))], below(words[:, MIXING_SHARE], SHARES)
    shares = _shares(augmentation.mixup, indices.device)[number] if augmentation.mixup else None
    if not augmentation.cutmix:
        assert shares is not None
        return Mixing(partners, shares, shares)
    rows = _interval(words[:, MIXING_ROW], _sides(augmentation.cutmix, height, indices.device)[number], height)
    columns = _interval(words[:, MIXING_COLUMN], _sides(augmentation.cutmix, width, indices.device)[number], width)
    rectangles = torch.cat([rows, columns], dim=1)
    area = (rows[:, 1] - rows[:, 0]) * (columns[:, 1] - columns[:, 0])
    cut = area.float() / (height * width)
    if shares is None:
        return Mixing(partners, torch.ones_like(cut), cut, rectangles)
    mixed = below(words[:, MIXING_KIND], 2).bool()
    whole = torch.zeros_like(rectangles)
    whole[:, 1], whole[:, 3] = height, width
    return Mixing(
        partners,
        torch.where(mixed, shares, 1.0),
        torch.where(mixed, shares, cut),
        torch.where(mixed[:, None], whole, rectangles),
    )


def mix(
    images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, mixing: Mixing, classes: int
) -> tuple[Tensor, Tensor]:
    """Mix images and their labels.

    Args:
        images, partners: [n, C, height, width], float.
        labels, partner_labels: [n], int64, in [0, classes).
        mixing: of these images.
        classes: number of classes.
    Returns:
        Images as given, and targets [n, classes], float32: the share of an image is that of its pixels.
    """
    weights = mixing.weights(*images.shape[2:])
    mixed = (images * (1 - weights)).add_(partners * weights)
    share = mixing.shares[:, None]
    targets = torch.zeros(len(labels), classes, device=labels.device)
    targets.scatter_add_(1, labels[:, None], 1 - share).scatter_add_(1, partner_labels[:, None], share)
    return mixed.contiguous(memory_format=pixel_layout(images)), targets


def beta_quantiles(alpha: float, count: int) -> np.ndarray:
    """Quantiles of Beta(α, α) at (i + ½) / count, float64.

    With x = ½·s^(1/p), p = min(α, 1), the density over s in [0, 1] is s^(α/p − 1)·(1 − x)^(α − 1) up to a factor:
    bounded on the lower half, however sharp the peak at 0; the upper half mirrors it.
    """
    power = min(alpha, 1)
    s = np.linspace(0, 1, 65537)
    density = s ** (alpha / power - 1) * (1 - 0.5 * s ** (1 / power)) ** (alpha - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    place = (np.arange(count) + 0.5) / count
    lower = 0.5 * np.interp(2 * np.minimum(place, 1 - place), mass / mass[-1], s) ** (1 / power)
    return np.where(place < 0.5, lower, 1 - lower)


def _interval(word: Tensor, length: Tensor, size: int) -> Tensor:
    """Which of `size` places are within `length` about a random centre: first and one past the last, [n, 2], int64."""
    first = below(word, size) - length // 2
    return torch.stack([first, first + length], dim=1).clamp_(0, size)


@functools.lru_cache(maxsize=4)
def _shares(alpha: float, device: torch.device) -> Tensor:
    return torch.from_numpy(beta_quantiles(alpha, SHARES)).float().to(device)


@functools.lru_cache(maxsize=8)
def _sides(alpha: float, size: int, device: torch.device) -> Tensor:
    """Side of the rectangle along an axis, for each share: the share is that of the area."""
    return torch.from_numpy((size * np.sqrt(beta_quantiles(alpha, SHARES))).astype(np.int64)).to(device)
