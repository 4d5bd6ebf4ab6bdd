"""Chips: the order of a product's operands, and how many programs a processor holds.

On sm_90, a product whose first operand is in registers overlaps with the product before it, and the compiler may
overwrite those registers too early. This is a silent race, in every Triton version so far, if inputs come first: the
mask is in registers, the inputs are not. With weights first, both operands of both products are in shared memory.
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
        """Whether products are asynchronous and span whole warp groups (Hopper)."""
        return self.vendor == "cuda" and self.architecture == 90

    @property
    def has_tensor_memory(self) -> bool:
        """Whether accumulators are outside the registers (data-centre Blackwell, sm_100 to sm_110)."""
        return self.vendor == "cuda" and isinstance(self.architecture, int) and 100 <= self.architecture < 120

    def __str__(self) -> str:
        return f"sm_{self.architecture}" if self.vendor == "cuda" else str(self.architecture)


def inputs_first(chip: Chip) -> bool:
    """Whether inputs are the first operand of the products in the forward pass and in grad_w.

    With `mma.sync` (and on AMD) the first operand comes through registers, where the spike mask is made anyway. Chips
    with asynchronous products take the weights first, and in grad_w the neurons: on sm_90 the other order is a race.
    In that order grad_w has two accumulators: products chained into one would drain the pipeline in mid-step.
    """
    return not (chip.has_wgmma or chip.has_tensor_memory)


class Limits(NamedTuple):
    """Resources of a processor, which the programs on it share.

    Attributes:
        registers: 32-bit registers for all warps; a thread takes multiples of `registers_unit`.
        warps, programs: largest number at once.
        shared_kib: shared memory in KiB; each program takes `reserved_kib` for the system beside its own.
        tensor_columns: columns of tensor memory.
    """

    registers: int
    registers_unit: int
    warps: int
    programs: int
    shared_kib: int
    reserved_kib: int
    tensor_columns: int = 0


# Sources: CUDA's programming guide, compute capabilities; LLVM's guide to AMDGPU: gfx942 has four units, each with 512
# registers per thread and 8 warps.
LIMITS: dict[int | str, Limits] = {
    80: Limits(65536, 8, 64, 32, 164, 1),
    86: Limits(65536, 8, 48, 16, 100, 1),
    89: Limits(65536, 8, 48, 24, 100, 1),
    90: Limits(65536, 8, 64, 32, 228, 1),
    100: Limits(65536, 8, 64, 32, 228, 1, 512),
    "gfx942": Limits(4 * 512 * 64, 8, 32, 16, 64, 0),
}


def fitting(chip: Chip, registers: int, warps: int, shared: int, columns: int = 0) -> int | None:
    """How many programs fit on a processor at once; 0 if not even one, None if `LIMITS` lacks the chip.

    Args:
        chip: the compilation target.
        registers: registers per thread.
        warps: warps per program.
        shared: bytes of shared memory per program.
        columns: columns of tensor memory per program.
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
