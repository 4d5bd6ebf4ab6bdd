"""Registered operators of the PyTorch backend.

Each returns (activations, stacked input, stacked derivatives); the last two feed the backward pass and are empty where
`with_derivatives` is false or σ = 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttfs_kernels import torch_backend
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.direct import Formula, below
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


@operator("dft_linear", formula=True)
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neuron: Sequence[float],
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch_backend.linear_forward(x, weight, bias, Neuron.unpack(neuron), with_derivatives)


@fake("dft_linear")
def _(x, weight, bias, neuron, with_derivatives):
    rows, outputs = x.shape[0], weight.shape[0]
    y = x.new_empty(rows, outputs)
    if not (with_derivatives and Neuron.unpack(neuron).has_slope):
        return y, x.new_empty(0), x.new_empty(0)
    return y, x.new_empty(2 * rows, x.shape[1]), x.new_empty(2 * rows, outputs)


@operator("dft_linear_backward")
def _linear_backward(
    grad: Tensor,
    x: Tensor,
    saved: Tensor,
    weight: Tensor,
    neuron: Sequence[float],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return torch_backend.linear_backward(grad, x, saved, weight, Neuron.unpack(neuron), needs)


@fake("dft_linear_backward")
def _(grad, x, saved, weight, neuron, needs):
    return (
        grad.new_empty(grad.shape[0], weight.shape[1]) if needs[0] else grad.new_empty(0),
        grad.new_empty(weight.shape) if needs[1] else grad.new_empty(0),
        new_bias_gradient(grad, weight) if needs[2] else grad.new_empty(0),
    )


@operator("dft_conv2d", formula=True)
def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    neuron: Sequence[float],
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(stride, padding, dilation, groups)
    return torch_backend.conv2d_forward(x, weight, bias, geometry, Neuron.unpack(neuron), with_derivatives)


@fake("dft_conv2d")
def _(x, weight, bias, stride, padding, dilation, groups, neuron, with_derivatives):
    rows, columns = Geometry(stride, padding, dilation, groups).map_size(x.shape[2:], weight.shape[2:])
    batch, channels = x.shape[0], weight.shape[0]
    y = new_channels_last(x, batch, channels, rows, columns)
    if not (with_derivatives and Neuron.unpack(neuron).has_slope):
        return y, x.new_empty(0), x.new_empty(0)
    stacked = new_channels_last(x, 2 * batch, *x.shape[1:])
    return y, stacked, new_channels_last(x, 2 * batch, channels, rows, columns)


@operator("dft_conv2d_backward")
def _conv2d_backward(
    grad: Tensor,
    x: Tensor,
    saved: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    neuron: Sequence[float],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(stride, padding, dilation, groups)
    return torch_backend.conv2d_backward(grad, x, saved, weight, geometry, Neuron.unpack(neuron), needs)


@fake("dft_conv2d_backward")
def _(grad, x, saved, weight, stride, padding, dilation, groups, neuron, needs):
    return (
        new_channels_last(grad, grad.shape[0], *x.shape[1:]) if needs[0] else grad.new_empty(0),
        new_channels_last(grad, *weight.shape) if needs[1] else grad.new_empty(0),
        new_bias_gradient(grad, weight) if needs[2] else grad.new_empty(0),
    )


# σ = 0 needs its input and its output; σ > 0 the stacked pair that the forward pass made.


def _save(ctx, inputs, output) -> None:
    x, weight, bias, *options, _ = inputs
    y, stacked, derivatives = output
    ctx.mark_non_differentiable(stacked, derivatives)
    ctx.set_materialize_grads(False)
    kept = (stacked, derivatives) if Neuron.unpack(options[-1]).has_slope else (x, y)
    ctx.save_for_backward(*kept, weight)
    ctx.options = tuple(options)
    ctx.last_options = ()
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.other_inputs = len(inputs) - 3


def _formula(backward_operator):
    return lambda ctx, grad, *_: differentiate(ctx, backward_operator, grad)


register_autograd("dft_linear", _formula(torch.ops.ttfs.dft_linear_backward.default), _save)
register_autograd("dft_conv2d", _formula(torch.ops.ttfs.dft_conv2d_backward.default), _save)
register_autocast("dft_linear", "dft_conv2d")


def linear_formula(neuron: Neuron, with_derivatives: bool) -> Formula:
    """Both passes of `dft_linear`, without the operator."""

    @below
    def forward(x, weight, bias):
        y, *pair = torch_backend.linear_forward(x, weight, bias, neuron, with_derivatives)
        return y, (*(pair if neuron.has_slope else (x, y)), weight)

    @below
    def backward(needs, grad, x, saved, weight):
        return torch_backend.linear_backward(grad, x, saved, weight, neuron, needs)

    def operator(needs, grad, *kept):
        return torch.ops.ttfs.dft_linear_backward.default(grad, *kept, neuron.pack(), list(needs))

    return Formula(forward, backward, operator)


def conv2d_formula(geometry: Geometry, neuron: Neuron, with_derivatives: bool) -> Formula:
    """As `linear_formula`, for `dft_conv2d`."""

    @below
    def forward(x, weight, bias):
        y, *pair = torch_backend.conv2d_forward(x, weight, bias, geometry, neuron, with_derivatives)
        return y, (*(pair if neuron.has_slope else (x, y)), weight)

    @below
    def backward(needs, grad, x, saved, weight):
        return torch_backend.conv2d_backward(grad, x, saved, weight, geometry, neuron, needs)

    def operator(needs, grad, *kept):
        return torch.ops.ttfs.dft_conv2d_backward.default(grad, *kept, *geometry, neuron.pack(), list(needs))

    return Formula(forward, backward, operator)
