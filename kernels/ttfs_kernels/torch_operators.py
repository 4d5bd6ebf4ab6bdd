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


@operator("dft_linear", formula=True)
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    neuron: Sequence[float],
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    operands = x, weight, bias, skip, skip_weight
    return _kept(x, *torch_backend.linear_forward(*operands, Neuron.unpack(neuron), with_derivatives))


@fake("dft_linear")
def _(x, weight, bias, skip, skip_weight, neuron, with_derivatives):
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
    skip: Tensor | None,
    skip_weight: Tensor | None,
    neuron: Sequence[float],
    needs: Sequence[bool],
) -> Five:
    kept = x, saved, weight, skip, skip_weight
    return _gradients(grad, torch_backend.linear_backward(grad, *kept, Neuron.unpack(neuron), needs))


@fake("dft_linear_backward")
def _(grad, x, saved, weight, skip, skip_weight, neuron, needs):
    return fake_gradients(grad, needs, (grad.shape[0], weight.shape[1]), weight.shape)


@operator("dft_conv2d", formula=True)
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
    neuron: Sequence[float],
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(stride, padding, dilation, groups)
    operands = x, weight, bias, skip, skip_weight
    return _kept(x, *torch_backend.conv2d_forward(*operands, geometry, Neuron.unpack(neuron), with_derivatives))


@fake("dft_conv2d")
def _(x, weight, bias, skip, skip_weight, stride, padding, dilation, groups, neuron, with_derivatives):
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
    skip: Tensor | None,
    skip_weight: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    neuron: Sequence[float],
    needs: Sequence[bool],
) -> Five:
    geometry = Geometry(stride, padding, dilation, groups)
    kept = x, saved, weight, skip, skip_weight
    return _gradients(grad, torch_backend.conv2d_backward(grad, *kept, geometry, Neuron.unpack(neuron), needs))


@fake("dft_conv2d_backward")
def _(grad, x, saved, weight, skip, skip_weight, stride, padding, dilation, groups, neuron, needs):
    return fake_gradients(grad, needs, (grad.shape[0], *x.shape[1:]), weight.shape)


def _kept(x: Tensor, y: Tensor, stacked: Tensor | None, derivatives: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return y, or_empty(stacked, x), or_empty(derivatives, x)


def _gradients(grad: Tensor, found: Sequence[Tensor | None]) -> Five:
    grad_x, grad_weight, grad_bias, grad_skip, grad_skip_weight = (or_empty(gradient, grad) for gradient in found)
    return grad_x, grad_weight, grad_bias, grad_skip, grad_skip_weight


# σ = 0 needs its input and its output; σ > 0 the stacked pair that the forward pass made.


def _save(ctx, inputs, output) -> None:
    operands, options = inputs[:OPERANDS], inputs[OPERANDS:-1]
    x, weight, _, skip, skip_weight = operands
    y, stacked, derivatives = output
    ctx.mark_non_differentiable(stacked, derivatives)
    ctx.set_materialize_grads(False)
    kept = (stacked, derivatives) if Neuron.unpack(options[-1]).has_slope else (x, y)
    ctx.save_for_backward(*kept, weight, skip, skip_weight)
    ctx.options = tuple(options)
    ctx.last_options = ()
    ctx.operand_dtypes = [None if operand is None else operand.dtype for operand in operands]
    ctx.other_inputs = len(inputs) - OPERANDS


def _formula(backward_operator):
    return lambda ctx, grad, *_: differentiate(ctx, backward_operator, grad)


register_autograd("dft_linear", _formula(torch.ops.ttfs.dft_linear_backward.default), _save)
register_autograd("dft_conv2d", _formula(torch.ops.ttfs.dft_conv2d_backward.default), _save)
register_autocast("dft_linear", "dft_conv2d")


def linear_formula(neuron: Neuron, with_derivatives: bool) -> Formula:
    """Both passes of `dft_linear`, without the operator."""
    return _formula_of("linear", (), neuron, with_derivatives)


def conv2d_formula(geometry: Geometry, neuron: Neuron, with_derivatives: bool) -> Formula:
    """As `linear_formula`, for `dft_conv2d`."""
    return _formula_of("conv2d", (geometry,), neuron, with_derivatives)


def _formula_of(kind: str, geometry: tuple[Geometry, ...], neuron: Neuron, with_derivatives: bool) -> Formula:
    run_forward, run_backward = (getattr(torch_backend, f"{kind}_{which}") for which in ("forward", "backward"))
    backward_operator = getattr(torch.ops.ttfs, f"dft_{kind}_backward").default
    numbers = [value for each in geometry for value in each]

    @below
    def forward(x, weight, bias, skip=None, skip_weight=None):
        y, *pair = run_forward(x, weight, bias, skip, skip_weight, *geometry, neuron, with_derivatives)
        return y, (*(pair if neuron.has_slope else (x, y)), weight, skip, skip_weight)

    @below
    def backward(needs, grad, *kept):
        return run_backward(grad, *kept, *geometry, neuron, needs)

    def operator(needs, grad, *kept):
        return backward_operator(grad, *kept, *numbers, neuron.pack(), list(needs))

    return Formula(forward, backward, operator)
