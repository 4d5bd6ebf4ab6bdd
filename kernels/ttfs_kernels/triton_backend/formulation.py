"""Chips: which form of the contraction each gets, which are refused, and how many programs a processor holds.

On sm_90, a dot whose first operand is in registers runs on beside the one before it, and the compiler may overwrite
those registers too early: a silent race. ACTIVATIONS_FIRST has it in every Triton so far (the mask is in registers,
the activations are not); STACKED has it before 3.9, whose ptxas is the first to keep the registers apart.
WEIGHTS_FIRST has both operands of both dots in shared memory and is clean in every version.
"""

from __future__ import annotations

import math
import re
from enum import IntEnum
from typing import NamedTuple


class Form(IntEnum):
    """Values are those of `rule.py`."""

    ACTIVATIONS_FIRST = 0
    WEIGHTS_FIRST = 1
    STACKED = 2


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


Version = tuple[int, int]
FIRST_CLEAN_STACKED: Version = (3, 9)


def triton_version() -> Version:
    """(major, minor) of the installed Triton."""
    import triton

    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    if found is None:
        raise RuntimeError(f"Triton's version must start with two numbers; got {triton.__version__!r}.")
    return int(found[1]), int(found[2])


def default_form(chip: Chip) -> Form:
    """The form of the forward pass where no tuned table says otherwise; never one that is refused."""
    return Form.WEIGHTS_FIRST if chip.has_wgmma or chip.has_tensor_memory else Form.ACTIVATIONS_FIRST


def refused(form: Form, chip: Chip, version: Version) -> str | None:
    """Why a form must not be built for a chip with a Triton version, or None if it may."""
    if not chip.has_wgmma:
        return None
    if form == Form.ACTIVATIONS_FIRST:
        return f"{form.name} is a register race on {chip} with every Triton version"
    if form == Form.STACKED and version < FIRST_CLEAN_STACKED:
        return f"{form.name} is a register race on {chip} before Triton {'.'.join(map(str, FIRST_CLEAN_STACKED))}"
    return None


def check_form(form: Form, chip: Chip, version: Version) -> None:
    """Refuse a form that would race.

    Raises:
        RuntimeError: naming form, chip and version.
    """
    reason = refused(form, chip, version)
    if reason is not None:
        raise RuntimeError(
            f"{reason}; got Triton {version[0]}.{version[1]}. Use {default_form(chip).name}, which is safe everywhere."
        )


def two_accumulators(chip: Chip) -> bool:
    """Whether grad_w sums its two contractions in two accumulators.

    On chips with asynchronous products, two dots chained into one accumulator drain the pipeline in mid-step.
    """
    return chip.has_wgmma or chip.has_tensor_memory


def inputs_first(chip: Chip) -> bool:
    """Whether the inputs are grad_w's first operand.

    With `mma.sync` (and on AMD) the first operand comes through registers, where the mask is made anyway.
    """
    return not two_accumulators(chip)


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
