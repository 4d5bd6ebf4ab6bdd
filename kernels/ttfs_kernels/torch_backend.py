"""The operators in PyTorch: one stacked contraction a pass.

A = Σ w·x and W = Σ w·σ[x > 0] share every weight, so activations and mask are stacked along the batch and contracted
in one call: weights are read (and, on CPU, reordered) once. The buffer of A and W becomes the two local derivatives,
and the backward pass multiplies both by the upstream gradient in one go.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import fused
from ttfs_kernels.contraction import Geometry, convolve, gradient_of_input, gradient_of_weight
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import fire_, vanishing

aten = torch.ops.aten
# Activations and what the backward pass needs of it, stacked input and stacked derivatives.
Spikes = tuple[Tensor, Tensor | None, Tensor | None]
# Of x, weight, bias, skip and skip_weight.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def conv2d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    geometry: Geometry,
    neuron: Neuron,
    with_derivatives: bool,
) -> Spikes:
    """(activations, stacked input, stacked derivatives); the last two are None where nothing needs them."""
    if not neuron.has_slope:
        x = x.contiguous(memory_format=torch.channels_last)
        potentials = convolve(x, weight, _like(x, bias), geometry)
        return _clamp_(potentials, skip, skip_weight), None, None
    stacked = stack_mask(x, neuron)
    potentials = convolve(stacked, weight, None, geometry)
    pair, channels, rows, columns = potentials.shape
    flat = _rows(potentials).view(2, -1, channels)
    delayed = None if skip is None else _rows(skip)
    activations, derivatives = _fire(flat, bias, neuron, with_derivatives, delayed, skip_weight)
    activations = like_rows(activations, (pair // 2, channels, rows, columns))
    if not with_derivatives:
        return activations, None, None
    return activations, stacked, like_rows(derivatives, potentials.shape)


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    saved: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    geometry: Geometry,
    neuron: Neuron,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients of x, weight, bias, skip and skip_weight; None where not needed.

    `x` and `saved` are the stacked input and derivatives, or for σ = 0 the input and the activations.
    """
    needs_x, needs_weight, needs_bias, *needs_skip = needs
    grad_x = grad_weight = None
    if not neuron.has_slope:
        x = x.contiguous(memory_format=torch.channels_last)
        h, grad_bias = _inside(grad, saved, needs_bias)
        h_values = h
    else:
        h, grad_bias = _scale(grad, saved, needs_bias)
        h_values = _first_half(h)
    if needs_x:
        # With a surrogate, both halves in one contraction: the gradients of activations and of the mask.
        by_both = neuron.has_surrogate
        grad_x = gradient_of_input(h if by_both else h_values, x if by_both else x[: len(grad)], weight, geometry)
        grad_x = at_inputs(grad_x, x, neuron)
    if needs_weight:
        grad_weight = gradient_of_weight(h, x, weight, geometry)
    return grad_x, grad_weight, grad_bias, *_skip_gradients(h, skip, skip_weight, neuron, needs_skip)


def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    neuron: Neuron,
    with_derivatives: bool,
) -> Spikes:
    """As `conv2d_forward`, for x [rows, in_features]."""
    if not neuron.has_slope:
        return _clamp_(F.linear(x, weight, _like(x, bias)), skip, skip_weight), None, None
    stacked = stack_mask(x, neuron)
    flat = F.linear(stacked, weight).view(2, x.shape[0], weight.shape[0])
    activations, derivatives = _fire(flat, bias, neuron, with_derivatives, skip, skip_weight)
    return (activations, stacked, derivatives.flatten(0, 1)) if with_derivatives else (activations, None, None)


