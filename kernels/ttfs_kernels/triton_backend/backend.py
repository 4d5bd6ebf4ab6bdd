"""Forward and backward of both operators: layouts, the choice of a provider for each pass, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend import library, passes
from ttfs_kernels.triton_backend.choice import Choice, choose
from ttfs_kernels.triton_backend.launch import device_of, float32_precision
from ttfs_kernels.triton_backend.problem import Problem


def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """(y [M, N], gain [M, N] or None) from x [M, K] and weight [N, K]."""
    problem = Problem.of_linear(x, weight, neuron)
    y, gain = _forward(problem, x.contiguous(), weight.contiguous(), bias, neuron, with_gain, backend)
    shape = (problem.batch, problem.out_channels)
    return y.view(shape), None if gain is None else gain.view(shape)


def linear_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    neuron: Neuron,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, None where not needed."""
    problem = Problem.of_linear(x, weight, neuron)
    grad, x, y, weight = (tensor.contiguous() for tensor in (grad, x, y, weight))
    gain = None if gain is None else gain.contiguous()
    return _backward(problem, grad, x, y, weight, gain, neuron, needs, backend)


def conv2d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    neuron: Neuron,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """(y, gain or None), both [B, N, P, Q] channels-last, from x [B, C, H, W] and weight [N, C / groups, R, S]."""
    problem = Problem.of_conv2d(x, weight, geometry, neuron)
    y, gain = _forward(problem, _rows(x), _rows(weight), bias, neuron, with_gain, backend)
    return y.permute(0, 3, 1, 2), None if gain is None else gain.permute(0, 3, 1, 2)


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    geometry: Geometry,
    neuron: Neuron,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x and weight, channels-last, and of the bias; None where not needed."""
    problem = Problem.of_conv2d(x, weight, geometry, neuron)
    grad, x, y, weight = (_rows(tensor) for tensor in (grad, x, y, weight))
    gain = None if gain is None else _rows(gain)
    grad_x, grad_w, grad_bias = _backward(problem, grad, x, y, weight, gain, neuron, needs, backend)
    grad_x, grad_w = (None if g is None else g.permute(0, 3, 1, 2) for g in (grad_x, grad_w))
    return grad_x, grad_w, grad_bias


def _rows(maps: Tensor) -> Tensor:
    """[B, C, H, W] → contiguous [B, H, W, C]: a view if it is channels-last."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _forward(
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    with_gain: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    bias = None if bias is None else bias.contiguous()
    choice = _choose("forward", problem, x, backend)
    if choice.config is None:
        return library.forward(problem, x, weight, bias, neuron, with_gain)
    y, gain = passes.forward(
        problem,
        x,
        weight,
        bias,
        neuron,
        with_gain,
        choice.config,
        _precision(problem),
        device_of(x.device).chip,
    ).run()
    return y, gain


def _backward(
    problem: Problem,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    neuron: Neuron,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    needs_x, needs_weight, needs_bias = needs
    h, late_h, grad_bias = passes.local_gradient(
        problem, grad, y, gain, neuron, needs_weight or neuron.has_surrogate, needs_bias
    ).run()
    grad_x = grad_w = None
    precision = _precision(problem)
    if needs_x:
        choice = _choose("grad_x", problem, x, backend)
        if choice.config is None:
            grad_x = library.grad_x(problem, h, x, weight, late_h, neuron)
        else:
            plan = passes.grad_x(problem, h, x, weight, choice.config, precision, late_h, neuron)
            (grad_x,) = plan.run()
    if needs_weight:
        choice = _choose("grad_w", problem, x, backend)
        if choice.config is None:
            grad_w = library.grad_w(problem, h, late_h, x, weight)
        else:
            plan = passes.grad_w(problem, h, late_h, x, choice.config, precision, device_of(x.device))
            (grad_w,) = plan.run()
    return grad_x, grad_w, grad_bias


def _choose(which: str, problem: Problem, x: Tensor, backend: str) -> Choice:
    return choose(which, problem, device_of(x.device), _precision(problem), backend)


def _precision(problem: Problem) -> str:
    if problem.dtype != torch.float32:
        return "ieee"
    return float32_precision("linear" if problem.is_matrix_product else "conv2d")
