"""AutoAugment's policy for CIFAR-10 as tables, which a whole batch indexes, and its operations.

An affine map takes the centre of output pixel (x, y) to a place in the input, in 1/65536 pixel: a·x + b·y + c across
and d·x + e·y + f down. These are Pillow's integers, so the nearest pixel is Pillow's, on every device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from ttfs_triton.data.augment.philox import APPLIED, SIGN, SUB_POLICY, below

ONE = 65536  # a pixel in 16.16 fixed point
IDENTITY = (ONE, 0, ONE // 2, 0, ONE, ONE // 2)


class Kind(IntEnum):
    """How an operation is computed."""

    IDENTITY = 0
    GEOMETRY = 1  # affine map, nearest pixel
    COLOUR = 2  # blend with the grey image
    SHARPNESS = 3  # blend with the smoothed image
    LEVELS = 4  # table of 256 levels, computed once: brightness, posterise, solarise, invert
    CONTRAST = 5  # table from the mean grey level
    AUTO_CONTRAST = 6  # table from darkest and brightest level of a channel
    EQUALISE = 7  # table from the histogram of a channel


class Operation(NamedTuple):
    """An operation in a sub-policy. Units of `magnitude`, by name: shear, pixels, degrees, factor − 1, bits, level."""

    name: str
    probability: float
    magnitude: float


SIGNED = ("ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
PLAIN = ("AutoContrast", "Equalize", "Invert")

# Name, probability, and index of the magnitude; as printed in the paper's table, and in torchvision.
_SUB_POLICIES = """
Invert .1 0 Contrast .2 6; Rotate .7 2 TranslateX .3 9; Sharpness .8 1 Sharpness .9 3; ShearY .5 8 TranslateY .7 9;
AutoContrast .5 0 Equalize .9 0; ShearY .2 7 Posterize .3 7; Color .4 3 Brightness .6 7; Sharpness .3 9 Brightness .7 9;
Equalize .6 0 Equalize .5 0; Contrast .6 7 Sharpness .6 5; Color .7 7 TranslateX .5 8; Equalize .3 0 AutoContrast .4 0;
TranslateY .4 3 Sharpness .2 6; Brightness .9 6 Color .2 8; Solarize .5 2 Invert 0 0; Equalize .2 0 AutoContrast .6 0;
Equalize .2 0 Equalize .6 0; Color .9 9 Equalize .6 0; AutoContrast .8 0 Solarize .2 8; Brightness .1 3 Color .7 0;
Solarize .4 5 AutoContrast .9 0; TranslateY .9 9 TranslateY .7 9; AutoContrast .9 0 Solarize .8 3;
Equalize .8 0 Invert .1 0; TranslateY .7 9 AutoContrast .9 0"""


def magnitudes(name: str, height: int, width: int) -> list[float]:
    """The ten magnitudes of an operation, in torchvision's float32 steps, which decide what levels are solarised."""
    if name in PLAIN:
        return [0.0] * 10
    if name == "Posterize":
        return (8 - torch.arange(10) / (9 / 4)).round().tolist()
    ends = {
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150 / 331 * width),
        "TranslateY": (0.0, 150 / 331 * height),
        "Rotate": (0.0, 30.0),
        "Solarize": (1.0, 0.0),
    }
    return torch.linspace(*ends.get(name, (0.0, 0.9)), 10).tolist()


def auto_augment_policy(height: int, width: int) -> list[list[Operation]]:
    """The 25 sub-policies, for images of this size."""
    sub_policies = []
    for entry in _SUB_POLICIES.split(";"):
        words = iter(entry.split())
        sub_policies.append(
            [Operation(name, float(next(words)), magnitudes(name, height, width)[int(next(words))]) for name in words]
        )
    return sub_policies


@dataclass(frozen=True)
class Policy:
    """A policy as tables. Row 0 of the operations is the identity."""

    thresholds: Tensor  # [sub-policies, stages], int64; a stage is applied if its random word is below its threshold
    kinds: Tensor  # [rows], int32, `Kind` of the operation
    maps: Tensor  # [rows, 6], int32, 16.16 fixed point: output pixel to input pixel
    factors: Tensor  # [rows], float32, factor of the blend
    levels: Tensor  # [rows, 256], uint8, the new levels by old level

    def draw(self, words: Tensor) -> Tensor:
        """Draw operations for images from their random words, [n, 12]: rows of the tables, [n, stages], int64."""
        sub_policies, stages = self.thresholds.shape
        stage = torch.arange(stages, device=words.device)
        choice = below(words[:, SUB_POLICY], sub_policies)
        negative = words[:, SIGN, None] >> (31 - stage) & 1
        row = 1 + 2 * (choice[:, None] * stages + stage) + negative
        return torch.where(words[:, APPLIED : APPLIED + stages] < self.thresholds[choice], row, 0)


