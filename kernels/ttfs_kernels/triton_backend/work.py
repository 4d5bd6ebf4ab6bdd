"""Planning: how many programs a pass has and how many steps each of them takes, counted as the kernels do."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from ttfs_kernels.triton_backend.formulation import Chip, fitting
from ttfs_kernels.triton_backend.problem import Problem

if TYPE_CHECKING:
    from ttfs_kernels.triton_backend.configs import Config

# Cost of a split: it takes as long as the products of so many rows (of grad_w; of grad_x synapses) to write a part and
# add it again, 8 bytes an element in the second-level cache.
PART_ROWS = 256
# Cost of loading one element of an operand, in products.
ELEMENT_PRODUCTS = 16
WIDE = 2**31  # elements that 32 bits cannot count
STEPS_PER_SPLIT = 4  # at least, so that a split fills its pipeline
# 32-bit registers of a thread beside its accumulators, as compiled, and the most that a thread may have.
OTHER_REGISTERS = {"forward": 80, "grad_x": 64, "grad_w": 64}
MOST_REGISTERS = 255


class Cut(NamedTuple):
    """How a pass is cut.

    Attributes:
        programs: of all groups of channels.
        steps: of all programs together; a step is one block of products.
        longest: steps of the longest program.
    """

    programs: int
    steps: int
    longest: int


def skips(problem: Problem, config: Config) -> bool:
    """Whether blocks are one position of many images and leave out taps outside the map.

    Never where a step holds several taps or there is only one, nor with a pool, since the positions of a window
    together meet nearly every tap.
    """
    return config.by_position and not problem.is_matrix_product and not problem.joint_steps and problem.pool == 1


def largest_offset(problem: Problem, config: Config) -> int:
    """Largest offset within a block, in elements from its first image: it must fit into 32 bits."""
    rows = max(config.block_m, config.block_k)
    positions = max(1, problem.needed_positions)
    images = rows if skips(problem, config) else math.ceil(rows / positions) + 1
    inputs = problem.height * problem.width * problem.in_channels
    return images * max(inputs, math.prod(problem.out_size) * problem.out_channels)


def executed_flops(which: str, problem: Problem, config: Config) -> int:
    """Floating point operations that tensor cores are given, those of padded blocks included."""
    contractions = 2 if problem.with_slope and (which != "grad_x" or problem.surrogate) else 1
    steps = cut(which, problem, config).steps
    return 2 * contractions * steps * config.block_m * config.block_n * config.block_k


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
        rows = [(problem.needed_positions, *taps)]
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
    """Cost by which blocks of forward or grad_x are chosen: products of the busiest processor and loads for them.

    Long programs start first, so that the processors end together unless one program is longer than the rest.
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
    """Blocks of positions of the whole batch, or of images at each position."""
    if skips(problem, config):
        return positions * math.ceil(problem.batch / config.block_m)
    return math.ceil(problem.batch * positions / config.block_m)


def weight_blocks(problem: Problem, config: Config) -> int:
    """Blocks of grad_w for one tap; for all taps where steps are joint."""
    weights = problem.depth if problem.joint_steps else problem.group_inputs
    blocks = math.ceil(problem.group_outputs / config.block_m) * math.ceil(weights / config.block_n)
    return problem.groups * blocks


def tap_steps(problem: Problem, config: Config) -> list[int]:
    """Steps of grad_w for each of its taps; one number where the weights of a block have several taps."""
    taps = 1 if problem.joint_steps else math.prod(problem.kernel)
    if not skips(problem, config):
        return taps * [math.ceil(problem.rows / config.block_k)]
    images = math.ceil(problem.batch / config.block_k)
    rows, columns = ([max(1, sum(taps)) for taps in zip(*_inside(problem, axis), strict=True)] for axis in (0, 1))
    return [images * row * column for row, column in product(rows, columns)]


def split(steps: list[int], blocks: int, slots: int, wanted: int, block_k: int) -> tuple[int, int]:
    """(splits, steps of each) of a reduction: those whose waves of programs end first.

    Args:
        steps: of each tap; all taps have splits of one length, of which short ones have fewer.
        blocks: programs of a tap before splitting.
        slots: programs that the device holds at once.
        wanted: splits of the longest tap; 0 for as many as are best.
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
    # Taps that are not equally long fill a wave with lengths that divide none of them.
    lengths |= {*range(shortest, most, max(1, most // 256))} if len(set(steps)) > 1 else set()
    length = math.ceil(most / min(wanted, limit)) if wanted else min(sorted(lengths, reverse=True), key=cost)
    return math.ceil(most / length), length


def _inside(problem: Problem, axis: int) -> list[list[bool]]:
    """[output positions of an axis][its taps]: whether the tap meets an input there, not the padding."""
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
    """Programs on a processor, before anything is compiled: accumulators and pipeline stages are known.

    At least 1, also for a chip whose limits are not known here.
    """
    pair = problem.with_slope and (which != "grad_x" or problem.surrogate)
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
