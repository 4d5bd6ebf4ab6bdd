"""Block sizes, warps and pipeline stages: defaults for each chip.

The defaults were chosen from compiled code (registers, spills, barriers in the main loop; see `kernels/DESIGN.md`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.problem import Problem
from ttfs_kernels.triton_backend.work import WIDE, executed_flops, largest_offset, relative_time, skips

SMALLEST_BLOCK = 16  # of a tensor core product
# Of grad_x on sm_90 in 16 bits: the assembler serialises products of 16 columns or neurons.
SMALLEST_SHARED = 32
PROCESSORS = 132  # where nothing else is known: those of an H100
# Smallest share of the operations that must be saved by leaving out taps outside the map: the price is that blocks of
# many images read shorter runs of memory.
WORTH_SKIPPING = 0.05


@dataclass(frozen=True)
class Config:
    """How a pass is cut into blocks.

    Attributes:
        block_m, block_n: the two sides of the block of results.
        block_k: depth of a step.
        num_warps, num_stages: of a program, of its software pipeline.
        group: rows of blocks that are walked column by column, to reuse the cache.
        splits: parts of the reduction of grad_w, and of a fully connected layer's grad_x; 0 = `work.split` decides.
        by_position: a block is one position of many images, and skips taps outside the map; but see `work.skips`.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 8
    splits: int = 0
    by_position: bool = False


def default_config(which: str, problem: Problem, chip: Chip, precision: str, processors: int = PROCESSORS) -> Config:
    """The configuration of a pass that no table has measured.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        chip: what it runs on.
        precision: of float32 products, "ieee" or "tf32".
        processors: of the device; small layers get small blocks, so that most processors have one.
    """
    configs = [Config(*sizes) for sizes in _blocks(which, problem, chip, precision)]
    configs = [_skipping(which, problem, _fitted(config, which, problem, chip), chip) for config in configs]
    return min(configs, key=lambda config: relative_time(which, problem, config, processors))


def alternatives(which: str, problem: Problem, config: Config, chip: Chip) -> list[Config]:
    """These blocks, cut to the layer: row by row, and by position if that saves operations. For tuning."""
    plain = _fitted(config, which, problem, chip)
    return [plain, _skipping(which, problem, plain, chip, worth=0.0)]


def _skipping(which: str, problem: Problem, config: Config, chip: Chip, worth: float = WORTH_SKIPPING) -> Config:
    """The blocks by position, if that saves more than `worth`, a share of the operations; else as they are."""
    by_position = dataclasses.replace(config, by_position=True)
    skipping = _fitted(by_position, which, problem, chip)
    if not skips(problem, by_position) or largest_offset(problem, skipping) >= WIDE:
        return config
    plain = executed_flops(which, problem, config)
    return skipping if executed_flops(which, problem, skipping) < (1 - worth) * plain else config


def _columns(which: str, problem: Problem) -> int:
    """What a block's second side covers: output channels, input channels, or weights."""
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
    # The epilogue of a layer with a skip holds more: 128×128 potentials, or 128×64 with 4 warps, would be spilled.
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
    """Blocks no larger than what they cover."""
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
        # Two products of 64 rows on eight warps are computed twice on sm_80: a warp takes 16 rows.
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