@functools.lru_cache(maxsize=16)
def policy_tables(height: int, width: int, device: torch.device) -> Policy:
    """The tables of the policy, for images of this size, on a device."""
    sub_policies = auto_augment_policy(height, width)
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


def affine(a: float, b: float, c: float, d: float, e: float, f: float) -> tuple[int, ...]:
    """The map (x, y) → (a·x + b·y + c, d·x + e·y + f) of continuous coordinates, rounded as Pillow does."""
    terms = (a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2)
    return tuple(math.floor(term * ONE + 0.5) for term in terms)


def rotation(degrees: float, height: int, width: int) -> tuple[int, ...]:
    """Counter-clockwise rotation about the image's centre, as `PIL.Image.rotate` computes it."""
    angle = -math.radians(degrees % 360)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return affine(cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)


def _row(name: str, magnitude: float, height: int, width: int) -> tuple[Kind, tuple[int, ...], float, Tensor]:
    """Kind, map, factor and levels of an operation."""
    level = torch.arange(256)
    kind, fixed, levels = Kind.LEVELS, IDENTITY, level
    match name:
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


GREY = (19595, 38470, 7471)  # in 1/65536


def apply_operations(images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """Apply to images, [n, C, height, width], uint8, the operations in their rows, [n], int64; `fill` uncovered pixels.

    On a CPU, an operation is applied only to the images that drew it.
    """
    kinds = policy.kinds[rows]
    if images.device.type != "cpu":  # counting images would make the host wait: all are computed, results selected
        result = images
        for kind in Kind:
            result = torch.where((kinds == kind).view(-1, 1, 1, 1), _apply(kind, images, rows, policy, fill), result)
        return result
    order = kinds.argsort()
    counts = torch.bincount(kinds, minlength=len(Kind)).tolist()
    groups = zip(Kind, images.index_select(0, order).split(counts), rows[order].split(counts), strict=True)
    results = [_apply(kind, some, of, policy, fill) for kind, some, of in groups if len(some)]
    return torch.cat(results).index_select(0, order.argsort())


def _apply(kind: Kind, images: Tensor, rows: Tensor, policy: Policy, fill: int) -> Tensor:
    """Compute operations of this kind for all images, with the entries of the tables in their rows."""
    match kind:
        case Kind.IDENTITY:
            return images
        case Kind.GEOMETRY:
            return move(images, policy.maps[rows], fill)
        case Kind.COLOUR:
            return colour(images, policy.factors[rows])
        case Kind.SHARPNESS:
            return sharpness(images, policy.factors[rows])
    places = places_in_tables(images)
    match kind:
        case Kind.LEVELS:
            tables = policy.levels[rows][:, None]
        case Kind.CONTRAST:
            tables = contrast_tables(images, policy.factors[rows])
        case Kind.AUTO_CONTRAST:
            tables = auto_contrast_tables(images)
        case Kind.EQUALISE:
            tables = equalise_tables(images, places)
    tables = tables.expand(-1, images.shape[1], -1)
    return tables.reshape(-1).index_select(0, places).view(images.shape)


def places_in_tables(images: Tensor) -> Tensor:
    """Indices of pixels' levels in concatenated tables of 256 levels per plane; [n · C · height · width], int32."""
    planes = images.flatten(2).flatten(0, 1)
    first = 256 * torch.arange(len(planes), dtype=torch.int32, device=images.device)
    return planes.int().add_(first[:, None]).view(-1)


def move(images: Tensor, maps: Tensor, fill: int) -> Tensor:
    """Map images [n, C, height, width], uint8, by maps [n, 6], int32, with the nearest pixel; `fill` outside."""
    channels, height, width = images.shape[1:]
    x = torch.arange(width, dtype=torch.int32, device=maps.device)
    y = torch.arange(height, dtype=torch.int32, device=maps.device)[:, None]
    a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
    # Places outside are clamped to a border of `fill`, which is cheaper than a test.
    framed = pad(images, (1,) * 4, value=fill)
    rows = (((e * y + f) + d * x) >> 16).clamp_(-1, height)
    columns = (((b * y + c) + a * x) >> 16).clamp_(-1, width)
    index = rows.mul_(width + 2).add_(columns).add_(width + 3).flatten(1)[:, None].long()
    return framed.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)


