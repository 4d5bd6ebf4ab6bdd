"""Registered operators of the Triton backend, and of the choice between it and a library call.

Each returns (activations, gain); the gain is empty where `with_derivatives` is false or σ = 0. A convolution also
returns the winner: with a pool, which neuron of each window is passed on (uint8), otherwise empty, as where
`with_derivatives` is false. The backward pass reads the input and what is returned: nothing else is kept. `backend` is
"triton", or "auto" for the faster provider of each pass. Importing this module needs no Triton.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ttfs_kernels.contraction import Geometry
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
    from ttfs_kernels.triton_backend import backend as triton_backend

    y, gain = triton_backend.linear_forward(x, weight, bias, Neuron.unpack(neuron), with_derivatives, backend)
    return y, x.new_empty(0) if gain is None else gain


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
    from ttfs_kernels.triton_backend import backend as triton_backend

    properties = Neuron.unpack(neuron)
    grads = triton_backend.linear_backward(grad, x, y, _present(gain, properties), weight, properties, needs, backend)
    return _three(grads, grad)


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
    from ttfs_kernels.triton_backend import backend as triton_backend

    geometry = Geometry(stride, padding, dilation, groups)
    y, gain, *winner = triton_backend.conv2d_forward(
        x, weight, bias, geometry, Neuron.unpack(neuron), with_derivatives, backend, pool, fuse_pool
    )
    gain = x.new_empty(0) if gain is None else gain
    return y, gain, winner[0] if winner and winner[0] is not None else x.new_empty(0, dtype=torch.uint8)


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
    from ttfs_kernels.triton_backend import backend as triton_backend

    geometry = Geometry(stride, padding, dilation, groups)
    properties = Neuron.unpack(neuron)
    kept = x, y, _present(gain, properties), winner if pool > 1 else None
    grads = triton_backend.conv2d_backward(grad, *kept, weight, geometry, properties, needs, backend, pool)
    return _three(grads, grad)


@fake("per_pass_conv2d_backward")
def _(grad, x, y, gain, winner, weight, stride, padding, dilation, groups, pool, neuron, needs, backend):
    return (
        new_channels_last(grad, *x.shape) if needs[0] else grad.new_empty(0),
        new_channels_last(grad, *weight.shape) if needs[1] else grad.new_empty(0),
        new_bias_gradient(grad, weight) if needs[2] else grad.new_empty(0),
    )


def _present(gain: Tensor, neuron: Neuron) -> Tensor | None:
    return gain if neuron.has_slope else None


def _three(grads: tuple[Tensor | None, Tensor | None, Tensor | None], like: Tensor) -> Three:
    grad_x, grad_weight, grad_bias = (like.new_empty(0) if grad is None else grad for grad in grads)
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
