"""The augmentations of a run as options; no more than pydantic is imported."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PolicyName = Literal["cifar10", "svhn", "imagenet"]
Fill = Annotated[int, Field(ge=0, le=255)] | Literal["reflect"]
Flip = bool | Literal["alternating"]


class AugmentationOptions(BaseModel):
    """What happens to training images, in this order; all is off by default."""

    model_config = ConfigDict(allow_inf_nan=False)

    crop_padding: int = Field(default=0, ge=0, le=8192)
    """Pad by this many pixels and crop at random."""
    crop_fill: Fill = 0
    """Pixel value of that padding, or reflect: mirror the image there."""
    flip: Flip = False
    """Flip images left to right with probability one half; alternating: so in the first epoch, then every other one."""
    shift: int = Field(default=0, ge=0, le=8192)
    """Shift images by up to this many pixels, filling with zeros."""
    auto_augment: bool | PolicyName = False
    """AutoAugment with the policy of cifar10 (also: true), svhn or imagenet."""
    trivial_augment: bool = False
    """TrivialAugment (Wide), instead of AutoAugment."""
    rotation: float = Field(default=0.0, ge=0, le=180)
    """Rotate images by up to this many degrees."""
    cutout: int = Field(default=0, ge=0, le=8192)
    """Blank a square of this side."""
    mixup: float = Field(default=0.0, ge=0, le=100)
    """Mix each image with another, with a share from the Beta distribution of this parameter. 0: off."""
    cutmix: float = Field(default=0.0, ge=0, le=100)
    """Replace a rectangle of each image by another's, with a share from the Beta distribution of this parameter.
    0: off. With mixup, each image gets one of the two."""

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if self.auto_augment and self.trivial_augment:
            raise ValueError("auto_augment and trivial_augment exclude each other; switch one off")
        return self
