"""Augmentation of image batches: every random number is drawn up front, every operation is vectorised.

Drawing and applying are two steps, so that one generator serves a whole optimiser step and each process applies
only its own slice of the parameters: the images do not depend on how many processes there are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from ttfs_triton.data.pixels import pixel_layout, to_float


@dataclass(frozen=True)
class AugmentationParameters:
    """Random parameters of `n` images; a field is None where that augmentation is off.

    Attributes:
        crop_offset: [n, 2] int64, top and left corner of the crop in the padded image.
        flip: [n] bool, mirrored left to right.
        shift_offset: [n, 2] int64, top and left corner of the shifted window in the zero-padded image.
        auto_augment_seed: [n] int64, seed of the policy's choice for each image.
        angle: [n] float32, radians, counter-clockwise.
        cutout_centre: [n, 2] int64, row and column of the square's centre.
    """

    crop_offset: Tensor | None = None
    flip: Tensor | None = None
    shift_offset: Tensor | None = None
    auto_augment_seed: Tensor | None = None
    angle: Tensor | None = None
    cutout_centre: Tensor | None = None

    def __getitem__(self, rows: slice) -> AugmentationParameters:
        """Parameters of a slice of the images."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return AugmentationParameters(
            **{name: None if value is None else value[rows] for name, value in fields.items()}
        )


class Augmentation(BaseModel):
    """Which augmentations are on, in the order in which they are applied; all are off by default.

    Attributes:
        crop_padding: pixels added on each side before a random crop of the original size. 0: no crop.
        crop_fill: pixel value of that border, also of the border that AutoAugment uncovers.
        flip: mirror left to right with probability 1/2.
        shift: move by up to this many pixels in each direction, the uncovered border is 0. 0: no shift.
        auto_augment: one sub-policy of the CIFAR-10 AutoAugment policy for each image (needs torchvision).
        rotation: rotate by up to this many degrees either way, bilinear, the uncovered border is 0.
        cutout: side in pixels of a square at a random centre, clipped at the image's border. 0: no Cutout.
        cutout_fill: pixel value of that square.

    Raises:
        ValueError: a size or an angle is negative, or a fill value is outside 0 to 255.
        RuntimeError: `auto_augment` is on and torchvision is not installed.

    Source: DeVries & Taylor, 2017 (Cutout); Cubuk et al., CVPR 2019 (AutoAugment).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop_padding: int = Field(default=0, ge=0)
    crop_fill: int = Field(default=0, ge=0, le=255)
    flip: bool = False
    shift: int = Field(default=0, ge=0)
    auto_augment: bool = False
    rotation: float = Field(default=0.0, ge=0)
    cutout: int = Field(default=0, ge=0)
    cutout_fill: int = Field(default=0, ge=0, le=255)

    def model_post_init(self, _: object) -> None:
        """Look for torchvision now rather than in each worker process."""
        if self.auto_augment:
            torchvision_transforms()

    def draw(self, n: int, generator: torch.Generator, height: int, width: int) -> AugmentationParameters:
        """Draw the random parameters of `n` images.

        Args:
            n: number of images.
            generator: source of every random number (CPU).
            height: image height in pixels.
            width: image width in pixels.
        Returns:
            The parameters, for `apply`; slice them to apply them to a part of the images.
        """
        parameters: dict[str, Tensor] = {}
        if self.crop_padding:
            parameters["crop_offset"] = _integers(2 * self.crop_padding + 1, (n, 2), generator)
        if self.flip:
            parameters["flip"] = torch.rand(n, generator=generator) < 0.5
        if self.shift:
            parameters["shift_offset"] = _integers(2 * self.shift + 1, (n, 2), generator)
        if self.auto_augment:
            parameters["auto_augment_seed"] = _integers(2**31, (n,), generator)
        if self.rotation:
            parameters["angle"] = math.radians(self.rotation) * (2 * torch.rand(n, generator=generator) - 1)
        if self.cutout:
            rows = _integers(height, (n,), generator)
            parameters["cutout_centre"] = torch.stack([rows, _integers(width, (n,), generator)], dim=1)
        return AugmentationParameters(**parameters)

    def apply(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        """Augment a batch.

        Args:
            images: [n, C, height, width], uint8. Not changed.
            parameters: of these n images, from `draw`.
        Returns:
            [n, C, height, width], float32 in [0, 1], channels last if C > 1.
        """
        if parameters.crop_offset is not None or parameters.flip is not None:
            images = _window(images, parameters.crop_offset, self.crop_padding, self.crop_fill, parameters.flip)
        if parameters.shift_offset is not None:
            images = _window(images, parameters.shift_offset, self.shift, 0, None)
        if parameters.auto_augment_seed is not None:
            images = auto_augment(images, parameters.auto_augment_seed, self.crop_fill)
        result = to_float(images)
        if parameters.angle is not None:
            result = _rotate(result, parameters.angle)
        if parameters.cutout_centre is not None:
            result = _cut_out(result, parameters.cutout_centre, self.cutout, self.cutout_fill / 255)
        return result


def _integers(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator)


def _window(images: Tensor, offset: Tensor | None, padding: int, fill: int, flip: Tensor | None) -> Tensor:
    """Cut a window of the original size out of the padded images and mirror it where `flip` is set."""
    n, _, height, width = images.shape
    rows, columns = torch.arange(height).expand(n, -1), torch.arange(width).expand(n, -1)
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    if offset is not None:
        rows, columns = rows + offset[:, :1], columns + offset[:, 1:]
        images = pad(images, (padding,) * 4, value=fill)
    # Whole pixels are gathered from channels-last memory: one index serves all channels.
    pixels = images.permute(0, 2, 3, 1).contiguous()
    padded_height, padded_width, channels = pixels.shape[1:]
    first_row = torch.arange(n)[:, None] * padded_height
    index = ((first_row + rows) * padded_width)[:, :, None] + columns[:, None, :]
    gathered = pixels.view(-1, channels)[index.view(-1)]
    return gathered.view(n, height, width, channels).permute(0, 3, 1, 2)


def _rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate about the centre, bilinear; pixels from outside the image are 0."""
    height, width = images.shape[-2:]
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Sampling coordinates run from -1 to 1 on both axes, so the aspect ratio enters the off-diagonal terms.
    rotation = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], dim=1)
    grid = affine_grid(rotation.view(-1, 2, 3), list(images.shape), align_corners=False)
    rotated = grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # The four weights may add up to a little more than 1.
    return rotated.clamp_(max=1).contiguous(memory_format=pixel_layout(images))


