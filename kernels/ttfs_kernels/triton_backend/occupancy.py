"""How many programs a processor holds at once."""

from __future__ import annotations

import math
from typing import NamedTuple

from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.problem import Problem


class Limits(NamedTuple):
    """What the programs on a processor share.

    Attributes:
        registers: 32-bit ones of all warps; a thread takes multiples of `registers_unit`.
        warps, programs: at once.
        shared_kib: shared memory; a program leaves `reserved_kib` of it to the system.
        tensor_columns: columns of tensor memory.
    """

    registers: int
    registers_unit: int
    warps: int
    programs: int
    shared_kib: int
    reserved_kib: int
    tensor_columns: int = 0


# CUDA's programming guide, compute capabilities. LLVM's guide to AMDGPU: gfx942 has four units, each of 512 registers a
# thread and of 8 warps.
LIMITS: dict[int | str, Limits] = {
    80: Limits(65536, 8, 64, 32, 164, 1),
    86: Limits(65536, 8, 48, 16, 100, 1),
    89: Limits(65536, 8, 48, 24, 100, 1),
    90: Limits(65536, 8, 64, 32, 228, 1),
    100: Limits(65536, 8, 64, 32, 228, 1, 512),
    "gfx942": Limits(4 * 512 * 64, 8, 32, 16, 64, 0),
}
# 32-bit registers of a thread beside its accumulators, and the most it may have: as the compiled kernels need.
OTHER_REGISTERS = {"forward": 80, "grad_x": 64, "grad_w": 64}
MOST_REGISTERS = 255


def fitting(chip: Chip, registers: int, warps: int, shared: int, columns: int = 0) -> int | None:
    """Programs on a processor; 0 if one does not fit, None if the chip's limits are not known here.

    Args:
        chip: which limits.
        registers: a thread.
        warps: a program.
        shared: bytes a program.
        columns: of tensor memory a program.
    """
    limits = LIMITS.get(chip.architecture)
    if limits is None:
        return None
    taken = math.ceil(registers / limits.registers_unit) * limits.registers_unit * chip.warp_size * warps
    fit = [limits.programs, limits.warps // warps, limits.registers // max(1, taken)]
    fit.append(1024 * limits.shared_kib // max(1, shared + 1024 * limits.reserved_kib))
    if columns:
        fit.append(limits.tensor_columns // columns)
    return min(fit)


def estimate(which: str, problem: Problem, config: Config, chip: Chip) -> int:
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
