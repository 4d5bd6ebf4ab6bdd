"""Planning of a pass: block sizes, warps and stages for each chip, and the programs and steps that result."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch

from ttfs_kernels.triton_backend.formulation import Chip, fitting
from ttfs_kernels.triton_backend.problem import Problem

# Cost of a split: writing a part and adding it again, 8 bytes per element in the second-level cache, takes as long as
# the products of this many rows (grad_w) or synapses (grad_x).
PART_ROWS = 256
# Cost of loading one element of an operand, in products.
ELEMENT_PRODUCTS = 16
WIDE = 2**31  # the smallest offset that does not fit into 32 bits
STEPS_PER_SPLIT = 4  # smallest number of steps, so that a split fills its pipeline
# 32-bit registers of a thread beside its accumulators, as compiled, and the most that a thread may have.
OTHER_REGISTERS = {"forward": 80, "grad_x": 64, "grad_w": 64}
MOST_REGISTERS = 255


class Cut(NamedTuple):
    """The programs and steps of a pass.

    Attributes:
        programs: number of programs, for all groups of channels.
        steps: number of steps of all programs together; a step is one block of products.
        longest: number of steps of the longest program.
    """

    programs: int
    steps: int
    longest: int


def skips(problem: Problem, config: Config) -> bool:
    """Whether blocks are one position of many images and leave out taps outside the map.

    They never are if a step holds several taps, or if there is only one tap.
    """
    return config.by_position and not problem.is_matrix_product and not problem.joint_steps


def largest_offset(problem: Problem, config: Config) -> int:
    """Largest offset within a block, in elements from its first image: it must fit into 32 bits."""
    rows = max(config.block_m, config.block_k)
    positions = max(1, math.prod(problem.out_size))
    images = rows if skips(problem, config) else math.ceil(rows / positions) + 1
    inputs = problem.height * problem.width * problem.in_channels
    return images * max(inputs, math.prod(problem.out_size) * problem.out_channels)


def executed_flops(which: str, problem: Problem, config: Config) -> int:
    """Floating-point operations that tensor cores execute, including the padding of blocks."""
    steps = cut(which, problem, config).steps
    return 2 * problem.contractions(which) * steps * config.block_m * config.block_n * config.block_k


def cut(which: str, problem: Problem, config: Config) -> Cut:
    """Programs and steps of a pass, before its reduction is split."""
    if which == "grad_w":
        steps = tap_steps(problem, config)
        programs = weight_blocks(problem, config)
        return Cut(programs * len(steps), programs * sum(steps), max(steps))
    if which == "forward":
        depth = problem.depth if problem.joint_steps else problem.group_inputs
        columns = problem.groups * math.ceil(problem.group_outputs / config.block_n)
        taps = [_output_taps(problem, config, axis) for axis in (0, 1)]
        rows = [(math.prod(problem.out_size), *taps)]
    else:
        depth = problem.group_outputs
        columns = problem.groups * math.ceil(problem.group_inputs / config.block_n)
        rows = [
            (len(h) * len(w), h, w) for h, w in product(*([*_input_taps(problem, config, axis)] for axis in (0, 1)))
        ]
    depth = math.ceil(depth / config.block_k)
    programs = steps = longest = 0
    for positions, h, w in rows:
        blocks = row_blocks(problem, positions, config) * columns
        programs += blocks
        if blocks:
            steps += blocks * depth * sum(h) * sum(w) // (len(h) * len(w))
            longest = max(longest, depth * max(h) * max(w))
    return Cut(programs, steps, longest)


def relative_time(which: str, problem: Problem, config: Config, processors: int) -> float:
    """Cost by which blocks of a pass are chosen: products of the busiest processor, plus the loads for them.

    Long programs start first, so that processors end together unless one program is longer than the rest.
    """
    programs, steps, longest = cut(which, problem, config)
    if programs == 0:
        return 0.0
    share = max(longest, math.ceil(programs / processors) * steps / programs)
    if which == "grad_x" and problem.is_matrix_product:
        splits, length = split([longest], programs, processors, config.splits, config.block_k)
        part = PART_ROWS / config.block_k if splits > 1 else 0.0
        share = math.ceil(programs * splits / processors) * (length + part)
    m, n = config.block_m, config.block_n
    return share * config.block_k * (m * n + ELEMENT_PRODUCTS * (m + n))


def row_blocks(problem: Problem, positions: int, config: Config) -> int:
    """Number of blocks over the positions of the whole batch, or over the images at each position."""
    if skips(problem, config):
        return positions * math.ceil(problem.batch / config.block_m)
    return math.ceil(problem.batch * positions / config.block_m)


def weight_blocks(problem: Problem, config: Config) -> int:
    """Number of blocks of grad_w for one tap; for all taps if steps are joint."""
    weights = problem.depth if problem.joint_steps else problem.group_inputs
    blocks = math.ceil(problem.group_outputs / config.block_m) * math.ceil(weights / config.block_n)
    return problem.groups * blocks


def tap_steps(problem: Problem, config: Config) -> list[int]:
    """Steps of grad_w for each tap; a single number if the weights of a block have several taps."""
    taps = 1 if problem.joint_steps else math.prod(problem.kernel)
    if not skips(problem, config):
        return taps * [math.ceil(problem.rows / config.block_k)]
    images = math.ceil(problem.batch / config.block_k)
    rows, columns = ([max(1, sum(taps)) for taps in zip(*_inside(problem, axis), strict=True)] for axis in (0, 1))
    return [images * row * column for row, column in product(rows, columns)]


def split(steps: list[int], blocks: int, slots: int, wanted: int, block_k: int) -> tuple[int, int]:
    """(splits, steps per split) of a reduction, chosen so that its waves of programs end first.

    Args:
        steps: steps of each tap. Splits have one length, so that taps of fewer steps have fewer splits.
        blocks: programs of a tap before splitting.
        slots: programs that the device holds at once.
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