def grey_levels(images: Tensor) -> Tensor:
    """Grey images, [n, height, width], of [n, C, height, width]; both float32, whole numbers in [0, 255]."""
    if images.shape[1] == 1:
        return images[:, 0]
    red, green, blue = images.unbind(1)
    # All sums are below 2²⁴, so that float32 is exact.
    weighted = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).add_(32768)
    return weighted.mul_(1 / 65536).floor_()


def blend(first: Tensor, second: Tensor, factors: Tensor) -> Tensor:
    """first + factors · (second − first) of levels, whole numbers in float32; truncated to uint8."""
    # By way of int16: PyTorch has no fast path from float to uint8.
    return (second - first).mul_(factors).add_(first).clamp_(0, 255).short().to(torch.uint8)


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the grey image, by one factor per image; 0 gives grey."""
    levels = images.float()
    return blend(grey_levels(levels)[:, None], levels, factors.view(-1, 1, 1, 1))


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the mean of nine pixels, in which the middle counts five times; 0 gives smooth. The border stays."""
    n, channels, height, width = images.shape
    if height < 3 or width < 3:
        return images
    # Planes as single lines are faster than rows; sums that run past a row's end into the next row are not used.
    levels = rearrange(images, "n c h w -> n c (h w)").float()
    three = (levels[..., : -2 * width] + levels[..., width:-width]).add_(levels[..., 2 * width :])
    centre = levels[..., width + 1 : -width - 1]
    thirteen = (three[..., :-2] + three[..., 1:-1]).add_(three[..., 2:]).add_(centre, alpha=4)
    # No thirteenth lies halfway between two levels: any rounding of the product gives the same.
    smooth = thirteen.mul_(1 / 13).add_(0.5).floor_()
    sharp = blend(smooth, centre, factors.view(-1, 1, 1))
    inner = (n, channels, height - 2, width - 2)
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = sharp.as_strided(inner, (*sharp.stride()[:2], width, 1))
    return result


def contrast_tables(images: Tensor, factors: Tensor) -> Tensor:
    """Levels blended with the mean grey level, rounded; [n, 1, 256], uint8."""
    area = images.shape[2] * images.shape[3]
    total = grey_levels(images.float()).sum((1, 2), dtype=torch.float64)
    mean = total.mul_(2).add_(area).div_(2 * area).floor_().float()
    level = torch.arange(256, dtype=torch.float32, device=images.device)
    return blend(mean.view(-1, 1, 1), level, factors.view(-1, 1, 1))


def auto_contrast_tables(images: Tensor) -> Tensor:
    """Levels stretched so that the darkest of a channel becomes 0 and its brightest 255; [n, C, 256], uint8."""
    planes = images.flatten(2)
    darkest, brightest = planes.amin(2, keepdim=True).double(), planes.amax(2, keepdim=True).double()
    # Pillow's double precision decides on which side of a level a product falls.
    constant = brightest == darkest
    scale = (torch.full_like(darkest, 255) / (brightest - darkest)).masked_fill_(constant, 1)
    offset = (-darkest * scale).masked_fill_(constant, 0)
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    return (level * scale).add_(offset).clamp_(0, 255).short().to(torch.uint8)


def equalise_tables(images: Tensor, places: Tensor) -> Tensor:
    """Levels spread so that equal ranges of a channel hold equally many pixels; [n, C, 256], uint8."""
    n, channels, height, width = images.shape
    one = torch.ones_like(places[:1]).expand(len(places))
    counts = places.new_zeros(n * channels * 256).index_add_(0, places, one).view(n, channels, 256)
    brightest = images.flatten(2).amax(2, keepdim=True).long()
    step = (height * width - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2, dtype=torch.int32).sub_(counts).add_(step // 2)
    # Whole numbers in float64, which PyTorch divides faster; no quotient is rounded up to the next whole number.
    spread = below.double().div_(step.clamp(min=1)).clamp_(max=255).short().to(torch.uint8)
    level = torch.arange(256, dtype=torch.uint8, device=images.device)
    return torch.where(step > 0, spread, level)
