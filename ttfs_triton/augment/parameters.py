"""The random parameters of images, each image's from its own random words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ttfs_triton.augment.geometry import rotation
from ttfs_triton.augment.philox import below, random_words

if TYPE_CHECKING:
    from ttfs_triton.augment.augmentation import Augmentation

# Which random word of an image decides what. A parameter keeps its word whatever else is switched on.
CROP_TOP, CROP_LEFT, FLIP, SUB_POLICY, APPLIED, _, SIGN, ANGLE, SHIFT_TOP, SHIFT_LEFT, CUTOUT_ROW, CUTOUT_COLUMN = (
    range(12)
)
AUGMENTATION_BLOCKS = range(3)
PARTNER, MIXING_KIND, MIXING_SHARE, MIXING_ROW, MIXING_COLUMN = range(5)
MIXING_BLOCKS = range(3, 5)
ANGLES = 4096  # equally spaced rotations to draw from, so that each has its map in a table


@dataclass(frozen=True)
class Parameters:
    """Random parameters of n images; a field is None where that augmentation is off.

    Attributes:
        crop: [n, 2], int64, row and column of the window's corner.
        flip: [n], bool, whether the window is mirrored.
        shift: [n, 2], int64, row and column of the shifted window's corner.
        operations: [n, stages], int64, rows of the policy's tables.
        rotation: [n, 6], int32, map of the rotation.
        cutout: [n, 2], int64, row and column of the square's centre.
    """

    crop: Tensor | None = None
    flip: Tensor | None = None
    shift: Tensor | None = None
    operations: Tensor | None = None
    rotation: Tensor | None = None
    cutout: Tensor | None = None


def rotation_maps(degrees: float, height: int, width: int) -> Tensor:
    """The maps of `ANGLES` rotations from -degrees to degrees: [ANGLES, 6], int32."""
    angles = (degrees * ((2 * number + 1) / ANGLES - 1) for number in range(ANGLES))
    return torch.tensor([rotation(angle, height, width) for angle in angles], dtype=torch.int32)


def draw_parameters(
    augmentation: Augmentation, seed: int, epoch: int, indices: Tensor, height: int, width: int
) -> Parameters:
    """The parameters of images, a function of seed, epoch and each image's index.

    Args:
        augmentation: what is on.
        seed, epoch: of the run, of the epoch.
        indices: [n], int64, of the images in their data set; the parameters are on its device.
        height, width: of the images in pixels.
    """
    words = random_words(seed, epoch, indices, AUGMENTATION_BLOCKS)
    drawn: dict[str, Tensor] = {}
    if augmentation.crop_padding:
        drawn["crop"] = _corners(words[:, CROP_TOP : CROP_LEFT + 1], augmentation.crop_padding)
    if augmentation.flip == "alternating":
        in_first_epoch = below(random_words(seed, 0, indices, range(1))[:, FLIP], 2)
        drawn["flip"] = (in_first_epoch + epoch) % 2 == 1
    elif augmentation.flip:
        drawn["flip"] = below(words[:, FLIP], 2).bool()
    if augmentation.shift:
        drawn["shift"] = _corners(words[:, SHIFT_TOP : SHIFT_LEFT + 1], augmentation.shift)
    policy = augmentation.policy(height, width, indices.device)
    if policy is not None:
        sub_policies, stages = policy.thresholds.shape
        stage = torch.arange(stages, device=indices.device)
        drawn["operations"] = policy.rows(
            below(words[:, SUB_POLICY], sub_policies),
            words[:, APPLIED : APPLIED + stages],
            words[:, SIGN : SIGN + 1] >> (31 - stage) & 1,
        )
    if augmentation.rotation:
        maps = augmentation.rotation_maps(height, width, indices.device)
        drawn["rotation"] = maps[below(words[:, ANGLE], ANGLES)]
    if augmentation.cutout:
        rows, columns = below(words[:, CUTOUT_ROW], height), below(words[:, CUTOUT_COLUMN], width)
        drawn["cutout"] = torch.stack([rows, columns], dim=1)
    return Parameters(**drawn)


def _corners(words: Tensor, farthest: int) -> Tensor:
    """Whole numbers from -farthest to farthest."""
    return below(words, 2 * farthest + 1) - farthest
