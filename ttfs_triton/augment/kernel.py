"""The pass as one Triton kernel: a program an image, which draws its own random numbers.

An image goes through the stages of `Augmentation.apply` between two buffers in memory, which stay in the cache of the
program's processor; a barrier follows each stage, since the next one reads what other threads wrote. All is integers
but blends and autocontrast, and those round as in PyTorch (no fused multiply-add): the result equals that of the twin.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttfs_kernels.triton_backend.launch import Launch
from ttfs_triton.augment import parameters as words
from ttfs_triton.augment.geometry import ONE
from ttfs_triton.augment.points import GREY
from ttfs_triton.augment.policy import Kind

if TYPE_CHECKING:
    from ttfs_triton.augment.augmentation import Augmentation

BLOCK = 1024  # pixels at once
_HALF = tl.constexpr(ONE // 2)
_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in GREY)
_ANGLES = tl.constexpr(words.ANGLES)
_GEOMETRY, _LEVELS, _CONTRAST = (tl.constexpr(int(k)) for k in (Kind.GEOMETRY, Kind.LEVELS, Kind.CONTRAST))
_AUTO_CONTRAST, _EQUALISE = (tl.constexpr(int(k)) for k in (Kind.AUTO_CONTRAST, Kind.EQUALISE))
_COLOUR, _SHARPNESS = (tl.constexpr(int(k)) for k in (Kind.COLOUR, Kind.SHARPNESS))


@triton.jit
def block_of_words(seed, epoch, index, block):
    """Four random words, uint32, as `philox.random_words` gives them."""
    low, high = (index & 0xFFFFFFFF).to(tl.uint32), (index >> 32).to(tl.uint32)
    # `full` takes numbers that Triton has made constants, too.
    return tl.philox(seed, low, high, tl.full((), epoch, tl.uint32), tl.full((), block, tl.uint32))


@triton.jit
def below(word, limit):
    """Uniform int32 in [0, limit)."""
    return ((word.to(tl.uint64) * limit) >> 32).to(tl.int32)


@triton.jit
def pixel(source, row, column, inside, fill, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Levels at places of one plane, int32; `fill` outside of it."""
    inside = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return tl.load(source + row * W + column, mask=inside, other=fill).to(tl.int32)


@triton.jit
def grey(source, i, mask, C: tl.constexpr, AREA: tl.constexpr):
    """Grey levels of pixels, int32."""
    red = tl.load(source + i, mask=mask, other=0).to(tl.int32)
    if C == 1:
        return red
    green = tl.load(source + AREA + i, mask=mask, other=0).to(tl.int32)
    blue = tl.load(source + 2 * AREA + i, mask=mask, other=0).to(tl.int32)
    return (red * _RED + green * _GREEN + blue * _BLUE + 32768) >> 16


@triton.jit
def blend(first, second, factor):
    """first + factor · (second − first), cut off to uint8."""
    mixed = (second - first).to(tl.float32) * factor + first.to(tl.float32)
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32).to(tl.uint8)


