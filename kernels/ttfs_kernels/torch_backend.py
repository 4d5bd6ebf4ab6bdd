"""The PyTorch backend: one stacked contraction per pass.

A = Σ w·x and W = Σ w·σ[x > 0] share every weight, so activations and mask are stacked along the batch and contracted
in one call: weights are read (and, on a CPU, reordered) once. The two local derivatives overwrite A and W in their
buffer, and the backward pass multiplies both by the upstream gradient in one operation.

The passes over neurons between the contractions are eager and in place, or the formulas of `fused` for a compiler.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttfs_kernels import fused
from ttfs_kernels.autograd import Kept, Operands
from ttfs_kernels.contraction import Geometry, contract, gradient_of_input, gradient_of_weight
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import fire_, vanishing

aten = torch.ops.aten


@dataclass(frozen=True)
class TorchLayer:
    """A layer's passes in PyTorch. Keeps the stacked input and derivatives, at σ = 0 input and output, for backward."""

    geometry: Geometry | None
    neuron: Neuron

    def forward(self, operands: Operands, with_derivatives: bool) -> tuple[tuple[Tensor], Kept]:
        _, weight, _, skip, skip_weight = operands
        y, *kept = self._fire(operands, with_derivatives) if self.neuron.has_slope else self._clamp(operands)
        return (y,), (*kept, weight, skip, skip_weight)

    def _fire(self, operands: Operands, with_derivatives: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(activations, stacked input, stacked derivatives or None) at σ > 0."""
        x, weight, bias, skip, skip_weight = operands
        stacked = stack_mask(x, self.neuron)
        maps = contract(stacked, weight, None, self.geometry)
        potentials = to_rows(maps).view(2, -1, maps.shape[1])
        delayed = None if skip is None else to_rows(skip)
        if fused.is_formula(potentials):
            settings = fused.of_any_persistence(self.neuron), with_derivatives
            tensors = potentials, bias, delayed, skip_weight, fused.persistence(self.neuron, x)
            activations, derivatives = fused.run((fused.firing, *settings), *tensors)
        else:
            sigma = fused.factor(self.neuron, x)
            activations = fire_(potentials, bias, self.neuron, with_derivatives, delayed, skip_weight, sigma)
            derivatives = potentials
        activations = like_rows(activations, (len(x), *maps.shape[1:]))
        return activations, stacked, like_rows(derivatives, maps.shape) if with_derivatives else None

    def _clamp(self, operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
        """(activations, input, activations) at σ = 0: potentials clamped to [0, 1]."""
        x, weight, bias, skip, skip_weight = operands
        inputs = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        potentials = contract(inputs, weight, None if bias is None else bias.to(x.dtype), self.geometry)
        if skip is None or skip_weight is None:
            y = potentials.clamp_(0, 1)
        elif fused.is_formula(potentials):
            y = fused.run((fused.clamping,), to_rows(potentials), to_rows(skip), skip_weight)
            y = like_rows(y, potentials.shape)
        else:
            beside = (1,) * (skip.dim() - 2)
            y = potentials.addcmul_(skip, skip_weight.to(skip.dtype).view(-1, *beside)).clamp_(0, 1)
        return y, x, y

    def backward(self, grad: Tensor, kept: Kept, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        x, saved, weight, skip, skip_weight = kept
        assert x is not None
        assert saved is not None
        assert weight is not None
        needs_x, needs_weight, needs_bias, *_ = needs
        if self.neuron.has_slope:
            pair = to_rows(saved).view(2, -1, saved.shape[1])
            h, grad_bias = fused.run((fused.scaling,), pair, to_rows(grad))
            h = like_rows(h, saved.shape)
        else:
            x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            h, grad_bias = _inside(grad, saved)
        found = contract_gradients(h, x, weight, self.neuron, self.geometry, (needs_x, needs_weight))
        return *found, grad_bias if needs_bias else None, *skip_gradients(h, skip, skip_weight, self.neuron)


def contract_gradients(
    h: Tensor, x: Tensor, weight: Tensor, neuron: Neuron, geometry: Geometry | None, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and the weight, None where not needed; h and x are stacked if σ > 0."""
    grad_x = grad_weight = None
    if needs[0]:
        # With a surrogate, one contraction gives both gradients: those of the activations and of the mask.
        both = len(h) // 2 if neuron.has_slope and not neuron.has_surrogate else len(h)
        grad_x = at_inputs(gradient_of_input(h[:both], x[:both], weight, geometry), x, neuron)
    if needs[1]:
        grad_weight = gradient_of_weight(h, x, weight, geometry)
    return grad_x, grad_weight


def contract_shared_gradient(
    h: Tensor, x: Tensor, weight: Tensor, neuron: Neuron, geometry: Geometry | None, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """`contract_gradients` where A and W have the same gradient h, which is not stacked; x is [x ; [x > 0]]."""
    (values, mask), sigma = x.tensor_split(2), fused.persistence(neuron, x)
    grad_x = grad_weight = None
    if needs[0]:
        grad = gradient_of_input(h, values, weight, geometry)
        formula = fused.entering_shared, fused.of_any_persistence(neuron)
        grad_x = like_rows(fused.run(formula, to_rows(grad), to_rows(values), sigma), grad.shape)
    if needs[1]:
        grad_weight = gradient_of_weight(h, torch.addcmul(values, mask, sigma), weight, geometry)
    return grad_x, grad_weight


def skip_gradients(
    h: Tensor, skip: Tensor | None, skip_weight: Tensor | None, neuron: Neuron
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of delayed spikes and of their weights: like those of `x` and `weight`, with one synapse per neuron.

    `h` is [g·∂a/∂A ; g·∂a/∂W], at σ = 0 g·∂a/∂A, where g is the gradient of the activations.
    """
    if skip is None or skip_weight is None:
        return None, None
    rows = to_rows(h).view(2 if neuron.has_slope else 1, -1, h.shape[1])
    formula = fused.skipping, fused.of_any_persistence(neuron)
    grad_skip, grad_weight = fused.run(formula, rows, to_rows(skip), skip_weight, fused.persistence(neuron, h))
    return like_rows(grad_skip, skip.shape), grad_weight


def _inside(grad: Tensor, activations: Tensor) -> tuple[Tensor, Tensor]:
    """(h, sum of h for each channel, in at least float32): h is `grad` where 0 < a < 1, else 0.

    h is NaN where a is NaN: hardtanh_backward alone would return `grad` there.
    """
    if fused.is_formula(activations):
        h, total = fused.run((fused.crossing,), to_rows(grad), to_rows(activations))
        return like_rows(h, activations.shape), total
    h = aten.hardtanh_backward(grad, activations, 0, 1).add_(activations, alpha=0)
    return h, h.sum((0, 2, 3) if h.dim() == 4 else 0, dtype=torch.promote_types(h.dtype, torch.float32))


def stack_mask(x: Tensor, neuron: Neuron) -> Tensor:
    """x stacked with its mask along the first dimension: [x ; σ·[x > 0]]; maps come out channels-last."""
    if fused.is_formula(x):
        stacked = fused.run((fused.masking,), to_rows(x).flatten(), fused.persistence(neuron, x))
        return like_rows(stacked, (2 * len(x), *x.shape[1:]))
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    stacked = torch.empty(2 * len(x), *x.shape[1:], dtype=x.dtype, device=x.device, memory_format=layout)
    values, mask = stacked.tensor_split(2)
    values.copy_(x)
    torch.gt(x, 0, out=mask)  # into floats: comparisons that write booleans are not vectorised on CPU
    if neuron.psp_persistence != 1.0:
        mask.mul_(fused.factor(neuron, mask))
    return stacked


def at_inputs(grad_x: Tensor, x: Tensor, neuron: Neuron) -> Tensor:
    """The gradient of a layer's input from the contraction's result `grad_x`, which it may overwrite.

    If σ > 0, `x` is stacked, and the gradient is zero where x is silent: a small change leaves x silent. With a
    surrogate, `grad_x` is stacked, and the gradient of the mask is added where a spike could appear or vanish.
    """
    if not neuron.has_slope:
        return grad_x
    values = x[: len(x) // 2]
    if fused.is_formula(values):
        grad = to_rows(grad_x).view(2, -1) if neuron.has_surrogate else to_rows(grad_x).flatten()
        formula, sigma = (fused.entering, fused.of_any_persistence(neuron)), fused.persistence(neuron, x)
        return like_rows(fused.run(formula, grad, to_rows(values).flatten(), sigma), values.shape)
    if not neuron.has_surrogate:
        return aten.threshold_backward.grad_input(grad_x, values, 0, grad_input=grad_x)
    by_activation, by_mask = grad_x.tensor_split(2)
    by_mask.mul_(vanishing(values, neuron))
    if neuron.psp_persistence != 1.0:
        by_mask.mul_(fused.factor(neuron, by_mask))
    result = aten.threshold_backward(by_activation, values, 0)
    return result.add_(by_mask)


def to_rows(maps: Tensor) -> Tensor:
    """[N, C, P, Q] → [N·P·Q, C], a view of channels-last maps; [N, C] as it is."""
    return (maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]) if maps.dim() == 4 else maps).contiguous()


def like_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_rows`, for rows in any shape: channels-last maps, or a matrix."""
    if len(shape) == 2:
        return rows.view(*shape)
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