def linear_backward(
    grad: Tensor,
    x: Tensor,
    saved: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    neuron: Neuron,
    needs: Sequence[bool],
) -> Gradients:
    """As `conv2d_backward`, for grad [rows, out_features]."""
    needs_x, needs_weight, needs_bias, *needs_skip = needs
    grad_x = grad_weight = None
    if not neuron.has_slope:
        h, grad_bias = _inside(grad, saved, needs_bias)
        h_values = h
    else:
        h, grad_bias = _scale(grad, saved, needs_bias)
        h_values = _first_half(h)
    if needs_x:
        grad_x = at_inputs((h if neuron.has_surrogate else h_values) @ weight, x, neuron)
    if needs_weight:
        grad_weight = h.t() @ x
    return grad_x, grad_weight, grad_bias, *_skip_gradients(h, skip, skip_weight, neuron, needs_skip)


def _clamp_(potentials: Tensor, skip: Tensor | None, skip_weight: Tensor | None) -> Tensor:
    """The rule at σ = 0: potentials and those of delayed spikes, each by a synapse of its own, clamped to [0, 1].

    `potentials` are overwritten.
    """
    if skip is None or skip_weight is None:
        return potentials.clamp_(0, 1)
    if fused.is_fused(potentials):
        activations = fused.compiled(fused.clamping)(_rows(potentials), _rows(skip), skip_weight)
        return like_rows(activations, potentials.shape)
    return potentials.addcmul_(skip, _channels(skip_weight, skip)).clamp_(0, 1)


