"""How a contraction is cut into programs: its blocks, the splits of a reduction, and the arguments of its launch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch

from ttfs_kernels.triton.common import Chip
from ttfs_kernels.triton.problem import Problem

WIDE = 2**31  # the smallest offset that does not fit into 32 bits
ELEMENT_PRODUCTS = 16  # loading one element of an operand takes as long as so many products
PART_ROWS = 256  # writing and re-reading a partial sum takes as long as multiplying so many rows
STEPS_PER_SPLIT = 4  # smallest number of steps, so that a split fills its pipeline
SMALLEST_BLOCK = 16  # smallest side of a tensor-core product
# The same for grad_x on sm_90 in 16 bits, where the assembler serialises products of 16 columns or neurons.
SMALLEST_SHARED = 32
# Share of the products that blocks of one position must save: they read many images, in shorter runs of memory.
WORTH_SKIPPING = 0.05


@dataclass(frozen=True)
class Config:
    """How a pass is cut into blocks, and the chip's way to multiply.

    Attributes:
        block_m, block_n: the two sides of the block of results.
        block_k: depth of a step.
        num_warps, num_stages: warps of a program, stages of its software pipeline.
        group: rows of blocks that are walked column by column, to reuse the cache.
        splits: parts of the reduction of grad_w; 0 = `split` decides.
        by_position: a block is one position of many images, and leaves out taps outside the map; but see `skips`.
        precision: precision of float32 products, "ieee" or "tf32".
        inputs_first, processors: of the `Chip`.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 8
    splits: int = 0
    by_position: bool = False
    precision: str = "ieee"
    inputs_first: bool = False
    processors: int = 4

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that all contractions take."""
        sizes = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}
        return sizes | {"PRECISION": self.precision, "num_warps": self.num_warps, "num_stages": self.num_stages}


@lru_cache(maxsize=1024)
def blocks_of(which: str, problem: Problem, chip: Chip, precision: str) -> Config:
    """The blocks of a pass; a choice by the shape alone, so that all processes choose alike.

    Of the chip's blocks, those with which the busiest processor multiplies and loads least.
    """
    problem = problem.flat
    by_time = {}
    for sizes in _table(which, problem, chip, precision):
        config = _fitted(Config(*sizes), which, problem, chip)
        by_position = _fitted(Config(*sizes, by_position=True), which, problem, chip)
        if _saves(which, problem, by_position, config) and largest_offset(problem, by_position) < WIDE:
            config = by_position
        by_time.setdefault(_time(which, problem, config, chip.processors), config)
    how = {"precision": precision, "inputs_first": chip.inputs_first, "processors": chip.processors}
    return dataclasses.replace(by_time[min(by_time)], **how)


Sizes = tuple[int, int, int, int, int]  # block_m, block_n, block_k, warps, stages
BLOCKS: dict[str, list[Sizes]] = {  # in 16 bits, whose machine code is clean
    "hip": [(128, 128, 32, 8, 2), (128, 64, 32, 4, 2), (64, 64, 32, 4, 2)],
    "tensor memory": [(128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (64, 64, 64, 4, 3)],
    "wgmma": [(128, 128, 64, 8, 3), (128, 64, 64, 4, 3), (64, 64, 64, 4, 4)],
    "mma": [(128, 128, 32, 8, 3), (128, 64, 32, 4, 3), (64, 64, 32, 4, 4)],
}


def _table(which: str, problem: Problem, chip: Chip, precision: str) -> list[Sizes]:
    """Blocks that a pass may have, the largest first; grad_w splits its reduction instead of its blocks."""
    if problem.dtype == torch.float32:
        # Without tensor cores (ieee), a block is as large as registers allow. Three stages of tf32 do not fit into the
        # 64 KiB of shared memory of AMD's compute units.
        return [(64, 64, 16, 8, 2) if precision == "ieee" else (128, 64, 32, 8, 2 if chip.vendor == "hip" else 3)]
    kind = "hip" if chip.vendor == "hip" else "tensor memory" if chip.has_tensor_memory else "mma"
    sizes = BLOCKS["wgmma" if chip.has_wgmma else kind]
    wide = _columns(which, problem) > 64
    m, n, k, warps, stages = sizes[0 if wide else 1]
    if which == "grad_w":
        # With one accumulator, Triton 3.6 serialises the products of eight warps; four have less else to do, too.
        one = chip.has_wgmma and not problem.with_slope
        return [(m, n, k, 4 if one else warps, stages if wide else 2)]
    if which == "forward" and problem.joint_steps:
        # Every element of such a step has its own address: with 128 positions, the loop spills registers.
        return [(64, n, k, warps, stages)]
    return sizes if wide else sizes[1:]


def _columns(which: str, problem: Problem) -> int:
    """Size of the dimension that a block's second side covers: output channels, input channels, or weights."""
    return {"forward": problem.group_outputs, "grad_x": problem.group_inputs, "grad_w": problem.depth}[which]


