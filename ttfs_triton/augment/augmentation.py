"""The augmentations of a run, and the one pass that applies them to a batch where it lies."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ttfs_kernels.backends import operators_for
from ttfs_triton.augment.geometry import LARGEST_SIDE, mirror, move_bilinear, windows
from ttfs_triton.augment.operations import apply_operations
from ttfs_triton.augment.parameters import Parameters, draw_parameters, rotation_maps
from ttfs_triton.augment.policy import Policy, PolicyName, policy_tables
from ttfs_triton.data.pixels import pixel_layout, to_float

Fill = Annotated[int, Field(ge=0, le=255)] | Literal["reflect"]
Flip = bool | Literal["alternating"]
CHANGES = ("crop_padding", "flip", "shift", "auto_augment", "trivial_augment", "rotation", "cutout")


class Augmentation(BaseModel):
    """Which augmentations are on, in the order in which they are applied; all are off by default.

    Attributes:
        crop_padding: pixels added on each side before a random crop of the original size. 0: no crop.
        crop_fill: level of that border, also of the border that a policy's operations uncover. "reflect": the border
            mirrors the image about its outermost pixels, and what a policy's operations uncover is 0.
        flip: mirror left to right with probability 1/2. "alternating": in the first epoch with probability 1/2, from
            then on in every other epoch.
        shift: move by up to this many pixels in each direction, the uncovered border is 0. 0: no shift.
        auto_augment: one sub-policy of an AutoAugment policy for each image. True: of CIFAR-10's.
        trivial_augment: one operation of TrivialAugment (Wide) for each image.
        rotation: rotate by up to this many degrees either way, bilinear, the uncovered border is 0.
        cutout: side in pixels of a square at a random centre, clipped at the image's border. 0: no Cutout.
        cutout_fill: level of that square.
        mixup: parameter α of MixUp: with share λ of another image, λ from Beta(α, α). 0: no MixUp.
        cutmix: parameter α of CutMix: a rectangle of share λ from another image. 0: no CutMix. With both, each image
            gets one or the other with probability 1/2.

    Raises:
        ValueError: a size or an angle is negative, a fill is neither in 0 to 255 nor "reflect", or two policies are on.

    Source: Cubuk et al., CVPR 2019 (AutoAugment); Müller & Hutter, ICCV 2021 (TrivialAugment); DeVries & Taylor, 2017
    (Cutout); Zhang et al., ICLR 2018 (MixUp); Yun et al., ICCV 2019 (CutMix);
    Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024, section 3.6 (alternating flip).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop_padding: int = Field(default=0, ge=0)
    crop_fill: Fill = 0
    flip: Flip = False
    shift: int = Field(default=0, ge=0)
    auto_augment: bool | PolicyName = False
    trivial_augment: bool = False
    rotation: float = Field(default=0.0, ge=0)
    cutout: int = Field(default=0, ge=0)
    cutout_fill: int = Field(default=0, ge=0, le=255)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _one_policy(self) -> Augmentation:
        if self.auto_augment and self.trivial_augment:
            raise ValueError("auto_augment and trivial_augment exclude each other; switch one off")
        return self

    @property
    def changes_images(self) -> bool:
        """Whether anything but mixing is on."""
        return any(getattr(self, name) for name in CHANGES)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that labels become probabilities of classes."""
        return self.mixup > 0 or self.cutmix > 0

    def policy(self, height: int, width: int, device: torch.device) -> Policy | None:
        """Tables of the policy that is on, for images of this size."""
        if self.trivial_augment:
            return policy_tables("trivial", height, width, device)
        if self.auto_augment:
            name = "cifar10" if self.auto_augment is True else self.auto_augment
            return policy_tables(name, height, width, device)
        return None

    def rotation_maps(self, height: int, width: int, device: torch.device) -> Tensor:
        """The maps of all rotations that can be drawn, [4096, 6], int32."""
        return _rotation_maps(self.rotation, height, width, device)

    def __call__(
        self,
        images: Tensor,
        indices: Tensor,
        *,
        seed: int,
        epoch: int,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
    ) -> Tensor:
        """Augment a batch, all but mixing.

        Args:
            images: [n, C, height, width], uint8, C = 1 or 3 for a policy, best channels last. Not changed.
            indices: [n], int64, of the images in their data set, on the images' device: with `seed` and `epoch` they
                alone decide what happens to an image.
            seed: of the run.
            epoch: number of the epoch.
            mean, std: of each channel, pixels in [0, 1], to normalise by. Default: not at all.
            dtype: of the result.
            backend: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere. The results are the same.
        Returns:
            [n, C, height, width] in [0, 1], or normalised, channels last if C > 1.
        Raises:
            ValueError: images and indices do not fit together, or the images are too large, too small for the border
                that mirrors them, or have other channels.
            TypeError: the images are not uint8.
            RuntimeError: Triton was asked for and cannot run.
        """
        self._check(images, indices)
        if not self.changes_images:
            return _normalise(to_float(images), mean, std, dtype)
        in_torch_only = self.crop_fill == "reflect" or self.flip == "alternating"
        if in_torch_only or operators_for("Augmentation", backend, images) == ("dft",):
            changed = self.apply(images, draw_parameters(self, seed, epoch, indices, *images.shape[2:]))
            return _normalise(_scale(changed), mean, std, dtype)
        from ttfs_triton.augment.kernel import augment_launch

        out = torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=pixel_layout(images))
        values = _values(images.shape[1], tuple(mean), tuple(std), dtype, images.device)
        augment_launch(self, images, indices, out, values, seed, epoch).run()
        return out

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Apply parameters that were drawn to images [n, C, height, width], uint8."""
        if parameters.crop is not None:
            images = windows(images, parameters.crop, self.crop_padding, self.crop_fill)
        images = images.contiguous()  # the passes below are fastest plane by plane
        if parameters.flip is not None:
            images = mirror(images, parameters.flip)
        if parameters.shift is not None:
            images = windows(images, parameters.shift, self.shift, 0)
        if parameters.operations is not None:
            policy = self.policy(images.shape[2], images.shape[3], images.device)
            assert policy is not None
            for rows in parameters.operations.unbind(1):
                images = apply_operations(images, rows, policy, 0 if self.crop_fill == "reflect" else self.crop_fill)
        if parameters.rotation is not None:
            images = move_bilinear(images, parameters.rotation)
        if parameters.cutout is not None:
            images = _cut_out(images, parameters.cutout, self.cutout, self.cutout_fill)
        return images

    def _check(self, images: Tensor, indices: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"Augmentation: images must be uint8; got {images.dtype}. Augment before scaling.")
        if indices.shape != (len(images),):
            raise ValueError(
                f"Augmentation: indices must be one for each image; got {tuple(indices.shape)} for {len(images)} "
                "images. Pass the images' places in their data set."
            )
        if max(images.shape[2:]) > LARGEST_SIDE:
            raise ValueError(
                f"Augmentation: images must be at most {LARGEST_SIDE} pixels a side; got {tuple(images.shape[2:])}. "
                "Set --image-size."
            )
        if self.crop_fill == "reflect" and self.crop_padding >= min(images.shape[2:]):
            raise ValueError(
                f"Augmentation: crop_padding must be less than the sides of images that crop_fill reflects; got "
                f"{self.crop_padding} for {tuple(images.shape[2:])}. Lower --crop-padding."
            )
        if (self.auto_augment or self.trivial_augment) and images.shape[1] not in (1, 3):
            raise ValueError(
                f"Augmentation: images must have 1 or 3 channels for a policy; got {images.shape[1]}. "
                "Switch auto_augment and trivial_augment off."
            )