def _inside(problem: Problem, axis: int) -> list[list[bool]]:
    """Whether a tap meets an input, not padding: [output positions of an axis][taps of the axis]."""
    stride, padding, dilation = problem.stride[axis], problem.padding[axis], problem.dilation[axis]
    size, taps = (problem.height, problem.width)[axis], range(problem.kernel[axis])
    starts = [position * stride - padding for position in range(problem.out_size[axis])]
    return [[0 <= start + tap * dilation < size for tap in taps] for start in starts]


def _output_taps(problem: Problem, config: Config, axis: int) -> list[int]:
    """Taps that programs take at each output position of an axis."""
    if problem.joint_steps:
        return [1]
    if not skips(problem, config):
        return problem.out_size[axis] * [problem.kernel[axis]]
    return [max(1, sum(taps)) for taps in _inside(problem, axis)]


def _input_taps(problem: Problem, config: Config, axis: int) -> list[list[int]]:
    """Taps that programs take at each input position of an axis, by residue class of the stride."""
    size, outputs = (problem.height, problem.width)[axis], problem.out_size[axis]
    stride, padding, dilation = problem.stride[axis], problem.padding[axis], problem.dilation[axis]
    classes = []
    for residue in range(stride):
        starts = [residue + padding - tap * dilation for tap in range(problem.kernel[axis])]
        starts = [start for start in starts if start % stride == 0]
        taps = []
        for position in range(0, size - residue, stride):
            inside = sum(0 <= (position + start) // stride < outputs for start in starts)
            taps.append(max(min(1, len(starts)), inside) if skips(problem, config) else len(starts))
        classes.append(taps)
    return classes


def resident(which: str, problem: Problem, config: Config, chip: Chip) -> int:
    """Estimate, before compiling, of the programs on a processor, by their accumulators and pipeline stages.

    At least 1, also for a chip that `formulation.LIMITS` lacks.
    """
    pair = problem.contractions(which) == 2
    block = config.block_m * config.block_n
    threads = config.num_warps * chip.warp_size
    accumulators = block * (2 if pair else 1) // threads
    m, n, k = config.block_m, config.block_n, config.block_k
    # grad_w and the surrogate's grad_x read slope_h beside h, whose block has side m.
    tile = (m * (2 if pair and which != "forward" else 1) + n) * k * problem.dtype.itemsize
    # Chips without asynchronous products take the last stage from registers.
    stages = config.num_stages if chip.has_wgmma or chip.has_tensor_memory else max(1, config.num_stages - 1)
    columns = 0
    if chip.has_tensor_memory:
        accumulators, columns = 0, max(32, block * (2 if pair else 1) // 128)
    registers = min(MOST_REGISTERS, accumulators + OTHER_REGISTERS[which])
    return max(1, fitting(chip, registers, config.num_warps, stages * tile, columns) or 1)


SMALLEST_BLOCK = 16  # smallest side of a tensor-core product
# The same for grad_x on sm_90 in 16 bits, where the assembler serialises products of 16 columns or neurons.
SMALLEST_SHARED = 32
# Share of the operations that leaving out taps outside the map must save at least: its price is that blocks of many
# images read shorter runs of memory.
WORTH_SKIPPING = 0.05


@dataclass(frozen=True)
class Config:
    """How a pass is cut into blocks.

    Attributes:
        block_m, block_n: the two sides of the block of results.
        block_k: depth of a step.
        num_warps, num_stages: warps of a program, stages of its software pipeline.
        group: rows of blocks that are walked column by column, to reuse the cache.
        splits: parts of the reduction of grad_w, and of a fully connected layer's grad_x; 0 = `split` decides.
        by_position: a block is one position of many images, and leaves out taps outside the map; but see `skips`.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 8
    splits: int = 0
    by_position: bool = False


@lru_cache(maxsize=1024)
def default_config(which: str, problem: Problem, chip: Chip, precision: str, processors: int) -> Config:
    """The blocks of a pass; a choice by the shape alone, so that all processes choose alike.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        chip: the compilation target.
        precision: precision of float32 products, "ieee" or "tf32".
        processors: processors of the device; small layers get small blocks, so that most processors have one.
    """
    configs = [Config(*sizes) for sizes in _blocks(which, problem, chip, precision)]
    configs = [_skipping(which, problem, _fitted(config, which, problem, chip), chip) for config in configs]
    return min(configs, key=lambda config: relative_time(which, problem, config, processors))


def _skipping(which: str, problem: Problem, config: Config, chip: Chip) -> Config:
    """`config` by position if that saves more than WORTH_SKIPPING of the operations; else `config` itself."""
    by_position = dataclasses.replace(config, by_position=True)
    skipping = _fitted(by_position, which, problem, chip)
    if not skips(problem, by_position) or largest_offset(problem, skipping) >= WIDE:
        return config
    plain = executed_flops(which, problem, config)
    return skipping if executed_flops(which, problem, skipping) < (1 - WORTH_SKIPPING) * plain else config


def _columns(which: str, problem: Problem) -> int:
    """Size of the dimension that a block's second side covers: output channels, input channels, or weights."""
    if which == "forward":
        return problem.group_outputs
    if which == "grad_x":
        return problem.group_inputs
    return problem.depth if problem.joint_steps else problem.group_inputs


Sizes = tuple[int, int, int, int, int]  # block_m, block_n, block_k, warps, stages


def _blocks(which: str, problem: Problem, chip: Chip, precision: str) -> list[Sizes]:
    """Blocks whose machine code is clean, the largest first; grad_w splits its reduction instead of its blocks."""
    if problem.dtype == torch.float32:
        # Without tensor cores (ieee), a block is as large as registers allow.
        if precision == "ieee":
            return [(64, 64, 16, 8, 2)]
        # Three stages of tf32 do not fit into the 64 KiB of shared memory of AMD's compute units.
        return [(128, 64, 32, 8, 2 if chip.vendor == "hip" else 3)]
    wide = _columns(which, problem) > 64
    # The epilogue of a layer with a skip holds more values: 128×128 potentials, or 128×64 with 4 warps, would spill.
    late = which == "forward" and problem.skip
    warps = 8 if late else 4
    if chip.vendor == "hip":
        sizes = [(128, 128, 32, 8, 2), (128, 64, 32, 4, 2), (64, 64, 32, 4, 2)]
    elif chip.has_tensor_memory:
        sizes = [(128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (64, 64, 64, 4, 3)]
    elif chip.has_wgmma:
        sizes = [(128, 128, 64, 8, 3), (128, 64, 64, warps, 3), (64, 64, 64, 4, 4)]
    else:
        sizes = [(128, 128, 32, 8, 3), (128, 64, 32, warps, 3), (64, 64, 32, 4, 4)]
    if which == "grad_w":
        m, n, k, warps, stages = sizes[0 if wide else 1]
        return [(m, n, k, warps, stages if wide else 2)]
    if which == "forward" and problem.joint_steps:
        # Every element of such a step has its own address: with 128 positions, the loop spills registers.
        m, n, k, warps, stages = sizes[0 if wide else 1]
        return [(64, n, k, warps, stages)]
    return sizes if wide and not late else sizes[1:]


def _fitted(config: Config, which: str, problem: Problem, chip: Chip) -> Config:
    """The configuration with its blocks reduced to the size of the layer."""
    positions = problem.batch * problem.height * problem.width
    rows = {
        "forward": problem.batch if config.by_position else problem.rows,
        "grad_x": problem.batch if config.by_position else positions,
        "grad_w": problem.group_outputs,
    }[which]
    depth = {
        "forward": problem.depth if problem.joint_steps else problem.group_inputs,
        "grad_x": problem.group_outputs,
        "grad_w": problem.batch if config.by_position else problem.rows,
    }[which]
    shared = which == "grad_x" and chip.has_wgmma and problem.dtype.itemsize == 2
    smallest = SMALLEST_SHARED if shared else SMALLEST_BLOCK
    block_m = min(config.block_m, _power_of_two(rows))
    warps = config.num_warps
    if problem.dtype == torch.float32 and which != "grad_w" and block_m < config.block_m:
        # On sm_80 eight warps would compute a product of 64 rows twice, since a warp takes 16 rows.
        warps = min(warps, 4)
    return dataclasses.replace(
        config,
        num_warps=warps,
        block_m=block_m,
        block_n=min(config.block_n, _power_of_two(_columns(which, problem), smallest)),
        block_k=min(config.block_k, _power_of_two(depth, smallest)),
    )


def _power_of_two(size: int, smallest: int = SMALLEST_BLOCK) -> int:
    """Smallest block that covers `size`."""
    return max(smallest, 1 << max(0, size - 1).bit_length())