def _cut_out(images: Tensor, centre: Tensor, side: int, fill: float) -> Tensor:
    height, width = images.shape[-2:]
    first = centre - side // 2
    row, column = torch.arange(height), torch.arange(width)
    in_rows = (row >= first[:, :1]) & (row < first[:, :1] + side)
    in_columns = (column >= first[:, 1:]) & (column < first[:, 1:] + side)
    return images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], fill)


def auto_augment(images: Tensor, seeds: Tensor, fill: int = 0) -> Tensor:
    """Apply one sub-policy of the CIFAR-10 AutoAugment policy to each image, through torchvision.

    Args:
        images: [n, C, height, width], uint8, C = 1 or 3.
        seeds: [n], int64. An image's result depends on its own seed only.
        fill: pixel value, 0 to 255, of the border that geometric operations uncover.
    Returns:
        [n, C, height, width], uint8. The global random state is left as it was.

    Source: Cubuk et al., "AutoAugment", CVPR 2019, Table 7.
    """
    policy = _cifar10_policy(fill, images.shape[1])
    # The policy takes its random numbers from the global generator.
    with torch.random.fork_rng(devices=[]):
        augmented = []
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            augmented.append(policy(image))
    return torch.stack(augmented)


def torchvision_transforms() -> ModuleType:
    """The module `torchvision.transforms.v2`.

    Raises:
        RuntimeError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise RuntimeError(
            "Augmentation: torchvision must be installed for auto_augment; got no such package. "
            "Run `pip install 'ttfs-triton[vision]'`, or switch auto_augment off."
        ) from error
    return v2


@functools.cache
def _cifar10_policy(fill: int, channels: int) -> Callable[[Tensor], Tensor]:
    v2 = torchvision_transforms()
    return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=[float(fill)] * channels)
