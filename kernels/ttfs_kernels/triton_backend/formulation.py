"""Chips: the order of a product's operands, and how many programs a processor holds.

On sm_90, a product whose first operand is in registers runs on beside the one before it, and the compiler may overwrite
those registers too early: a silent race, in every Triton so far, if inputs come first (their mask is in registers, they
are not). With weights first, both operands of both products are in shared memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Chip(NamedTuple):
    """A compilation target: vendor ("cuda" or "hip") and architecture (90 for sm_90, "gfx942")."""

    vendor: str
    architecture: int | str

    @property
    def warp_size(self) -> int:
        return 64 if self.vendor == "hip" else 32

    @property
    def has_wgmma(self) -> bool:
        """Hopper: asynchronous products of whole warp groups."""
        return self.vendor == "cuda" and self.architecture == 90

    @property
    def has_tensor_memory(self) -> bool:
        """Data-centre Blackwell (sm_100 to sm_110): accumulators outside the registers."""
        return self.vendor == "cuda" and isinstance(self.architecture, int) and 100 <= self.architecture < 120

    def __str__(self) -> str:
        return f"sm_{self.architecture}" if self.vendor == "cuda" else str(self.architecture)


def inputs_first(chip: Chip) -> bool:
    """Whether inputs are the first operand of the products of the forward pass and of grad_w.

    With `mma.sync` (and on AMD) the first operand comes through registers, where the spike mask is made anyway. Chips
    with asynchronous products take the weights first, and in grad_w the neurons: on sm_90 the other order is a race.
    There grad_w also needs two accumulators: products chained into one would drain the pipeline in mid-step.
    """
    return not (chip.has_wgmma or chip.has_tensor_memory)


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
