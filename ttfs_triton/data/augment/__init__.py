"""Augmentation of image batches on the device that holds them; random numbers follow from seed, epoch and image.

`philox` makes the random numbers; `policy` has AutoAugment's tables and operations.

Operations equal Pillow's as torchvision calls them (affine maps, nearest pixel, one fill for all channels), in every
grey level and at every magnitude. torchvision's operations on tensors differ: they take other pixels when an image
is rotated, and round blends, means and autocontrast differently.

No existing library draws the same for an image if the number of processes or the batch size changes: kornia (0.9.0)
draws one sub-policy for a whole batch from the global generator, DALI (2.4.0) from streams seeded once for a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from ttfs_triton.data.augment.philox import CROP, CUTOUT, FLIP, SHIFT, below, random_words
from ttfs_triton.data.augment.policy import apply_operations, policy_tables
from ttfs_triton.data.pixels import pixel_layout, to_float
from ttfs_triton.shared_options import AugmentationOptions

__all__ = ["Augmentation"]

LARGEST_SIDE = 8192  # largest side of an image, so that places fit int32
CHANGES = ("crop_padding", "flip", "shift", "auto_augment", "cutout")


class Augmentation(AugmentationOptions):
    """Augmentations of a run. Shifts fill uncovered pixels with 0, AutoAugment with `crop_fill`.

    The square of cutout has a random centre, is clipped at the image's border, and becomes 0.

    Raises:
        ValueError: a size is negative, or a fill is neither in 0 to 255 nor "reflect".

    Source: Cubuk et al., CVPR 2019 (AutoAugment); DeVries & Taylor, 2017 (Cutout);
    Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024, section 3.6 (alternating flip).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def changes_images(self) -> bool:
        """Whether anything is on."""
        return any(getattr(self, name) for name in CHANGES)

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Augment a batch.

        Args:
            images: [n, C, height, width], uint8, C = 1 or 3 for AutoAugment, best channels last. Not changed.
            indices: places of the images in their data set, [n], int64, on the images' device. Only `seed`, `epoch`
                and its place determine an image's augmentation.
            seed: seed of the run.
            epoch: number of the epoch.
        Returns:
            [n, C, height, width], float32 in [0, 1], channels last if C > 1.
        Raises:
            ValueError: images and indices do not fit together, or the images are too large, too small for the
                reflected border, or have a number of channels that AutoAugment does not take.
            TypeError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"Augmentation: images must be uint8; got {images.dtype}. Augment before scaling.")
        if indices.shape != (len(images),):
            raise ValueError(
                f"Augmentation: indices must be [n], one per image; got {tuple(indices.shape)} for {len(images)} "
                "images. Pass the images' places in their data set."
            )
        self.check_shape(images.shape[1:])
        if not self.changes_images:
            return to_float(images)
        words = random_words(seed, epoch, indices)
        if self.crop_padding:
            images = windows(images, _corners(words, CROP, self.crop_padding), self.crop_padding, self.crop_fill)
        images = images.contiguous()  # the next operations are fastest plane by plane
        if self.flip == "alternating":
            in_first_epoch = below(random_words(seed, 0, indices)[:, FLIP], 2)
            images = mirror(images, (in_first_epoch + epoch) % 2)
        elif self.flip:
            images = mirror(images, below(words[:, FLIP], 2))
        if self.shift:
            images = windows(images, _corners(words, SHIFT, self.shift), self.shift, 0)
        if self.auto_augment:
            policy = policy_tables(*images.shape[2:], images.device)
            fill = 0 if self.crop_fill == "reflect" else self.crop_fill
            for rows in policy.draw(words).unbind(1):  # a sub-policy per image has several operations
                images = apply_operations(images, rows, policy, fill)
        if self.cutout:
            images = _cut_out(images, words, self.cutout)
        return _scale(images)

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
        if self.auto_augment and channels not in (1, 3):
            raise ValueError(
                f"Augmentation: images must have 1 or 3 channels for AutoAugment; got {channels}. "
                "Switch auto_augment off."
            )


def _corners(words: Tensor, first: int, farthest: int) -> Tensor:
    """Two whole numbers per image from -farthest to farthest, [n, 2], from its random words `first` and `first + 1`."""
    return below(words[:, first : first + 2], 2 * farthest + 1) - farthest


def _cut_out(images: Tensor, words: Tensor, side: int) -> Tensor:
    """Set a square of every image, about a random centre, to 0."""
    kept = []  # a byte per row, and a byte per column: all bits set outside the square, none inside
    for axis, size in enumerate(images.shape[2:]):
        first = below(words[:, CUTOUT + axis], size) - side // 2
        at = torch.arange(size, device=images.device) - first[:, None]
        kept.append(-((at < 0) | (at >= side)).to(torch.uint8))
    above_or_below, left_or_right = kept
    return images & (above_or_below[:, None, :, None] | left_or_right[:, None, None, :])


def _scale(images: Tensor) -> Tensor:
    """As `to_float`, for images stored plane by plane: PyTorch reorders these faster one plane after the other."""
    turned = torch.empty_like(images, memory_format=pixel_layout(images))
    for plane, levels in zip(turned.unbind(1), images.unbind(1), strict=True):
        plane.copy_(levels)
    return to_float(turned)


def windows(images: Tensor, corners: Tensor, padding: int, fill: int | Literal["reflect"]) -> Tensor:
    """Windows of padded images, one per image and of its size; `corners`, [n, 2], are rows and columns, int64.

    Corners lie in [-padding, padding]. Pixels outside have the level `fill`, or "reflect" the image (padding < sides).
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
    # Where the mask is set, (mirrored ^ image) ^ image is the mirrored one; faster than `torch.where` on bytes.
    mask = (-chosen).to(torch.uint8).view(-1, 1, 1, 1)
    return images.flip(3).bitwise_xor_(images).bitwise_and_(mask).bitwise_xor_(images)
