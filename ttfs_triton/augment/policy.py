"""AutoAugment's and TrivialAugment's policies, as tables that a whole batch indexes.

A policy is a list of sub-policies, each of one or two operations with a probability and a magnitude. TrivialAugment's
are its operations at each magnitude, alone, with probability 1. The tables hold what an operation needs at a magnitude,
in Pillow's arithmetic: an affine map in 16.16 fixed point, 256 levels, or the factor of a blend. Each image draws rows.

Source: Cubuk et al., "AutoAugment", CVPR 2019, Tables 7 to 9; Müller & Hutter, "TrivialAugment", ICCV 2021.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ttfs_triton.augment.geometry import IDENTITY, affine, rotation
from ttfs_triton.augment.philox import APPLIED, SIGN, SUB_POLICY, below
from ttfs_triton.augmentation_options import PolicyName


class Kind(IntEnum):
    """How an operation is computed."""

    IDENTITY = 0
    GEOMETRY = 1  # affine map, nearest pixel
    COLOUR = 2  # blend with the grey image
    SHARPNESS = 3  # blend with the smoothed image
    LEVELS = 4  # table of 256 levels, known beforehand: brightness, posterise, solarise, invert
    CONTRAST = 5  # table from the mean grey level
    AUTO_CONTRAST = 6  # table from darkest and brightest level of a channel
    EQUALISE = 7  # table from the histogram of a channel


class Operation(NamedTuple):
    """An operation in a sub-policy; `magnitude` in its own unit (shear, pixels, degrees, factor − 1, bits, level)."""

    name: str
    probability: float
    magnitude: float


SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
PLAIN = ("AutoContrast", "Equalize", "Invert", "Identity")

# name, probability, magnitude in tenths; as printed in the paper's tables, and in torchvision.
_CIFAR10 = """
Invert .1 0 Contrast .2 6; Rotate .7 2 TranslateX .3 9; Sharpness .8 1 Sharpness .9 3; ShearY .5 8 TranslateY .7 9;
AutoContrast .5 0 Equalize .9 0; ShearY .2 7 Posterize .3 7; Color .4 3 Brightness .6 7; Sharpness .3 9 Brightness .7 9;
Equalize .6 0 Equalize .5 0; Contrast .6 7 Sharpness .6 5; Color .7 7 TranslateX .5 8; Equalize .3 0 AutoContrast .4 0;
TranslateY .4 3 Sharpness .2 6; Brightness .9 6 Color .2 8; Solarize .5 2 Invert 0 0; Equalize .2 0 AutoContrast .6 0;
Equalize .2 0 Equalize .6 0; Color .9 9 Equalize .6 0; AutoContrast .8 0 Solarize .2 8; Brightness .1 3 Color .7 0;
Solarize .4 5 AutoContrast .9 0; TranslateY .9 9 TranslateY .7 9; AutoContrast .9 0 Solarize .8 3;
Equalize .8 0 Invert .1 0; TranslateY .7 9 AutoContrast .9 0"""
_SVHN = """
ShearX .9 4 Invert .2 0; ShearY .9 8 Invert .7 0; Equalize .6 0 Solarize .6 6; Invert .9 0 Equalize .6 0;
Equalize .6 0 Rotate .9 3; ShearX .9 4 AutoContrast .8 0; ShearY .9 8 Invert .4 0; ShearY .9 5 Solarize .2 6;
Invert .9 0 AutoContrast .8 0; Equalize .6 0 Rotate .9 3; ShearX .9 4 Solarize .3 3; ShearY .8 8 Invert .7 0;
Equalize .9 0 TranslateY .6 6; Invert .9 0 Equalize .6 0; Contrast .3 3 Rotate .8 4; Invert .8 0 TranslateY 0 2;
ShearY .7 6 Solarize .4 8; Invert .6 0 Rotate .8 4; ShearY .3 7 TranslateX .9 3; ShearX .1 6 Invert .6 0;
Solarize .7 2 TranslateY .6 7; ShearY .8 4 Invert .8 0; ShearX .7 9 TranslateY .8 3; ShearY .8 5 AutoContrast .7 0;
ShearX .7 2 Invert .1 0"""
_IMAGENET = """
Posterize .4 8 Rotate .6 9; Solarize .6 5 AutoContrast .6 0; Equalize .8 0 Equalize .6 0; Posterize .6 7 Posterize .6 6;
Equalize .4 0 Solarize .2 4; Equalize .4 0 Rotate .8 8; Solarize .6 3 Equalize .6 0; Posterize .8 5 Equalize 1 0;
Rotate .2 3 Solarize .6 8; Equalize .6 0 Posterize .4 6; Rotate .8 8 Color .4 0; Rotate .4 9 Equalize .6 0;
Equalize 0 0 Equalize .8 0; Invert .6 0 Equalize 1 0; Color .6 4 Contrast 1 8; Rotate .8 8 Color 1 2;
Color .8 8 Solarize .8 7; Sharpness .4 7 Invert .6 0; ShearX .6 5 Equalize 1 0; Color .4 0 Equalize .6 0;
Equalize .4 0 Solarize .2 4; Solarize .6 5 AutoContrast .6 0; Invert .6 0 Equalize 1 0; Color .6 4 Contrast 1 8;
Equalize .8 0 Equalize .6 0"""
_POLICIES = {"cifar10": _CIFAR10, "svhn": _SVHN, "imagenet": _IMAGENET}


def magnitudes(name: str, height: int, width: int, *, wide: bool = False) -> list[float]:
    """The magnitudes of an operation: ten of AutoAugment, or with `wide` 31 of TrivialAugment.

    As torchvision has them, whose float32 steps decide on which side of a grey level solarising cuts.
    """
    bins = 31 if wide else 10
    if name in PLAIN:
        return [0.0] * bins
    if name == "Posterize":
        return (8 - torch.arange(bins) / ((bins - 1) / (6 if wide else 4))).round().tolist()
    ends = {
        "ShearX": (0.0, 0.99 if wide else 0.3),
        "ShearY": (0.0, 0.99 if wide else 0.3),
        "TranslateX": (0.0, 32.0 if wide else 150 / 331 * width),
        "TranslateY": (0.0, 32.0 if wide else 150 / 331 * height),
        "Rotate": (0.0, 135.0 if wide else 30.0),
        "Solarize": (1.0, 0.0),
    }
    return torch.linspace(*ends.get(name, (0.0, 0.99 if wide else 0.9)), bins).tolist()


def auto_augment_policy(name: PolicyName, height: int, width: int) -> list[list[Operation]]:
    """The 25 sub-policies of an AutoAugment policy, for images of this size."""
    sub_policies = []
    for entry in _POLICIES[name].split(";"):
        words = iter(entry.split())
        sub_policies.append(
            [Operation(name, float(next(words)), magnitudes(name, height, width)[int(next(words))]) for name in words]
        )
    return sub_policies


def trivial_augment_policy(height: int, width: int) -> list[list[Operation]]:
    """TrivialAugment (Wide): any operation at any magnitude."""
    names = ("Identity", *SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")
    return [[Operation(name, 1.0, value)] for name in names for value in magnitudes(name, height, width, wide=True)]


@dataclass(frozen=True)
class Policy:
    """A policy as tables. Row 0 of the operations is the identity.

    Attributes:
        thresholds: [sub-policies, stages], int64; a stage is applied if its random word is below.
        kinds: [rows], int32, `Kind`.
        maps: [rows, 6], int32, 16.16 fixed point: output pixel to input pixel, see `geometry`.
        factors: [rows], float32, of a blend.
        levels: [rows, 256], uint8, the new level of each level.
    """

    thresholds: Tensor
    kinds: Tensor
    maps: Tensor
    factors: Tensor
    levels: Tensor

    def draw(self, words: Tensor) -> Tensor:
        """Rows of the operations that images draw, [n, stages], int64, by their random words, [n, 12]."""
        sub_policies, stages = self.thresholds.shape
        stage = torch.arange(stages, device=words.device)
        choice = below(words[:, SUB_POLICY], sub_policies)
        negative = words[:, SIGN, None] >> (31 - stage) & 1
        row = 1 + 2 * (choice[:, None] * stages + stage) + negative
        return torch.where(words[:, APPLIED : APPLIED + stages] < self.thresholds[choice], row, 0)


@functools.lru_cache(maxsize=16)
def policy_tables(name: PolicyName | Literal["trivial"], height: int, width: int, device: torch.device) -> Policy:
    """The tables of a policy, for images of this size, on a device."""
    if name == "trivial":
        sub_policies = trivial_augment_policy(height, width)
    else:
        sub_policies = auto_augment_policy(name, height, width)
    operations = [operation for sub_policy in sub_policies for operation in sub_policy]
    rows = [_row("Identity", 0.0, height, width)]
    for operation in operations:
        for sign in (1, -1) if operation.name in SIGNED else (1, 1):
            rows.append(_row(operation.name, sign * operation.magnitude, height, width))
    kinds, maps, factors, levels = zip(*rows, strict=True)
    thresholds = torch.tensor([round(operation.probability * 2**32) for operation in operations])
    return Policy(
        thresholds.view(len(sub_policies), -1).to(device),
        torch.tensor(kinds, dtype=torch.int32, device=device),
        torch.tensor(maps, dtype=torch.int32, device=device),
        torch.tensor(factors, dtype=torch.float32, device=device),
        torch.stack(levels).to(device),
    )


def _row(name: str, magnitude: float, height: int, width: int) -> tuple[Kind, tuple[int, ...], float, Tensor]:
    """Kind, map, factor and levels of an operation."""
    level = torch.arange(256)
    kind, fixed, levels = Kind.LEVELS, IDENTITY, level
    match name:
        case "ShearX":
            kind, fixed = Kind.GEOMETRY, affine(1, magnitude, 0, 0, 1, 0)
        case "ShearY":
            kind, fixed = Kind.GEOMETRY, affine(1, 0, 0, magnitude, 1, 0)
        case "TranslateX":
            kind, fixed = Kind.GEOMETRY, affine(1, 0, -int(magnitude), 0, 1, 0)
        case "TranslateY":
            kind, fixed = Kind.GEOMETRY, affine(1, 0, 0, 0, 1, -int(magnitude))
        case "Rotate":
            kind, fixed = Kind.GEOMETRY, rotation(magnitude, height, width)
        case "Brightness":
            levels = (level.float() * (1 + magnitude)).clamp(0, 255)
        case "Posterize":
            levels = level & 256 - 2 ** (8 - int(magnitude))
        case "Solarize":
            levels = torch.where(level < math.ceil(255 * magnitude), level, 255 - level)
        case "Invert":
            levels = 255 - level
        case "Identity":
            kind = Kind.IDENTITY
        case _:
            kind = {
                "Contrast": Kind.CONTRAST,
                "AutoContrast": Kind.AUTO_CONTRAST,
                "Equalize": Kind.EQUALISE,
                "Color": Kind.COLOUR,
                "Sharpness": Kind.SHARPNESS,
            }[name]
    return kind, fixed, 1 + magnitude, levels.to(torch.uint8)
