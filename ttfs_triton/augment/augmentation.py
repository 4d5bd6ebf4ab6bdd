"""`Augmentation`, which augments a batch on its device, and the mixing of images by MixUp and CutMix."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from ttfs_triton.augment.geometry import LARGEST_SIDE, mirror, move_bilinear, rotation, windows
from ttfs_triton.augment.philox import (
    ANGLE,
    AUGMENTATION_BLOCKS,
    CROP,
    CUTOUT,
    FLIP,
    MIXING_BLOCKS,
    MIXING_COLUMN,
    MIXING_KIND,
    MIXING_ROW,
    MIXING_SHARE,
    PARTNER,
    SHIFT,
    below,
    random_words,
)
from ttfs_triton.augment.policy import apply_operations, policy_tables
from ttfs_triton.data.pixels import pixel_layout, to_float
from ttfs_triton.shared_options import AugmentationOptions

ANGLES = 4096  # number of equally spaced rotations to draw from; a table holds the map of each
CHANGES = ("crop_padding", "flip", "shift", "auto_augment", "trivial_augment", "rotation", "cutout")


class Augmentation(AugmentationOptions):
    """Augmentations of a run. Shifts and rotations fill uncovered pixels with 0, policies with `crop_fill`.

    Attributes:
        cutout_fill: level of cutout's square, which has a random centre and is clipped at the image's border.
    Raises:
        ValueError: a size or an angle is negative, a fill is neither in 0 to 255 nor "reflect", or two policies are on.

    Source: Cubuk et al., CVPR 2019 (AutoAugment); Müller & Hutter, ICCV 2021 (TrivialAugment); DeVries & Taylor, 2017
    (Cutout); Zhang et al., ICLR 2018 (MixUp); Yun et al., ICCV 2019 (CutMix);
    Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024, section 3.6 (alternating flip).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cutout_fill: int = Field(default=0, ge=0, le=255)

    @property
    def changes_images(self) -> bool:
        """Whether anything but mixing is on."""
        return any(getattr(self, name) for name in CHANGES)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that labels become probabilities of classes."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Augment a batch by everything except mixing.

        Args:
            images: [n, C, height, width], uint8, C = 1 or 3 for a policy, best channels last. Not changed.
            indices: place of each image in its data set, [n], int64, on the images' device. With `seed` and `epoch`,
                it alone determines an image's augmentation.
            seed: seed of the run.
            epoch: number of the epoch.
        Returns:
            [n, C, height, width], float32 in [0, 1], channels last if C > 1.
        Raises:
            ValueError: images and indices do not fit together, or the images are too large, too small for the
                reflected border, or have a number of channels that policies do not take.
            TypeError: the images are not uint8.
        """
        self._check(images, indices)
        self.check_shape(images.shape[1:])
        if not self.changes_images:
            return to_float(images)
        words = random_words(seed, epoch, indices, AUGMENTATION_BLOCKS)
        if self.crop_padding:
            images = windows(images, _corners(words, CROP, self.crop_padding), self.crop_padding, self.crop_fill)
        images = images.contiguous()  # the next operations are fastest plane by plane
        if self.flip == "alternating":
            in_first_epoch = below(random_words(seed, 0, indices, range(1))[:, FLIP], 2)
            images = mirror(images, (in_first_epoch + epoch) % 2)
        elif self.flip:
            images = mirror(images, below(words[:, FLIP], 2))
        if self.shift:
            images = windows(images, _corners(words, SHIFT, self.shift), self.shift, 0)
        if self.auto_augment or self.trivial_augment:
            images = self._apply_policy(images, words)
        if self.rotation:
            maps = _rotation_maps(self.rotation, *images.shape[2:], images.device)
            images = move_bilinear(images, maps[below(words[:, ANGLE], ANGLES)])
        if self.cutout:
            images = _cut_out(images, words, self.cutout, self.cutout_fill)
        return _scale(images)

    def _apply_policy(self, images: Tensor, words: Tensor) -> Tensor:
        """Draw a sub-policy for each image and apply its operations."""
        name = "trivial" if self.trivial_augment else "cifar10" if self.auto_augment is True else self.auto_augment
        policy = policy_tables(name, *images.shape[2:], images.device)
        fill = 0 if self.crop_fill == "reflect" else self.crop_fill
        for rows in policy.draw(words).unbind(1):
            images = apply_operations(images, rows, policy, fill)
        return images

    def _check(self, images: Tensor, indices: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"Augmentation: images must be uint8; got {images.dtype}. Augment before scaling.")
        if indices.shape != (len(images),):
            raise ValueError(
                f"Augmentation: indices must be one for each image; got {tuple(indices.shape)} for {len(images)} "
                "images. Pass the images' places in their data set."
            )

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless images of this shape, (C, height, width), can be augmented."""
        channels, *sides = shape
        if max(sides) > LARGEST_SIDE:
            raise ValueError(
                f"Augmentation: images must be at most {LARGEST_SIDE} pixels a side; got {tuple(sides)}. "
                "Set --image-size."
            )
        if self.crop_fill == "reflect" and self.crop_padding >= min(sides):
            raise ValueError(
                f"Augmentation: crop_padding must be less than the sides of images that crop_fill reflects; got "
                f"{self.crop_padding} for {tuple(sides)}. Lower --crop-padding."
            )
        if (self.auto_augment or self.trivial_augment) and channels not in (1, 3):
            raise ValueError(
                f"Augmentation: images must have 1 or 3 channels for a policy; got {channels}. "
                "Switch auto_augment and trivial_augment off."
            )


