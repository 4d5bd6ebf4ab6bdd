"""Plans on the meta device: what a pass would launch, without memory and without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend import passes
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.passes import Plan
from ttfs_kernels.triton_backend.problem import Problem

SURROGATE_WIDTH = 0.5  # any above 0 is compiled alike


def plan_pass(
    which: str,
    problem: Problem,
    config: Config | None,
    precision: str,
    device: Device,
) -> Plan:
    """The plan of one pass with a bias and gradients.

    Args:
        which: "forward", "grad_x", "grad_w", "local_gradient" for what comes before both, or "pool" for the kernel that
            pools behind a forward pass.
        problem: the layer. A pool counts in "local_gradient" and "pool", and in a forward pass that pools itself.
        config: blocks; None for "local_gradient" and "pool", whose blocks are always the same.
        precision: of float32 products, "ieee" or "tf32".
        device: what it is planned for.
    """

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=problem.dtype, device="meta")

    x = empty(problem.batch, problem.height, problem.width, problem.in_channels)
    weight = empty(problem.out_channels, *problem.kernel, problem.group_inputs)
    h = empty(problem.batch, *problem.out_size, problem.out_channels)
    bias = torch.empty(problem.out_channels, device="meta")  # and weights of a skip
    neuron = Neuron(float(problem.with_slope), surrogate_width=SURROGATE_WIDTH if problem.surrogate else 0.0)
    slope_h = h if problem.with_slope else None
    if which == "pool":
        return passes.pool(problem, h, slope_h, True)
    if which == "local_gradient":
        kept = empty(problem.batch, *problem.pooled_size, problem.out_channels)
        winner = torch.empty_like(kept, dtype=torch.uint8) if problem.pool > 1 else None
        gain = kept if problem.with_slope else None
        delayed = passes.Delayed(h, bias, True, True) if problem.skip else None
        return passes.local_gradient(problem, kept, kept, gain, neuron, True, True, winner, delayed)
    assert config is not None
    if which == "forward":
        skip = (h, bias) if problem.skip else ()
        return passes.forward(problem, x, weight, bias, neuron, True, config, precision, device.chip, *skip)
    if which == "grad_x":
        return passes.grad_x(problem, h, x, weight, config, precision, slope_h, neuron, device.processors)
    return passes.grad_w(problem, h, slope_h, x, config, precision, device)
