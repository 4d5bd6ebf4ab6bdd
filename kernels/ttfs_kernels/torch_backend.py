"""The operators in PyTorch: one stacked contraction a pass.

A = Σ w·x and W = Σ w·σ[x > 0] share every weight, so activations and mask are stacked along the batch and contracted
in one call: weights are read (and, on CPU, reordered) once. The buffer of A and W becomes the two local derivatives,
and the backward pass multiplies both by the upstream gradient in one go.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels.rule import fire_

aten = torch.ops.aten
CHANNELS_LAST = torch.channels_last


def stack_mask(x: Tensor, psp_persistence: float) -> Tensor:
    """[x ; σ·[x > 0]] along the first dimension; 4-D tensors come out channels-last whatever the input's layout."""
    shape = (2 * x.shape[0], *x.shape[1:])
    layout = CHANNELS_LAST if x.dim() == 4 else torch.contiguous_format
    stacked = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    values, mask = stacked.tensor_split(2)
    values.copy_(x)
    torch.gt(x, 0, out=mask)
    if psp_persistence != 1.0:
        mask.mul_(psp_persistence)
    return stacked


def conv2d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    psp_persistence: float,
    derivative_clip: float,
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(activations, stacked input, stacked derivatives); the last two are empty where nothing needs them."""
    if psp_persistence == 0.0:
        x = x.contiguous(memory_format=CHANNELS_LAST)
        bias = bias if bias is None else bias.to(x.dtype)
        A = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return A.contiguous(memory_format=CHANNELS_LAST).clamp_(0, 1), x.new_empty(0), x.new_empty(0)
    stacked = stack_mask(x, psp_persistence)
    potentials = F.conv2d(stacked, weight, None, stride, padding, dilation, groups)
    potentials = potentials.contiguous(memory_format=CHANNELS_LAST)
    count, channels, height, width = potentials.shape
    rows = count // 2 * height * width
    flat = potentials.permute(0, 2, 3, 1).view(2, rows, channels)
    activations = fire_(flat, bias, derivative_clip, with_derivatives)
    activations = activations.view(count // 2, height, width, channels).permute(0, 3, 1, 2)
    if not with_derivatives:
        return activations, x.new_empty(0), x.new_empty(0)
    return activations, stacked, potentials


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    saved: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    psp_persistence: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty where not needed.

    `x` and `saved` are the stacked input and derivatives, or for σ = 0 the input and the activations.
    """
    needs_x, needs_weight, needs_bias = needs

    def contract(h: Tensor, inputs: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        return aten.convolution_backward(
            h, inputs, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
        )

    if psp_persistence == 0.0:
        h = aten.hardtanh_backward(grad, saved, 0, 1)
        x = x.contiguous(memory_format=CHANNELS_LAST)
        grad_x, grad_weight, _ = contract(h, x, [needs_x, needs_weight, False])
    else:
        h, grad_x, grad_weight = _scale(grad, saved), None, None
        values, h_values = x.tensor_split(2)[0], h.tensor_split(2)[0]
        if needs_x:
            grad_x = contract(h_values, values, [True, False, False])[0]
            aten.threshold_backward.grad_input(grad_x, values, 0, grad_input=grad_x)
        if needs_weight:
            grad_weight = contract(h, x, [False, True, False])[1]
        h = h_values
    grad_bias = _sum(h, (0, 2, 3)) if needs_bias else grad.new_empty(0)
    return (
        grad_x.contiguous(memory_format=CHANNELS_LAST) if grad_x is not None else grad.new_empty(0),
        grad_weight if grad_weight is not None else grad.new_empty(0),
        grad_bias,
    )


def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    psp_persistence: float,
    derivative_clip: float,
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `conv2d_forward`, for x [rows, in_features]."""
    if psp_persistence == 0.0:
        return (
            F.linear(x, weight, bias if bias is None else bias.to(x.dtype)).clamp_(0, 1),
            x.new_empty(0),
            x.new_empty(0),
        )
    stacked = stack_mask(x, psp_persistence)
    potentials = F.linear(stacked, weight)
    flat = potentials.view(2, x.shape[0], weight.shape[0])
    activations = fire_(flat, bias, derivative_clip, with_derivatives)
    if not with_derivatives:
        return activations, x.new_empty(0), x.new_empty(0)
    return activations, stacked, potentials


def linear_backward(
    grad: Tensor, x: Tensor, saved: Tensor, weight: Tensor, psp_persistence: float, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `conv2d_backward`, for grad [rows, out_features]."""
    needs_x, needs_weight, needs_bias = needs
    if psp_persistence == 0.0:
        h = h_values = aten.hardtanh_backward(grad, saved, 0, 1)
    else:
        h = _scale(grad, saved)
        h_values = h.tensor_split(2)[0]
    grad_x = grad.new_empty(0)
    if needs_x:
        grad_x = h_values @ weight
        if psp_persistence != 0.0:
            values = x.tensor_split(2)[0]
            aten.threshold_backward.grad_input(grad_x, values, 0, grad_input=grad_x)
    grad_weight = h.t() @ x if needs_weight else grad.new_empty(0)
    grad_bias = _sum(h_values, (0,)) if needs_bias else grad.new_empty(0)
    return grad_x, grad_weight, grad_bias


def _scale(grad: Tensor, derivatives: Tensor) -> Tensor:
    """[g·∂a/∂A ; g·∂a/∂W], in the layout of the derivatives."""
    scaled = torch.empty_like(derivatives)
    pairs = (2, grad.shape[0])
    torch.mul(derivatives.unflatten(0, pairs), grad, out=scaled.unflatten(0, pairs))
    return scaled


def _sum(h: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    """Sum in at least float32."""
    return h.sum(dimensions, dtype=torch.promote_types(h.dtype, torch.float32))
