"""Block sizes, warps and pipeline stages: defaults for each chip, and the candidates that tuning tries.

The defaults were chosen from compiled code (registers, spills, barriers in the main loop; see `kernels/DESIGN.md`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from ttfs_kernels.triton_backend.formulation import Chip, Form, default_form, refused
from ttfs_kernels.triton_backend.problem import Problem

# Channels of a group below which a step runs over the joint index (r, s, c).
FEW_CHANNELS = 16
SMALLEST_BLOCK = 16  # of a tensor core product


@dataclass(frozen=True)
class Config:
    """How a pass is cut into blocks.

    Attributes:
        block_m, block_n: the two sides of the block of results.
        block_k: depth of a step.
        num_warps, num_stages: of a program, of its software pipeline.
        form: of the forward contraction; the other passes do not use it.
        group: rows of blocks that are walked together.
        splits: of grad_w's reduction; 0 = as many as fill the processors.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    form: Form = Form.ACTIVATIONS_FIRST
    group: int = 8
    splits: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "form": self.form.name.lower()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError: unknown form or keys.
        """
        return Config(**{**values, "form": Form[values["form"].upper()]})


def default_config(which: str, problem: Problem, chip: Chip, precision: str) -> Config:
    """The configuration of a pass where no tuned table says otherwise.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        chip: what it runs on.
        precision: of float32 products, "ieee" or "tf32".
    """
    config = _largest(which, _columns(which, problem), problem.dtype, chip, precision)
    if which == "forward" and _joint_steps(problem):
        # Every element of such a step has its own address: with 128 positions, the loop spills registers.
        config = dataclasses.replace(config, block_m=64)
    return _fitted(config, which, problem)


def candidates(which: str, problem: Problem, chip: Chip, precision: str, version: tuple[int, int]) -> list[Config]:
    """Configurations worth timing; the default first, none twice, none of a refused form."""
    default = default_config(which, problem, chip, precision)
    half = 32 if problem.dtype.itemsize == 2 else 16
    tried = [default]
    for block_m, block_n in ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32)):
        for block_k in (half, 2 * half):
            warps = 8 if block_m * block_n >= 128 * 128 else 4
            for stages in (2, 3, 4):
                forms = Form if which == "forward" and problem.with_slope else (default.form,)
                for form in forms:
                    config = Config(block_m, block_n, block_k, warps, stages, form)
                    if refused(form, chip, version) is None:
                        tried.append(_fitted(config, which, problem))
    return list(dict.fromkeys(tried))


def _columns(which: str, problem: Problem) -> int:
    """Length of the block's second side: output channels, input channels, or weights."""
    if which == "forward":
        return problem.group_outputs
    if which == "grad_x":
        return problem.group_inputs
    return problem.depth if _joint_steps(problem) else problem.group_inputs


def _largest(which: str, columns: int, dtype: torch.dtype, chip: Chip, precision: str) -> Config:
    form = default_form(chip)
    if dtype == torch.float32:
        # Without tensor cores (ieee), a block is as large as registers allow.
        if precision == "ieee":
            return Config(64, 64, 16, 8, 2, form)
        # Three stages of tf32 do not fit into the 64 KiB of shared memory of AMD's compute units.
        return Config(128, 64, 32, 8, 2 if chip.vendor == "hip" else 3, form)
    if chip.vendor == "hip":
        return Config(128, 128 if columns > 64 else 64, 32, 8 if columns > 64 else 4, 2, form)
    asynchronous = chip.has_wgmma or chip.has_tensor_memory
    depth = 64 if asynchronous else 32
    if columns > 64:
        return Config(128, 128, depth, 8, 3, form)
    # Two of these programs share a processor.
    return Config(128, 64, depth, 4 if not chip.has_tensor_memory else 8, 2 if which == "grad_w" else 3, form)


def _fitted(config: Config, which: str, problem: Problem) -> Config:
    """Blocks no larger than what they cover."""
    rows = {
        "forward": problem.rows,
        "grad_x": problem.batch * problem.height * problem.width,
        "grad_w": problem.group_outputs,
    }[which]
    depth = {
        "forward": problem.depth if _joint_steps(problem) else problem.group_inputs,
        "grad_x": problem.group_outputs,
        "grad_w": problem.rows,
    }[which]
    return dataclasses.replace(
        config,
        block_m=min(config.block_m, _power_of_two(rows)),
        block_n=min(config.block_n, _power_of_two(_columns(which, problem))),
        block_k=min(config.block_k, _power_of_two(depth)),
    )


def _joint_steps(problem: Problem) -> bool:
    """Whether steps run over the joint index (r, s, c), since channels are few."""
    return problem.group_inputs < FEW_CHANNELS and not problem.is_matrix_product


def _power_of_two(size: int) -> int:
    """Smallest block that covers `size`."""
    return max(SMALLEST_BLOCK, 1 << max(0, size - 1).bit_length())