def _corners(words: Tensor, first: int, farthest: int) -> Tensor:
    """Two whole numbers from -farthest to farthest for each image, [n, 2], from its words `first` and `first + 1`."""
    return below(words[:, first : first + 2], 2 * farthest + 1) - farthest


@functools.lru_cache(maxsize=4)
def _rotation_maps(degrees: float, height: int, width: int, device: torch.device) -> Tensor:
    """The maps of `ANGLES` rotations from -degrees to degrees: [ANGLES, 6], int32."""
    angles = (degrees * ((2 * number + 1) / ANGLES - 1) for number in range(ANGLES))
    return torch.tensor([rotation(angle, height, width) for angle in angles], dtype=torch.int32, device=device)


def _cut_out(images: Tensor, words: Tensor, side: int, fill: int) -> Tensor:
    """Fill a square of each image, about a random centre."""
    kept = []  # a byte for each row, and each column: all bits set outside the square, none inside
    for axis, size in enumerate(images.shape[2:]):
        first = below(words[:, CUTOUT + axis], size) - side // 2
        at = torch.arange(size, device=images.device) - first[:, None]
        kept.append(-((at < 0) | (at >= side)).to(torch.uint8))
    above_or_below, left_or_right = kept
    levels = above_or_below[:, None, :, None] | left_or_right[:, None, None, :]
    images = images & levels
    return images | ~levels & fill if fill else images


def _scale(images: Tensor) -> Tensor:
    """As `to_float`, for images stored plane by plane, which PyTorch reorders faster one plane after the other."""
    turned = torch.empty_like(images, memory_format=pixel_layout(images))
    for plane, levels in zip(turned.unbind(1), images.unbind(1), strict=True):
        plane.copy_(levels)
    return to_float(turned)


SHARES = 4096  # quantiles of the Beta distribution to draw from


@dataclass(frozen=True)
class Mixing:
    """How n images are mixed: a few numbers per image, drawn for a whole epoch at once.

    Attributes:
        partners: [n], int64, places of the other images in the data set.
        values: [n], float32, share of the partner at a pixel of the rectangle; outside the rectangle it is 0.
        shares: [n], float32, share of the partner in the whole image.
        rectangles: [n, 4], int64, top, bottom, left and right, bottom and right exclusive; None: the whole image.
    """

    partners: Tensor
    values: Tensor
    shares: Tensor
    rectangles: Tensor | None = None

    def __getitem__(self, images: slice) -> Mixing:
        """The mixing of a slice of the images."""
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
    """Draw partners and shares of images; on a GPU some hundred kernel launches, for any number of images.

    Args:
        augmentation: an augmentation with MixUp, CutMix or both.
        seed, epoch: seed of the run, and number of the epoch.
        indices: place of each image in its data set, [n], int64.
        among: places of the images that can be partners, [N], int64, in an order that all processes share.
        height, width: size of the images in pixels.
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
        mixing: how these images are mixed.
        classes: number of classes.
    Returns:
        Mixed images like `images`, and targets [n, classes], float32: each image's class has its share of the pixels.
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
    """Part of range(size) within `length` about a random centre: first place and one past the last, [n, 2], int64."""
    first = below(word, size) - length // 2
    return torch.stack([first, first + length], dim=1).clamp_(0, size)


@functools.lru_cache(maxsize=4)
def _shares(alpha: float, device: torch.device) -> Tensor:
    return torch.from_numpy(beta_quantiles(alpha, SHARES)).float().to(device)


@functools.lru_cache(maxsize=8)
def _sides(alpha: float, size: int, device: torch.device) -> Tensor:
    """Side of the rectangle along an axis of `size` pixels, for each share of the area."""
    return torch.from_numpy((size * np.sqrt(beta_quantiles(alpha, SHARES))).astype(np.int64)).to(device)
