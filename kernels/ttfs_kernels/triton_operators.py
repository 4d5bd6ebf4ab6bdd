"""Registered operators of the Triton backend, and of the choice between it and a library call.

Each returns (activations, gain); the gain is empty where `with_derivatives` is false or σ = 0. A convolution also
returns the winner: with a pool, which neuron of each window is passed on (uint8), otherwise empty, as where
`with_derivatives` is false. The backward pass reads the input and what is returned: nothing else is kept. `backend` is
"triton", or "auto" for the faster provider of each pass. Importing this module needs no Triton.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.contraction import Geometry
from ttfs_kernels.direct import Formula
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.registration import (
    OPERANDS,
    Five,
    differentiate,
    fake,
    fake_gradients,
    new_channels_last,
    operator,
    or_empty,
    register_autocast,
    register_autograd,
)


@operator("per_pass_linear", formula=True)
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    neuron: Sequence[float],
    with_derivatives: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    from ttfs_kernels.triton_backend.backend import linear

    operands = x, weight, bias, skip, skip_weight
    y, gain, _ = linear(operands, Neuron.unpack(neuron), with_derivatives, backend).forward(*operands)
    return y, or_empty(gain, x)


@fake("per_pass_linear")
def _(x, weight, bias, skip, skip_weight, neuron, with_derivatives, backend):
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape if with_derivatives and Neuron.unpack(neuron).has_slope else 0)


@operator("per_pass_linear_backward")
def _linear_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    gain: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    neuron: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> Five:
    from ttfs_kernels.triton_backend.backend import linear

    properties = Neuron.unpack(neuron)
    passes = linear((x, weight, None, skip, skip_weight), properties, True, backend)
    kept = x, y, gain if properties.has_slope else None, None, weight, skip, skip_weight
    return _five(passes.backward(needs, grad, *kept), grad)


@fake("per_pass_linear_backward")
def _(grad, x, y, gain, weight, skip, skip_weight, neuron, needs, backend):
    return fake_gradients(grad, needs, x.shape, weight.shape)


@operator("per_pass_conv2d", formula=True)
def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: int,
    neuron: Sequence[float],
    with_derivatives: bool,
    backend: str,
    fuse_pool: bool | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from ttfs_kernels.triton_backend.backend import conv2d

    geometry = Geometry(stride, padding, dilation, groups)
    options = (Neuron.unpack(neuron), with_derivatives, backend, pool, fuse_pool)
    operands = x, weight, bias, skip, skip_weight
    y, gain, winner = conv2d(operands, geometry, *options).forward(*operands)
    return y, or_empty(gain, x), or_empty(winner, x, torch.uint8)


@fake("per_pass_conv2d")
def _(
    x,
    weight,
    bias,
    skip,
    skip_weight,
    stride,
    padding,
    dilation,
    groups,
    pool,
    neuron,
    with_derivatives,
    backend,
    fuse_pool,
):
    rows, columns = Geometry(stride, padding, dilation, groups).map_size(x.shape[2:], weight.shape[2:])
    y = new_channels_last(x, x.shape[0], weight.shape[0], rows // pool, columns // pool)
    gain = torch.empty_like(y) if with_derivatives and Neuron.unpack(neuron).has_slope else x.new_empty(0)
    winner = (
        torch.empty_like(y, dtype=torch.uint8) if with_derivatives and pool > 1 else x.new_empty(0, dtype=torch.uint8)
    )
    return y, gain, winner


@operator("per_pass_conv2d_backward")
def _conv2d_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    gain: Tensor,
    winner: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: int,
    neuron: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> Five:
    from ttfs_kernels.triton_backend.backend import conv2d

    properties = Neuron.unpack(neuron)
    operands = x, weight, None, skip, skip_weight
    passes = conv2d(operands, Geometry(stride, padding, dilation, groups), properties, True, backend, pool)
    kept = x, y, gain if properties.has_slope else None, winner if pool > 1 else None, weight, skip, skip_weight
    return _five(passes.backward(needs, grad, *kept), grad)


@fake("per_pass_conv2d_backward")
def _(
    grad,
    x,
    y,
    gain,
    winner,
    weight,
    skip,
    skip_weight,
    stride,
    padding,
    dilation,
    groups,
    pool,
    neuron,
    needs,
    backend,
):
    return fake_gradients(grad, needs, x.shape, weight.shape)


def _five(grads: Sequence[Tensor | None], like: Tensor) -> Five:
    grad_x, grad_weight, grad_bias, *grads_skip = (or_empty(grad, like) for grad in grads)
    grad_skip, grad_skip_weight = grads_skip or (or_empty(None, like), or_empty(None, like))
    return grad_x, grad_weight, grad_bias, grad_skip, grad_skip_weight


def _save(options: int, ctx, inputs, output) -> None:
    """Keep what the backward operator takes, `options` of the inputs behind the operands among it."""
    operands, others = inputs[:OPERANDS], inputs[OPERANDS:]
    x, weight, _, skip, skip_weight = operands
    _, *derivatives = output
    _, backend, *_ = others[options:]
    ctx.mark_non_differentiable(*derivatives)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *output, weight, skip, skip_weight)
    ctx.options, ctx.last_options = tuple(others[:options]), (backend,)
    ctx.operand_dtypes = [None if operand is None else operand.dtype for operand in operands]
    ctx.other_inputs = len(others)


def _formula(backward_operator):
    return lambda ctx, grad, *_: differentiate(ctx, backward_operator, grad)


register_autograd("per_pass_linear", _formula(torch.ops.ttfs.per_pass_linear_backward.default), partial(_save, 1))
register_autograd("per_pass_conv2d", _formula(torch.ops.ttfs.per_pass_conv2d_backward.default), partial(_save, 6))
register_autocast("per_pass_linear", "per_pass_conv2d")


def linear_formula(operands: tuple[Any, ...], neuron: Neuron, with_derivatives: bool, backend: str) -> Formula:
    """Both passes of `per_pass_linear` for operands like these, without the operator."""
    from ttfs_kernels.triton_backend.backend import linear

    def operator(needs, grad, x, y, gain, winner, weight, *skip):
        kept = x, y, or_empty(gain, x), weight, *(skip or (None, None))
        return torch.ops.ttfs.per_pass_linear_backward.default(grad, *kept, neuron.pack(), list(needs), backend)

    return _without_operators(linear(operands, neuron, with_derivatives, backend), operator)


def conv2d_formula(
    operands: tuple[Any, ...],
    geometry: Geometry,
    pool: int,
    fuse_pool: bool | None,
    neuron: Neuron,
    with_derivatives: bool,
    backend: str,
) -> Formula:
    """As `linear_formula`, for `per_pass_conv2d`."""
    from ttfs_kernels.triton_backend.backend import conv2d

    def operator(needs, grad, x, y, gain, winner, weight, *skip):
        kept = x, y, or_empty(gain, x), or_empty(winner, x, torch.uint8), weight, *(skip or (None, None))
        options = *geometry, pool, neuron.pack(), list(needs), backend
        return torch.ops.ttfs.per_pass_conv2d_backward.default(grad, *kept, *options)

    passes = conv2d(operands, geometry, neuron, with_derivatives, backend, pool, fuse_pool)
    return _without_operators(passes, operator)


def _without_operators(passes: Any, backward_operator: Callable[..., Five]) -> Formula:
    def forward(x, weight, bias, *skip):
        y, gain, winner = passes.forward(x, weight, bias, *skip)
        return y, (x, y, gain, winner, weight, *skip)

    return Formula(forward, passes.backward, backward_operator)