def _fitted(config: Config, which: str, problem: Problem, chip: Chip) -> Config:
    """The configuration with its blocks reduced to the size of the layer."""
    positions = problem.batch * (1 if config.by_position else problem.height * problem.width)
    rows = problem.batch if config.by_position else problem.rows
    first = {"forward": rows, "grad_x": positions, "grad_w": problem.group_outputs}[which]
    depth = {"forward": problem.depth, "grad_x": problem.group_outputs, "grad_w": rows}[which]
    shared = which == "grad_x" and chip.has_wgmma and problem.dtype.itemsize == 2
    smallest = SMALLEST_SHARED if shared else SMALLEST_BLOCK
    block_m = min(config.block_m, _power_of_two(first))
    # On sm_80 eight warps would compute a float32 product of 64 rows twice, since a warp takes 16 rows.
    halved = problem.dtype == torch.float32 and which != "grad_w" and block_m < config.block_m
    return dataclasses.replace(
        config,
        num_warps=min(config.num_warps, 4) if halved else config.num_warps,
        block_m=block_m,
        block_n=min(config.block_n, _power_of_two(_columns(which, problem), smallest)),
        block_k=min(config.block_k, _power_of_two(depth, smallest)),
    )


def _power_of_two(size: int, smallest: int = SMALLEST_BLOCK) -> int:
    """Smallest block that covers `size`."""
    return max(smallest, 1 << max(0, size - 1).bit_length())


def _saves(which: str, problem: Problem, by_position: Config, plain: Config) -> bool:
    """Whether blocks of one position leave out more than WORTH_SKIPPING of the products."""
    if not skips(problem, by_position) or problem.rows == 0:
        return False
    share = 1.0  # of the products whose tap is inside the map
    for axis, size in enumerate((problem.height, problem.width)):
        positions = size / problem.stride[axis] if which == "grad_x" else problem.out_size[axis]
        share *= sum(map(sum, _inside(problem, axis))) / (positions * problem.kernel[axis])
    side = "block_k" if which == "grad_w" else "block_m"
    images = math.ceil(problem.batch / getattr(by_position, side)) * getattr(by_position, side) / problem.batch
    rows = math.ceil(problem.rows / getattr(plain, side)) * getattr(plain, side) / problem.rows
    return share * images < (1 - WORTH_SKIPPING) * rows


def _time(which: str, problem: Problem, config: Config, processors: int) -> float:
    """Estimated time: multiplications and loads of the most loaded processor, for a step of all its programs."""
    blocks, m, n = programs(which, problem, config), config.block_m, config.block_n
    if which == "grad_w" or blocks == 0:
        return 0.0  # there is a single choice, or nothing to do
    classes = math.prod(problem.stride) if which == "grad_x" else 1
    rounds = math.ceil(blocks * classes * problem.groups / processors)
    if skips(problem, config):  # a program in the map's middle has more taps than the average one
        taps = [[sum(inside) for inside in _inside(problem, axis)] for axis in (0, 1)]
        rounds = max(rounds, math.prod(max(some) * len(some) / max(1, sum(some)) for some in taps))
    return rounds * (m * n + ELEMENT_PRODUCTS * (m + n))


def skips(problem: Problem, config: Config) -> bool:
    """Whether blocks are one position of many images and leave out taps outside the map.

    They never are if a step holds several taps, or if there is only one tap.
    """
    return config.by_position and not problem.is_matrix_product and not problem.joint_steps


def largest_offset(problem: Problem, config: Config) -> int:
    """Largest offset within a block, in elements from its first image."""
    rows = max(config.block_m, config.block_k)
    positions = max(1, math.prod(problem.out_size))
    images = rows if skips(problem, config) else math.ceil(rows / positions) + 1
    inputs = problem.height * problem.width * problem.in_channels
    return images * max(inputs, math.prod(problem.out_size) * problem.out_channels)


def programs(which: str, problem: Problem, config: Config) -> int:
    """Programs of a residue class and group of channels in forward and grad_x; blocks of a tap and group in grad_w."""
    if which == "grad_w":
        return math.ceil(problem.group_outputs / config.block_m) * math.ceil(problem.depth / config.block_n)
    positions = math.prod(problem.out_size)
    if which == "grad_x":
        positions = math.ceil(problem.height / problem.stride[0]) * math.ceil(problem.width / problem.stride[1])
    if skips(problem, config):
        blocks = positions * math.ceil(problem.batch / config.block_m)
    else:
        blocks = math.ceil(problem.batch * positions / config.block_m)
    return blocks * math.ceil(_columns(which, problem) / config.block_n)