def _skip_gradients(
    h: Tensor, skip: Tensor | None, skip_weight: Tensor | None, neuron: Neuron, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of delayed spikes and their weights, as those of `x` and `weight` with one synapse a neuron.

    `h` is [g·∂a/∂A ; g·∂a/∂W], or for σ = 0 g·∂a/∂A.
    """
    if skip is None or skip_weight is None:
        return None, None
    needs_skip, needs_weight = needs
    grad_skip = grad_weight = None
    h = h.contiguous(memory_format=torch.channels_last) if h.dim() == 4 else h
    if needs_skip and needs_weight and fused.is_fused(h):
        rows = _rows(h).view(2 if neuron.has_slope else 1, -1, h.shape[1])
        skipping = fused.compiled(fused.skipping, fused.of_any_persistence(neuron))
        grad_skip, grad_weight = skipping(rows, _rows(skip), skip_weight, fused.persistence(neuron, h))
        return like_rows(grad_skip, skip.shape), grad_weight
    stacked = stack_mask(skip, neuron) if neuron.has_slope else skip
    if needs_skip:
        by_both = h if neuron.has_surrogate or not neuron.has_slope else _first_half(h)
        grad_skip = at_inputs(by_both * _channels(skip_weight, skip), stacked, neuron)
    if needs_weight:
        grad_weight = _sum(h * stacked)
    return grad_skip, grad_weight


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """One value a channel or neuron, in the dtype of [N, C, ...] and beside it."""
    return values.to(like.dtype).view(-1, *(1,) * (like.dim() - 2))


def _inside(grad: Tensor, activations: Tensor, with_sum: bool) -> tuple[Tensor, Tensor | None]:
    """`grad` where 0 < a < 1, else 0, and if wanted its sum for each channel.

    NaN where a is NaN, which hardtanh_backward takes for inside.
    """
    if with_sum and fused.is_fused(activations):
        h, total = fused.compiled(fused.crossing)(_rows(grad), _rows(activations))
        return like_rows(h, activations.shape), total
    h = aten.hardtanh_backward(grad, activations, 0, 1).add_(activations, alpha=0)
    return h, _sum(h) if with_sum else None


def stack_mask(x: Tensor, neuron: Neuron) -> Tensor:
    """[x ; σ·[x > 0]] along the first dimension; maps come out channels-last whatever the input's layout."""
    if fused.is_fused(x):
        stacked = fused.compiled(fused.masking)(_rows(x).flatten(), fused.persistence(neuron, x))
        return like_rows(stacked, (2 * x.shape[0], *x.shape[1:]))
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    stacked = torch.empty(2 * x.shape[0], *x.shape[1:], dtype=x.dtype, device=x.device, memory_format=layout)
    values, mask = stacked.tensor_split(2)
    values.copy_(x)
    torch.gt(x, 0, out=mask)  # into floats: comparisons that write booleans are not vectorised on CPU
    if neuron.psp_persistence != 1.0:
        mask.mul_(neuron.psp_persistence)
    return stacked


def _fire(
    potentials: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    with_derivatives: bool,
    skip: Tensor | None,
    skip_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Activations [neurons, channels] and derivatives [2, neurons, channels] from as many potentials, overwritten.

    Without derivatives, the second tensor holds nothing of use.
    """
    if fused.is_fused(potentials):
        fire = fused.compiled(fused.firing, fused.of_any_persistence(neuron), with_derivatives)
        activations, derivatives = fire(potentials, bias, skip, skip_weight, fused.persistence(neuron, potentials))
        return activations, potentials if derivatives is None else derivatives
    return fire_(potentials, bias, neuron, with_derivatives, skip, skip_weight), potentials


def _first_half(stacked: Tensor) -> Tensor:
    return stacked[: stacked.shape[0] // 2]


def _scale(grad: Tensor, derivatives: Tensor, with_sum: bool) -> tuple[Tensor, Tensor | None]:
    """[g·∂a/∂A ; g·∂a/∂W] in the layout of the derivatives, and if wanted the first half's sum for each channel."""
    if with_sum and fused.is_fused(derivatives):
        pair = _rows(derivatives).view(2, -1, derivatives.shape[1])
        scaled, total = fused.compiled(fused.scaling)(_rows(grad), pair)
        return like_rows(scaled, derivatives.shape), total
    scaled = torch.empty_like(derivatives)
    pairs = (2, grad.shape[0])
    torch.mul(derivatives.unflatten(0, pairs), grad, out=scaled.unflatten(0, pairs))
    return scaled, _sum(_first_half(scaled)) if with_sum else None


def at_inputs(grad_x: Tensor, x: Tensor, neuron: Neuron) -> Tensor:
    """The gradient of the input from what the contraction returned, in place; `x` is stacked if σ > 0.

    Zero where x is silent: the mask [x > 0] is constant there. With a surrogate, `grad_x` is stacked, and the gradient
    of the mask counts where a spike could appear or vanish. σ = 0 has no mask, like any ANN.
    """
    if not neuron.has_slope:
        return grad_x
    values = _first_half(x)
    if fused.is_fused(values):
        grad = _rows(grad_x).view(2, -1) if neuron.has_surrogate else _rows(grad_x).flatten()
        enter = fused.compiled(fused.entering, fused.of_any_persistence(neuron))
        return like_rows(enter(grad, _rows(values).flatten(), fused.persistence(neuron, grad)), values.shape)
    if not neuron.has_surrogate:
        return aten.threshold_backward.grad_input(grad_x, values, 0, grad_input=grad_x)
    by_activation, by_mask = grad_x.tensor_split(2)
    by_mask.mul_(vanishing(values, neuron))
    if neuron.psp_persistence != 1.0:
        by_mask.mul_(neuron.psp_persistence)
    result = aten.threshold_backward(by_activation, values, 0)
    return result.add_(by_mask)


def _sum(h: Tensor) -> Tensor:
    """Sum for each channel or neuron, in at least float32."""
    return h.sum((0, 2, 3) if h.dim() == 4 else 0, dtype=torch.promote_types(h.dtype, torch.float32))


def _rows(maps: Tensor) -> Tensor:
    """[N, C, P, Q] → [N·P·Q, C], a view of channels-last maps; [N, C] as it is."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]) if maps.dim() == 4 else maps.contiguous()


def like_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `_rows`, for rows in any shape: channels-last maps, or a matrix."""
    if len(shape) == 2:
        return rows.view(*shape)
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _like(x: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)