@triton.jit
def move(source, target, map_ptr, fill, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """Nearest pixel through an affine map."""
    a, b, c = tl.load(map_ptr), tl.load(map_ptr + 1), tl.load(map_ptr + 2)
    d, e, f = tl.load(map_ptr + 3), tl.load(map_ptr + 4), tl.load(map_ptr + 5)
    for start in range(0, H * W, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x, y, mask = i % W, i // W, i < H * W
        column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
        for channel in tl.static_range(C):
            level = pixel(source + channel * H * W, row, column, mask, fill, C, H, W)
            tl.store(target + channel * H * W + i, level.to(tl.uint8), mask=mask)


@triton.jit
def move_bilinear(source, target, map_ptr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """The four pixels around the place that an affine map gives."""
    a, b, c = tl.load(map_ptr), tl.load(map_ptr + 1), tl.load(map_ptr + 2) - _HALF
    d, e, f = tl.load(map_ptr + 3), tl.load(map_ptr + 4), tl.load(map_ptr + 5) - _HALF
    for start in range(0, H * W, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x, y, mask = i % W, i // W, i < H * W
        column, row = a * x + b * y + c, d * x + e * y + f
        across, down = (column >> 8) & 255, (row >> 8) & 255
        column, row = column >> 16, row >> 16
        for channel in tl.static_range(C):
            plane = source + channel * H * W
            upper = pixel(plane, row, column, mask, 0, C, H, W) * (256 - across)
            upper += pixel(plane, row, column + 1, mask, 0, C, H, W) * across
            lower = pixel(plane, row + 1, column, mask, 0, C, H, W) * (256 - across)
            lower += pixel(plane, row + 1, column + 1, mask, 0, C, H, W) * across
            level = (upper * (256 - down) + lower * down + 32768) >> 16
            tl.store(target + channel * H * W + i, level.to(tl.uint8), mask=mask)


@triton.jit
def histogram(plane, AREA: tl.constexpr, BLOCK: tl.constexpr):
    """How many pixels of a plane have each level, [256], int32."""
    counts = tl.zeros((256,), tl.int32)
    for start in range(0, AREA, BLOCK):
        i = start + tl.arange(0, BLOCK)
        level = tl.load(plane + i, mask=i < AREA, other=0).to(tl.int32)
        counts += tl.histogram(level, 256, mask=i < AREA)
    return counts


@triton.jit
def table_of(kind, source, channel, factor, levels_ptr, C: tl.constexpr, AREA: tl.constexpr, BLOCK: tl.constexpr):
    """What becomes of each level of a channel, [256], uint8."""
    level = tl.arange(0, 256)
    table = tl.load(levels_ptr + level)
    if kind == _CONTRAST:
        total = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, AREA, BLOCK):
            i = start + tl.arange(0, BLOCK)
            total += tl.where(i < AREA, grey(source, i, i < AREA, C, AREA), 0)
        mean = (2 * tl.sum(total, 0).to(tl.int64) + AREA) // (2 * AREA)
        table = blend(mean.to(tl.int32), level, factor)
    if (kind == _AUTO_CONTRAST) | (kind == _EQUALISE):
        counts = histogram(source + channel * AREA, AREA, BLOCK)
        brightest = tl.max(tl.where(counts > 0, level, 0), 0)
        if kind == _AUTO_CONTRAST:
            darkest = tl.min(tl.where(counts > 0, level, 255), 0)
            spread = tl.maximum(brightest - darkest, 1).to(tl.float64)
            scale = 255.0 / spread
            stretched = level.to(tl.float64) * scale + (-darkest).to(tl.float64) * scale
            stretched = tl.minimum(tl.maximum(stretched, 0.0), 255.0).to(tl.int32)
            table = tl.where(brightest > darkest, stretched, level).to(tl.uint8)
        else:
            step = (AREA - tl.sum(tl.where(level == brightest, counts, 0), 0)) // 255
            darker = tl.cumsum(counts, 0) - counts
            spread_levels = tl.minimum((darker + step // 2) // tl.maximum(step, 1), 255)
            table = tl.where(step > 0, spread_levels, level).to(tl.uint8)
    return table


@triton.jit
def map_levels(
    kind, source, target, table_ptr, factor, levels_ptr, C: tl.constexpr, AREA: tl.constexpr, BLOCK: tl.constexpr
):
    """Operations that are a table; identity too."""
    for plane in range(C):  # a loop of the program: unrolled, it takes three times as long to compile
        table = table_of(kind, source, plane, factor, levels_ptr, C, AREA, BLOCK)
        tl.store(table_ptr + plane * 256 + tl.arange(0, 256), table)
    tl.debug_barrier()
    for start in range(0, AREA, BLOCK):
        i = start + tl.arange(0, BLOCK)
        for channel in tl.static_range(C):
            level = tl.load(source + channel * AREA + i, mask=i < AREA, other=0).to(tl.int32)
            level = tl.load(table_ptr + channel * 256 + level, mask=i < AREA, other=0)
            tl.store(target + channel * AREA + i, level, mask=i < AREA)


@triton.jit
def colour(source, target, factor, C: tl.constexpr, AREA: tl.constexpr, BLOCK: tl.constexpr):
    """Blend with the grey image."""
    for start in range(0, AREA, BLOCK):
        i = start + tl.arange(0, BLOCK)
        first = grey(source, i, i < AREA, C, AREA)
        for channel in tl.static_range(C):
            level = tl.load(source + channel * AREA + i, mask=i < AREA, other=0).to(tl.int32)
            tl.store(target + channel * AREA + i, blend(first, level, factor), mask=i < AREA)


@triton.jit
def sharpness(source, target, factor, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr):
    """Blend with the smoothed image."""
    for start in range(0, H * W, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x, y, mask = i % W, i // W, i < H * W
        inner = (x > 0) & (x < W - 1) & (y > 0) & (y < H - 1)
        for channel in tl.static_range(C):
            plane = source + channel * H * W + i
            level = tl.load(plane, mask=mask, other=0).to(tl.int32)
            thirteen = 4 * level
            for down in tl.static_range(-1, 2):
                for across in tl.static_range(-1, 2):
                    thirteen += tl.load(plane + down * W + across, mask=mask & inner, other=0).to(tl.int32)
            smooth = (2 * thirteen + 13) // 26
            sharp = blend(smooth, level, factor)
            tl.store(target + channel * H * W + i, tl.where(inner, sharp, level.to(tl.uint8)), mask=mask)


@triton.jit
def augment(
    images_ptr,
    indices_ptr,
    out_ptr,
    scratch_ptr,
    tables_ptr,
    values_ptr,
    thresholds_ptr,
    kinds_ptr,
    maps_ptr,
    factors_ptr,
    levels_ptr,
    rotations_ptr,
    seed,
    epoch,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    crop_fill,
    cutout_fill,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    PADDING: tl.constexpr,
    FLIP: tl.constexpr,
    SHIFT: tl.constexpr,
    SUB_POLICIES: tl.constexpr,
    STAGES: tl.constexpr,
    ROTATION: tl.constexpr,
    CUTOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw and apply all augmentations of one image but mixing.

    images [n, C, H, W] uint8, indices [n] int64, out [n, H, W, C], scratch [2, n, C, H, W] uint8, tables [n, C, 256]
    uint8, values [C, 256]: what is stored for each level; the rest as in `policy.Policy` and `rotation_maps`.
    """
    AREA: tl.constexpr = H * W
    image = tl.program_id(0).to(tl.int64)
    index = tl.load(indices_ptr + image)
    seed = tl.full((), seed, tl.int64)
    top, left, flip, choice = block_of_words(seed, epoch, index, 0)
    applied, applied_second, sign, angle = block_of_words(seed, epoch, index, 1)
    shift_top, shift_left, cut_row, cut_column = block_of_words(seed, epoch, index, 2)

    source = scratch_ptr + image * (C * AREA)
    target = source + tl.num_programs(0).to(tl.int64) * (C * AREA)
    tables_ptr += image * (C * 256)
    images_ptr += image * stride_n
    for start in range(0, AREA, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x, row, mask = i % W, i // W + below(top, 2 * PADDING + 1) - PADDING, i < AREA
        if FLIP:
            x = tl.where(below(flip, 2) == 1, W - 1 - x, x)
        column = x + below(left, 2 * PADDING + 1) - PADDING
        inside = mask & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        for channel in tl.static_range(C):
            at = images_ptr + channel * stride_c + row * stride_h + column * stride_w
            tl.store(source + channel * AREA + i, tl.load(at, mask=inside, other=crop_fill), mask=mask)
    tl.debug_barrier()
    if SHIFT:
        for start in range(0, AREA, BLOCK):
            i = start + tl.arange(0, BLOCK)
            row = i // W + below(shift_top, 2 * SHIFT + 1) - SHIFT
            column = i % W + below(shift_left, 2 * SHIFT + 1) - SHIFT
            for channel in tl.static_range(C):
                level = pixel(source + channel * AREA, row, column, i < AREA, 0, C, H, W)
                tl.store(target + channel * AREA + i, level.to(tl.uint8), mask=i < AREA)
        tl.debug_barrier()
        source, target = target, source
    if STAGES > 0:
        sub_policy = below(choice, SUB_POLICIES)
        for stage in tl.static_range(STAGES):
            at = sub_policy * STAGES + stage
            word = applied if stage == 0 else applied_second
            operation = 1 + 2 * at + ((sign >> (31 - stage)) & 1).to(tl.int32)
            operation = tl.where(word.to(tl.int64) < tl.load(thresholds_ptr + at), operation, 0)
            kind = tl.load(kinds_ptr + operation)
            factor = tl.load(factors_ptr + operation)
            if kind == _GEOMETRY:
                move(source, target, maps_ptr + 6 * operation, crop_fill, C, H, W, BLOCK)
            elif (kind == _COLOUR) & (C == 3):
                colour(source, target, factor, C, AREA, BLOCK)
            elif kind == _SHARPNESS:
                sharpness(source, target, factor, C, H, W, BLOCK)
            else:
                map_levels(kind, source, target, tables_ptr, factor, levels_ptr + 256 * operation, C, AREA, BLOCK)
            tl.debug_barrier()
            source, target = target, source
    if ROTATION:
        move_bilinear(source, target, rotations_ptr + 6 * below(angle, _ANGLES), C, H, W, BLOCK)
        tl.debug_barrier()
        source, target = target, source
    out_ptr += image * (C * AREA)
    for start in range(0, AREA, BLOCK):
        i = start + tl.arange(0, BLOCK)
        from_top = i // W - (below(cut_row, H) - CUTOUT // 2)
        from_left = i % W - (below(cut_column, W) - CUTOUT // 2)
        cut = (from_top >= 0) & (from_top < CUTOUT) & (from_left >= 0) & (from_left < CUTOUT)
        for channel in tl.static_range(C):
            level = tl.load(source + channel * AREA + i, mask=i < AREA, other=0).to(tl.int32)
            value = tl.load(values_ptr + channel * 256 + tl.where(cut, cutout_fill, level), mask=i < AREA)
            tl.store(out_ptr + i * C + channel, value, mask=i < AREA)


def augment_launch(
    augmentation: Augmentation, images: Tensor, indices: Tensor, out: Tensor, values: Tensor, seed: int, epoch: int
) -> Launch:
    """The launch that augments a batch.

    Args:
        augmentation: what is on.
        images: [n, C, height, width], uint8, in any memory format.
        indices: [n], int64, of the images in their data set.
        out: [n, C, height, width], any float, channels last; is filled.
        values: [C, 256], as `out`: what is stored for each level.
        seed, epoch: of the run, of the epoch.
    """
    n, channels, height, width = images.shape
    device = images.device
    policy = augmentation.policy(height, width, device)
    sub_policies, stages = (0, 0) if policy is None else policy.thresholds.shape
    arguments = {
        "images_ptr": images,
        "indices_ptr": indices,
        "out_ptr": out,
        "scratch_ptr": torch.empty(2, *images.shape, dtype=torch.uint8, device=device),
        "tables_ptr": torch.empty(n, channels, 256, dtype=torch.uint8, device=device),
        "values_ptr": values,
        "rotations_ptr": augmentation.rotation_maps(height, width, device) if augmentation.rotation else None,
        "seed": (seed + 2**63) % 2**64 - 2**63,
        "epoch": epoch,
        "crop_fill": augmentation.crop_fill,
        "cutout_fill": augmentation.cutout_fill,
        "C": channels,
        "H": height,
        "W": width,
        "PADDING": augmentation.crop_padding,
        "FLIP": augmentation.flip,
        "SHIFT": augmentation.shift,
        "SUB_POLICIES": sub_policies,
        "STAGES": stages,
        "ROTATION": augmentation.rotation > 0,
        "CUTOUT": augmentation.cutout,
        "BLOCK": min(BLOCK, triton.next_power_of_2(height * width)),
    }
    for name in ("thresholds", "kinds", "maps", "factors", "levels"):
        arguments[f"{name}_ptr"] = None if policy is None else getattr(policy, name)
    arguments |= dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), images.stride(), strict=True))
    return Launch(augment, (n,), arguments)
