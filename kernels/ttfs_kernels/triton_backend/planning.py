"""Plans on the meta device: what a pass would launch, without memory and without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ttfs_kernels.triton_backend import passes
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.passes import Plan
from ttfs_kernels.triton_backend.problem import Problem


def plan_pass(which: str, problem: Problem, config: Config, precision: str, device: Device) -> Plan:
    """The plan of one pass with a bias and gradients.

    Args:
        which: "forward", "grad_x" or "grad_w".
        problem: the layer.
        config: blocks.
        precision: of float32 products, "ieee" or "tf32".
        device: what it is planned for.
    """

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=problem.dtype, device="meta")

    x = empty(problem.batch, problem.height, problem.width, problem.in_channels)
    weight = empty(problem.out_channels, *problem.kernel, problem.group_inputs)
    h = empty(problem.batch, *problem.out_size, problem.out_channels)
    persistence = 1.0 if problem.with_slope else 0.0
    if which == "forward":
        bias = torch.empty(problem.out_channels, device="meta")
        return passes.forward(problem, x, weight, bias, persistence, True, config, precision, device.chip)
    if which == "grad_x":
        return passes.grad_x(problem, h, x, weight, config, precision)
    return passes.grad_w(problem, h, h if problem.with_slope else None, x, config, precision, device)
