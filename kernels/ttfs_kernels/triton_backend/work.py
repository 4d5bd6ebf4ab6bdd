"""What our kernels execute for a pass: blocks, their edges included, and the steps of each."""

from __future__ import annotations

import math

from ttfs_kernels.triton_backend.configs import FEW_CHANNELS, Config
from ttfs_kernels.triton_backend.problem import Problem


def executed_flops(which: str, problem: Problem, config: Config, *, surrogate: bool = False) -> int:
    """Floating point operations that tensor cores are given; `Problem.flops` counts what a dense pass needs.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        config: its blocks.
        surrogate: whether silent neurons have a derivative too, so that grad_x has two contractions.
    """
    contractions = 2 if problem.with_slope and (which != "grad_x" or surrogate) else 1
    products = {"forward": _forward, "grad_x": _grad_x, "grad_w": _grad_w}[which](problem, config)
    return 2 * contractions * problem.groups * products


def _forward(problem: Problem, config: Config) -> int:
    block = _whole(problem.rows, config.block_m) * _whole(problem.group_outputs, config.block_n)
    if _joint_steps(problem):
        return block * _whole(problem.depth, config.block_k)
    return block * math.prod(problem.kernel) * _whole(problem.group_inputs, config.block_k)


def _grad_x(problem: Problem, config: Config) -> int:
    block = _whole(problem.group_inputs, config.block_n) * _whole(problem.group_outputs, config.block_k)
    classes = [
        (_class_size(problem.height, i, problem.stride[0]), _class_size(problem.width, j, problem.stride[1]), i, j)
        for i in range(problem.stride[0])
        for j in range(problem.stride[1])
    ]
    return block * sum(
        _whole(problem.batch * rows * columns, config.block_m) * _class_taps(problem, 0, i) * _class_taps(problem, 1, j)
        for rows, columns, i, j in classes
    )


def _grad_w(problem: Problem, config: Config) -> int:
    rows = _whole(problem.rows, config.block_k) * _whole(problem.group_outputs, config.block_m)
    if _joint_steps(problem):
        return rows * _whole(problem.depth, config.block_n)
    return rows * math.prod(problem.kernel) * _whole(problem.group_inputs, config.block_n)


def _class_size(size: int, residue: int, stride: int) -> int:
    """Input positions of a residue class along one axis."""
    return max(0, math.ceil((size - residue) / stride))


def _class_taps(problem: Problem, axis: int, residue: int) -> int:
    """Taps that the input positions of a residue class meet along one axis."""
    stride, padding, dilation = problem.stride[axis], problem.padding[axis], problem.dilation[axis]
    return sum((residue + padding - tap * dilation) % stride == 0 for tap in range(problem.kernel[axis]))


def _joint_steps(problem: Problem) -> bool:
    return problem.group_inputs < FEW_CHANNELS and not problem.is_matrix_product


def _whole(size: int, block: int) -> int:
    """`size`, rounded up to whole blocks."""
    return math.ceil(size / block) * block
