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
    differentiate,
    fake,
    new_bias_gradient,
    new_channels_last,
    operator,
    register_autocast,
    register_autograd,
)

Three = tuple[Tensor, Tensor, Tensor]


@operator("per_pass_linear", formula=True)
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neuron: Sequence[float],
    with_derivatives: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    from ttfs_kernels.triton_backend.backend import linear

    passes = linear(x, weight, bias, Neuron.unpack(neuron), with_derivatives, backend)
    y, gain, _ = passes.forward(x, weight, bias)
    return y, _or_empty(gain, x)


@fake("per_pass_linear")
def _(x, weight, bias, neuron, with_derivatives, backend):
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape if with_derivatives and Neuron.unpack(neuron).has_slope else 0)


@operator("per_pass_linear_backward")
def _linear_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    gain: Tensor,
    weight: Tensor,
    neuron: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> Three:
    from ttfs_kernels.triton_backend.backend import linear

    properties = Neuron.unpack(neuron)
    passes = linear(x, weight, None, properties, True, backend)
    return _three(passes.backward(needs, grad, x, y, gain if properties.has_slope else None, None, weight), grad)


@fake("per_pass_linear_backward")
def _(grad, x, y, gain, weight, neuron, needs, backend):
    return (
        grad.new_empty(x.shape) if needs[0] else grad.new_empty(0),
        grad.new_empty(weight.shape) if needs[1] else grad.new_empty(0),
        new_bias_gradient(grad, weight) if needs[2] else grad.new_empty(0),
    )


@operator("per_pass_conv2d", formula=True)
def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: int,
    neuron: Sequence[float],
    with_derivatives: bool,
    backend: str,
    fuse_pool: bool | None,
) -> Three:
    from ttfs_kernels.triton_backend.backend import conv2d

    geometry = Geometry(stride, padding, dilation, groups)
    options = (Neuron.unpack(neuron), with_derivatives, backend, pool, fuse_pool)
    y, gain, winner = conv2d(x, weight, bias, geometry, *options).forward(x, weight, bias)
    return y, _or_empty(gain, x), _or_empty(winner, x, torch.uint8)


@fake("per_pass_conv2d")
def _(x, weight, bias, stride, padding, dilation, groups, pool, neuron, with_derivatives, backend, fuse_pool):
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
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pool: int,
    neuron: Sequence[float],
    needs: Sequence[bool],
    backend: str,
) -> Three:
    from ttfs_kernels.triton_backend.backend import conv2d

    properties = Neuron.unpack(neuron)
    passes = conv2d(x, weight, None, Geometry(stride, padding, dilation, groups), properties, True, backend, pool)
    kept = x, y, gain if properties.has_slope else None, winner if pool > 1 else None, weight
    return _three(passes.backward(needs, grad, *kept), grad)


@fake("per_pass_conv2d_backward")
def _(grad, x, y, gain, winner, weight, stride, padding, dilation, groups, pool, neuron, needs, backend):
    return (
        new_channels_last(grad, *x.shape) if needs[0] else grad.new_empty(0),
        new_channels_last(grad, *weight.shape) if needs[1] else grad.new_empty(0),
        new_bias_gradient(grad, weight) if needs[2] else grad.new_empty(0),
    )


def _or_empty(tensor: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns for a tensor that there may not be."""
    return like.new_empty(0, dtype=dtype) if tensor is None else tensor


def _three(grads: tuple[Tensor | None, Tensor | None, Tensor | None], like: Tensor) -> Three:
    grad_x, grad_weight, grad_bias = (_or_empty(grad, like) for grad in grads)
    return grad_x, grad_weight, grad_bias


def _save(options: int, ctx, inputs, output) -> None:
    """Keep what the backward operator takes, `options` of the inputs behind the bias among it."""
    x, weight, bias, *others = inputs
    _, *derivatives = output
    _, backend, *_ = others[options:]
    ctx.mark_non_differentiable(*derivatives)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *output, weight)
    ctx.options, ctx.last_options = tuple(others[:options]), (backend,)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.other_inputs = len(inputs) - 3


def _formula(backward_operator):
    return lambda ctx, grad, *_: differentiate(ctx, backward_operator, grad)


register_autograd("per_pass_linear", _formula(torch.ops.ttfs.per_pass_linear_backward.default), partial(_save, 1))
register_autograd("per_pass_conv2d", _formula(torch.ops.ttfs.per_pass_conv2d_backward.default), partial(_save, 6))
register_autocast("per_pass_linear", "per_pass_conv2d")


def linear_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, neuron: Neuron, with_derivatives: bool, backend: str
) -> Formula:
    """Both passes of `per_pass_linear` for operands like these, without the operator."""
    from ttfs_kernels.triton_backend.backend import linear

    def operator(needs, grad, x, y, gain, winner, weight):
        kept = x, y, _or_empty(gain, x), weight
        return torch.ops.ttfs.per_pass_linear_backward.default(grad, *kept, neuron.pack(), list(needs), backend)

    return _without_operators(linear(x, weight, bias, neuron, with_derivatives, backend), operator)


def conv2d_formula(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    pool: int,
    fuse_pool: bool | None,
    neuron: Neuron,
    with_derivatives: bool,
    backend: str,
) -> Formula:
    """As `linear_formula`, for `per_pass_conv2d`."""
    from ttfs_kernels.triton_backend.backend import conv2d

    def operator(needs, grad, x, y, gain, winner, weight):
        kept = x, y, _or_empty(gain, x), _or_empty(winner, x, torch.uint8), weight
        options = *geometry, pool, neuron.pack(), list(needs), backend
        return torch.ops.ttfs.per_pass_conv2d_backward.default(grad, *kept, *options)

    passes = conv2d(x, weight, bias, geometry, neuron, with_derivatives, backend, pool, fuse_pool)
    return _without_operators(passes, operator)


def _without_operators(passes: Any, backward_operator: Callable[..., Three]) -> Formula:
    def forward(x, weight, bias):
        y, gain, winner = passes.forward(x, weight, bias)
        return y, (x, y, gain, winner, weight)

    return Formula(forward, passes.backward, backward_operator)
