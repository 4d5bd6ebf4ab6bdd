"""The passes by one stacked cuDNN or cuBLAS call each, for shapes where that is faster than our kernels.

Same operands and results as `passes.py`; the mask, the rule and the local gradients are still Triton.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import vanishing
from ttfs_kernels.triton_backend import elementwise
from ttfs_kernels.triton_backend.launch import Launch
from ttfs_kernels.triton_backend.passes import ELEMENTS, Plan
from ttfs_kernels.triton_backend.problem import Problem


def forward(
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    with_derivatives: bool,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
) -> tuple[Any, ...]:
    """(y, gain): one contraction over [x; σ·mask], then the rule; see `passes.forward`."""
    A, W = potentials(problem, x, weight, neuron.psp_persistence)
    y = torch.empty_like(A)
    gain = torch.empty_like(y) if with_derivatives and W is not None else None
    arguments = {
        "A_ptr": A,
        "W_ptr": W,
        "bias_ptr": bias,
        "y_ptr": y,
        "gain_ptr": gain,
        "skip_ptr": skip,
        "skip_weight_ptr": skip_weight,
        "size": y.numel(),
        "N": problem.out_channels,
        "properties": neuron.numbers(),
        "HAS_BIAS": bias is not None,
        "HAS_SKIP": skip is not None,
        "WITH_SLOPE": W is not None,
        "WITH_GAIN": gain is not None,
        "SURROGATE": neuron.has_surrogate and gain is not None,
        "BLOCK": ELEMENTS,
    }
    return Plan(_launches(elementwise.fire_potentials, y.numel(), arguments), (y, gain)).run()


def potentials(
    problem: Problem, x: Tensor, weight: Tensor, psp_persistence: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """(A, W): one contraction over [x; σ·mask], both [B, P, Q, N]; W is None at σ = 0."""
    operand = _stack_mask(x, psp_persistence) if problem.with_slope else x
    if problem.is_matrix_product:
        both = F.linear(operand.view(-1, problem.depth), weight.view(problem.out_channels, problem.depth))
    else:
        both = F.conv2d(_channels_first(operand), _channels_first(weight), None, *problem.geometry)
        both = both.permute(0, 2, 3, 1).contiguous()
    both = both.view(2 if problem.with_slope else 1, problem.batch, *problem.out_size, problem.out_channels)
    return both[0], both[1] if problem.with_slope else None


def grad_x(
    problem: Problem,
    pair: Tensor,
    x: Tensor,
    weight: Tensor,
    neuron: Neuron = Neuron(),
) -> Tensor:
    """The gradient of the activations, zero at silent inputs if σ > 0.

    `pair` is [h; slope_h] or [h], see `passes.halves`. With slope_h and a surrogate: plus the gradient of the mask,
    both by one contraction.
    """
    if len(pair) == 2 and neuron.has_surrogate:
        operand = torch.cat([x, x]) if not problem.is_matrix_product else x
        by_activation, by_mask = _by_inputs(problem, pair.flatten(0, 1), operand, weight).view(2, *x.shape)
        by_activation = torch.ops.aten.threshold_backward(by_activation, x, 0)
        return by_activation.addcmul_(by_mask, vanishing(x, neuron))
    result = _by_inputs(problem, pair[0], x, weight).view(x.shape)
    return torch.ops.aten.threshold_backward(result, x, 0) if problem.with_slope else result


def _by_inputs(problem: Problem, h: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if problem.is_matrix_product:
        return h.view(-1, problem.out_channels) @ weight.view(problem.out_channels, problem.depth)
    return _convolution_backward(problem, h, x, weight, 0).permute(0, 2, 3, 1).contiguous()


def grad_w(problem: Problem, pair: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight: one contraction of [h; slope_h] with [x; mask], or of [h] with x."""
    h = pair.flatten(0, 1)
    if len(pair) == 2:
        x = _stack_mask(x, 1.0)
    if problem.is_matrix_product:
        grad_weight = h.view(-1, problem.out_channels).t() @ x.view(-1, problem.depth)
        return grad_weight.view(weight.shape)
    return _convolution_backward(problem, h, x, weight, 1).permute(0, 2, 3, 1).contiguous()


def _stack_mask(x: Tensor, psp_persistence: float) -> Tensor:
    stacked = x.new_empty(2 * x.shape[0], *x.shape[1:])
    arguments = {
        "x_ptr": x,
        "stacked_ptr": stacked,
        "size": x.numel(),
        "persistence": float(psp_persistence),
        "BLOCK": ELEMENTS,
    }
    Plan(_launches(elementwise.stack_mask, x.numel(), arguments), (stacked,)).run()
    return stacked


def _launches(kernel: Any, size: int, arguments: dict[str, Any]) -> list[Launch]:
    return [Launch(kernel, (math.ceil(size / ELEMENTS),), arguments)] if size else []


def _channels_first(maps: Tensor) -> Tensor:
    """[B, H, W, C] as the channels-last view [B, C, H, W] that libraries take."""
    return maps.permute(0, 3, 1, 2)


def _convolution_backward(problem: Problem, h: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    stride, padding, dilation, groups = problem.geometry
    wanted = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        _channels_first(h),
        _channels_first(x),
        _channels_first(weight),
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        wanted,
    )[which]
