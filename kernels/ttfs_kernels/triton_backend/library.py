"""The passes of a layer by one stacked cuDNN or cuBLAS call each, for shapes where that is faster than our kernels.

Operands and results are as in `passes.py`. Contractions and rule come from the PyTorch backend; local gradients are
computed by our kernel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ttfs_kernels.contraction import Geometry, contract, gradient_of_input, gradient_of_weight
from ttfs_kernels.fused import with_delayed
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import fire_with_derivatives, vanishing
from ttfs_kernels.torch_backend import stack_mask, to_rows
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
) -> tuple[Tensor, Tensor | None]:
    """(y, gain): one contraction over [x; σ·mask], then the rule in float32; see `passes.forward`."""
    A, W = (None if both is None else both.float() for both in potentials(problem, x, weight, neuron))
    assert A is not None
    A = A if bias is None else A + bias.float()
    delayed = None if skip is None else skip.view_as(A)
    A, W = with_delayed(A, W, delayed, skip_weight, neuron.psp_persistence)
    if W is None:
        return A.clamp(0, 1).to(x.dtype), None
    y, gain, _ = fire_with_derivatives(A, W, replace(neuron, derivative_clip=None))
    return y.to(x.dtype), gain.clamp_max(torch.finfo(x.dtype).max).to(x.dtype) if with_derivatives else None


def potentials(problem: Problem, x: Tensor, weight: Tensor, neuron: Neuron = Neuron()) -> tuple[Tensor, Tensor | None]:
    """(A, W): one contraction over [x; σ·mask], both [B, P, Q, N]; W is None at σ = 0."""
    operand = stack_mask(_maps(problem, x), neuron) if problem.with_slope else _maps(problem, x)
    both = to_rows(contract(operand, _maps(problem, weight), None, _geometry(problem)))
    both = both.view(2 if problem.with_slope else 1, problem.batch, *problem.out_size, problem.out_channels)
    return both[0], both[1] if problem.with_slope else None


def grad_x(problem: Problem, pair: Tensor, x: Tensor, weight: Tensor, neuron: Neuron = Neuron()) -> Tensor:
    """The gradient of the activations, zero at silent inputs if σ > 0.

    `pair` is [h; slope_h] or [h], see `passes.halves`. With slope_h and a surrogate, the gradient of the mask is added;
    one contraction gives both.
    """
    pair = pair if neuron.has_surrogate else pair[:1]
    operand = x if len(pair) == 1 else torch.cat([x, x])  # only its shape is read
    h, operand, weight = (_maps(problem, rows) for rows in (pair.flatten(0, 1), operand, weight))
    both = to_rows(gradient_of_input(h, operand, weight, _geometry(problem)))
    by_activation, *by_mask = both.view(len(pair), *x.shape)
    if not problem.with_slope:
        return by_activation
    result = torch.ops.aten.threshold_backward(by_activation, x, 0)
    return result.addcmul_(by_mask[0], vanishing(x, neuron)) if by_mask else result


def grad_w(problem: Problem, pair: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight: one contraction of [h; slope_h] with [x; mask], or of [h] with x."""
    h, operand = _maps(problem, pair.flatten(0, 1)), _maps(problem, x)
    operand = stack_mask(operand, Neuron(1.0)) if len(pair) == 2 else operand  # slope_h includes σ
    return to_rows(gradient_of_weight(h, operand, _maps(problem, weight), _geometry(problem))).view(weight.shape)


def _geometry(problem: Problem) -> Geometry | None:
    return None if problem.is_matrix_product else problem.geometry


def _maps(problem: Problem, rows: Tensor) -> Tensor:
    """[B, H, W, C] as the channels-last view [B, C, H, W] that convolutions take, or as a matrix [B·H·W, C]."""
    return rows.flatten(0, -2) if problem.is_matrix_product else rows.permute(0, 3, 1, 2)