def tap_steps(problem: Problem, config: Config) -> list[int]:
    """Steps of grad_w by tap; a single number if the weights of a block have several taps."""
    taps = 1 if problem.joint_steps else math.prod(problem.kernel)
    if not skips(problem, config):
        return taps * [math.ceil(problem.rows / config.block_k)]
    images = math.ceil(problem.batch / config.block_k)
    rows, columns = ([max(1, sum(taps)) for taps in zip(*_inside(problem, axis), strict=True)] for axis in (0, 1))
    return [images * row * column for row, column in product(rows, columns)]


def _inside(problem: Problem, axis: int) -> list[list[bool]]:
    """Whether a tap meets an input, not padding: [output positions of an axis][taps of the axis]."""
    stride, padding, dilation = problem.stride[axis], problem.padding[axis], problem.dilation[axis]
    size, taps = (problem.height, problem.width)[axis], range(problem.kernel[axis])
    starts = [position * stride - padding for position in range(problem.out_size[axis])]
    return [[0 <= start + tap * dilation < size for tap in taps] for start in starts]


def slots(problem: Problem, config: Config) -> int:
    """Programs of grad_w that run at once: a processor takes as many as it has registers for."""
    threads = 32 * config.num_warps
    accumulators = problem.contractions("grad_w") * config.block_m * config.block_n // threads
    return config.processors * max(1, 2**16 // (min(255, 64 + accumulators) * threads))


def split(steps: list[int], blocks: int, slots: int, wanted: int, block_k: int) -> tuple[int, int]:
    """(splits, steps per split) of a reduction, chosen so that its waves of programs end first.

    Args:
        steps: steps by tap. All splits have one length, so that taps of fewer steps have fewer splits.
        blocks: programs of a tap before splitting.
        slots: programs that run at once.
        wanted: splits of the longest tap; 0 for the best number.
        block_k: rows of a step.
    """
    most = max(steps)
    limit = max(1, most // STEPS_PER_SPLIT)

    def cost(length: int) -> float:
        programs = blocks * sum(math.ceil(some / length) for some in steps)
        waves = math.ceil(programs / slots)
        part = PART_ROWS / block_k if length < most else 0.0
        return max(length, waves * sum(steps) * blocks / programs) + waves * part

    shortest = math.ceil(most / min(limit, math.ceil(8 * slots / (blocks * len(steps)))))
    lengths = {math.ceil(most / splits) for splits in range(1, math.ceil(most / shortest) + 1)}
    # If taps differ in length, the best length of a split may divide none of them.
    lengths |= {*range(shortest, most, max(1, most // 256))} if len(set(steps)) > 1 else set()
    length = math.ceil(most / min(wanted, limit)) if wanted else min(sorted(lengths, reverse=True), key=cost)
    return math.ceil(most / length), length


def plan(which: str, problem: Problem, config: Config) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Grid of a contraction's launch, and sizes and constants.

    Raises:
        NotImplementedError: an offset within a block does not fit into 32 bits.
    """
    problem = problem.flat
    largest = largest_offset(problem, config)
    if largest >= WIDE:
        raise NotImplementedError(
            f"{which}: the images of a block must have fewer than 2³¹ elements; got {largest}. Use the torch backend."
        )
    number, groups = programs(which, problem, config), problem.groups
    constants = problem.sizes | config.options | {"G": problem.moves, "BY_POSITION": skips(problem, config)}
    if which == "grad_x":
        steps = (stride // math.gcd(stride, gap) for stride, gap in zip(problem.stride, problem.dilation, strict=True))
        constants |= dict(zip(("STEP_H", "STEP_W"), steps, strict=True))
        constants |= {"MASKED": problem.with_slope, "SURROGATE": problem.surrogate, "GROUP": config.group}
        constants["EVEN"] = problem.group_outputs % config.block_k == 0
        return (number, math.prod(problem.stride), groups), constants
    constants |= {"FEW_CHANNELS": problem.joint_steps, "INPUTS_FIRST": config.inputs_first}
    if which == "forward":
        constants |= {"EVEN": problem.group_inputs % config.block_k == 0, "GROUP": config.group}
        return (number, groups), constants
    taps, at_once = tap_steps(problem, config), slots(problem, config)
    splits, length = split(taps, number * groups, at_once, config.splits, config.block_k)
    return (number * len(taps), splits, groups), constants | {"steps_per_split": length}