def _cut_out(images: Tensor, centre: Tensor, side: int, fill: int) -> Tensor:
    """Fill a square of each image."""
    first = centre - side // 2
    row, column = (
        torch.arange(size, device=images.device) - corner[:, None]
        for size, corner in zip(images.shape[2:], first.unbind(1), strict=True)
    )
    # Levels are kept where all bits of `kept` are set.
    above_or_below, left_or_right = (-((at < 0) | (at >= side)).to(torch.uint8) for at in (row, column))
    kept = above_or_below[:, None, :, None] | left_or_right[:, None, None, :]
    images = images & kept
    return images | ~kept & fill if fill else images


def _scale(images: Tensor) -> Tensor:
    """As `to_float`, for images that lie plane by plane, which PyTorch is slow to turn round."""
    result = torch.empty(images.shape, device=images.device, memory_format=pixel_layout(images))
    for plane, levels in zip(result.unbind(1), images.unbind(1), strict=True):
        plane.copy_(levels)
    return result.div_(255)


@functools.lru_cache(maxsize=4)
def _rotation_maps(degrees: float, height: int, width: int, device: torch.device) -> Tensor:
    return rotation_maps(degrees, height, width).to(device)


def _normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """(images − mean) / std, then cast. `images`, float32, may be changed."""
    if len(mean):
        shift, scale = (torch.tensor(v, dtype=images.dtype, device=images.device).view(-1, 1, 1) for v in (mean, std))
        images.sub_(shift).div_(scale)
    return images.to(dtype)


@functools.lru_cache(maxsize=4)
def _values(
    channels: int, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What becomes of each level in the end: [C, 256], dtype."""
    levels = torch.arange(256, dtype=torch.uint8).expand(1, channels, 1, 256)
    return _normalise(levels.float().div_(255), mean, std, dtype).view(channels, 256).to(device)
