"""The PyTorch backend: the passes of a layer, one stacked contraction each.

A = Σ w·x and W = Σ w·σ[x > 0] share every weight, so activations and mask are stacked along the batch and contracted
in one call: weights are read (and, on a CPU, reordered) once. `rule` has the passes over neurons between them.

Operands are x, weight, γ, initial potential or β, skip and skip weight; without batch norm, γ is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels import rule
from ttfs_kernels.checks import Geometry
from ttfs_kernels.contraction import contract, gradient_of_input, gradient_of_weight
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import aten, is_formula, precise_dtype, run, sum_rows, vanishing

Tensors = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class ClampedLayer:
    """A layer at σ = 0: a contraction, PyTorch's own batch norm (with `epsilon`), and a clamp to [0, 1]."""

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float | None

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor, ...], Tensors]:
        x, weight, gamma, bias, skip, skip_weight = operands
        if self.epsilon is None:
            y = contract(_channels_last(x), weight, None if bias is None else bias.to(x.dtype), self.geometry)
            statistics, kept = (), ()
        else:
            maps = contract(_channels_last(x), weight, None, self.geometry)
            gamma, bias = (each.to(precise_dtype(maps.dtype)) for each in (gamma, bias))
            y, mean, inverse = torch.native_batch_norm(maps, gamma, bias, None, None, True, 0.0, self.epsilon)
            count = maps.numel() / maps.shape[1]
            unbiased = (inverse.pow(-2) - self.epsilon).clamp_min(0) * (count / (count - 1))
            statistics, kept = (mean, unbiased), (maps, gamma, mean, inverse)
        if skip is not None:
            y.addcmul_(skip, skip_weight.to(skip.dtype).view(-1, *(1,) * (skip.dim() - 2)))
        y.clamp_(0, 1)
        return (y, *statistics), (x, weight, y, skip, skip_weight, *kept)

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        x, weight, y, skip, skip_weight, *others = kept
        grad_gamma = total = None
        if is_formula(y):
            h, total = run((crossing,), to_rows(grad), to_rows(y))
            h = like_rows(h, y.shape)
        else:
            h = rule.inside(grad, y)
            if self.epsilon is None:
                total = h.sum((0, 2, 3) if h.dim() == 4 else 0, dtype=precise_dtype(h.dtype))
        by_skip = skip_gradients(neurons_of(h, 1), skip, skip_weight, self.neuron)
        if self.epsilon is not None:
            maps, gamma, mean, inverse = others
            statistics = None, None, mean, inverse, True, self.epsilon, (True, True, True)
            h, grad_gamma, total = aten.native_batch_norm_backward(h, maps, gamma, *statistics)
            h = _channels_last(h)
        by_operands = contract_gradients(h, _channels_last(x), weight, self.neuron, None, self.geometry, needs)
        return *by_operands, grad_gamma, total if needs[3] else None, *by_skip


def crossing(grad: Tensor, activations: Tensor) -> tuple[Tensor, Tensor]:
    """(h, Σ h over neurons) at σ = 0: h is the gradient where 0 < a < 1, else 0; NaN where a is NaN."""
    precise = precise_dtype(grad.dtype)
    h = rule.inside(grad.to(precise), activations.to(precise))  # in 16 bits, comparisons are not vectorised
    return h.to(grad.dtype), h.sum(0)


@dataclass(frozen=True)
class TorchLayer:
    """A layer at σ > 0. Keeps the stacked input and the derivatives for the backward pass."""

    geometry: Geometry | None
    neuron: Neuron

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor], Tensors]:
        x, weight, _, bias, skip, skip_weight = operands
        sigma = rule.factor(self.neuron, x)
        stacked = stack_mask(x, sigma)
        maps = contract(stacked, weight, None, self.geometry)
        tensors = neurons_of(maps, 2), bias, delayed_of(skip), skip_weight, rule.scalar(sigma, x)
        activations, *derivatives = run((rule.firing, self.neuron, with_derivatives), *tensors)
        kept = like_rows(derivatives[0], maps.shape) if with_derivatives else None
        return (like_rows(activations, (len(x), *maps.shape[1:])),), (stacked, kept, weight, skip, skip_weight)

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        stacked, derivatives, weight, skip, skip_weight = kept
        pair = to_rows(derivatives).view(2, -1, derivatives.shape[1])
        h, grad_bias = run((scaling,), pair, to_rows(grad))
        h, sigma = like_rows(h, derivatives.shape), rule.factor(self.neuron, stacked)
        by_operands = contract_gradients(h, stacked, weight, self.neuron, sigma, self.geometry, needs)
        by_skip = skip_gradients(neurons_of(h, 2), skip, skip_weight, self.neuron)
        return *by_operands, None, grad_bias if needs[3] else None, *by_skip


def scaling(derivatives: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(h, Σ h[0] over neurons): h is the product of derivatives [2, neurons, channels] and gradient."""
    h = derivatives * grad
    return h, h[0].sum(0, dtype=precise_dtype(h.dtype))


@dataclass(frozen=True)
class NormalisedLayer:
    """A layer with batch norm. The backward pass evaluates the rule again instead of keeping derivatives.

    Attributes:
        geometry, neuron: as of the other layers.
        epsilon, group, estimate: of the `Normalisation`.
    """

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float
    group: ProcessGroup | None
    estimate: Tensor

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor, ...], Tensors]:
        x, weight, gamma, beta, skip, skip_weight = operands
        inputs = stack_mask(x, 1.0) if self.neuron.psp_persistence > 0 else x
        maps = contract(inputs, weight, None, self.geometry)
        potentials, estimate = neurons_of(maps, len(maps) // len(x)), self.estimate
        sigma = rule.persistence(self.neuron, x)
        count = torch.full((1,), float(potentials[0, ..., 0].numel()), device=x.device, dtype=sigma.dtype)
        if torch.compiler.is_compiling():
            # In its backward pass, AOTAutograd would recompute from the running mean, which has been updated by then.
            estimate = torch.zeros_like(estimate)
            if self.group is None:
                estimate = rule.summing(potentials, sigma, estimate)[0] / count
        sums = torch.stack(run((rule.summing,), potentials, sigma, estimate))
        if self.group is not None:
            joined = torch.cat([sums.flatten(), count])
            torch.distributed.all_reduce(joined, group=self.group)
            sums, count = joined[:-1].view_as(sums), joined[-1:]
        offset, square = sums / count
        mean, variance = estimate + offset, (square - offset.square()).clamp_min(0)
        inverse = (variance + self.epsilon).rsqrt()
        affine = gamma * inverse, beta - gamma * inverse * mean
        activations = run((rule.normalised_firing,), potentials, sigma, *affine, delayed_of(skip), skip_weight)
        kept = inputs, weight, potentials, gamma, beta, mean, inverse, count, skip, skip_weight
        y = like_rows(activations, (len(x), *maps.shape[1:]))
        return (y, mean, variance * (count / (count - 1))), kept

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        inputs, weight, potentials, gamma, beta, mean, inverse, count, skip, skip_weight = kept
        affine = gamma * inverse, beta - gamma * inverse * mean
        sigma = rule.persistence(self.neuron, inputs)
        others = mean, sigma, *affine, delayed_of(skip), skip_weight
        rows = neurons_of(grad.to(potentials.dtype), 1)[0]
        h, grad_beta, by_scale = run((rule.deriving, self.neuron), potentials, rows, *others)
        grad_gamma = by_scale * inverse
        by_skip = skip_gradients(h.expand_as(potentials), skip, skip_weight, self.neuron)
        sums = torch.stack([grad_beta, grad_gamma])
        if self.group is not None:
            torch.distributed.all_reduce(sums, group=self.group)
        by_mean, by_variance = sums / count
        shared = len(h) < len(potentials)  # A' and W' have the same gradient
        h = run((rule.spreading,), h, potentials, sigma, affine[0], mean, by_mean, by_variance * inverse)
        h = like_rows(h, (len(h) * len(grad), *grad.shape[1:]))
        if not shared:  # h includes σ
            sigma = 1.0 if len(potentials) == 2 else None
        by_operands = contract_gradients(h, inputs, weight, self.neuron, sigma, self.geometry, needs)
        return *by_operands, grad_gamma, grad_beta, *by_skip


def contract_gradients(
    h: Tensor,
    x: Tensor,
    weight: Tensor,
    neuron: Neuron,
    sigma: Any,
    geometry: Geometry | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and the weight, None where not needed.

    With `sigma`, x is stacked, and the mask has `sigma` times the gradient of W; h is [dA ; dW], or what both share.
    """
    grad_x = grad_weight = None
    shared = len(h) < len(x)
    if needs[0]:
        # With a surrogate, one contraction gives both gradients: those of the activations and of the mask.
        both = len(h) if sigma is None or shared or neuron.surrogate_width else len(h) // 2
        grad_x = gradient_of_input(h[:both], x[:both], weight, geometry)
        if sigma is not None:
            grad_x = at_inputs(grad_x, x[: len(x) // 2], neuron, sigma)
    if needs[1]:
        if sigma is not None and shared:
            values, mask = x.tensor_split(2)
            x = torch.addcmul(values, mask, sigma)
        grad_weight = gradient_of_weight(h, x, weight, geometry)
    return grad_x, grad_weight


def skip_gradients(
    h: Tensor, skip: Tensor | None, skip_weight: Tensor | None, neuron: Neuron
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of delayed spikes and of their weights, like those of `x` and `weight`: one synapse reaches a neuron.

    `h` is the pair of g·∂a/∂A and g·∂a/∂W, at σ = 0 g·∂a/∂A alone, where g is the gradient of the activations.
    """
    if skip is None or skip_weight is None:
        return None, None
    formula = skipping, neuron
    grad_skip, grad_weight = run(formula, h, delayed_of(skip), skip_weight, rule.persistence(neuron, h))
    return like_rows(grad_skip, skip.shape), grad_weight


def skipping(neuron: Neuron, h: Tensor, skip: Tensor, skip_weight: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of delayed spikes [..., channels] and of their weights [channels].

    h holds the gradients of A and W, [2, ..., channels]; at σ = 0 the gradient of A alone, [1, ..., channels].
    """
    precise = precise_dtype(h.dtype)
    by_potential, x = h[0].to(precise), skip.to(precise)
    by_weight, by_spike = by_potential * x, by_potential
    if neuron.has_slope:
        by_slope = h[1].to(precise) * sigma
        by_weight = by_weight + torch.where(x > 0, by_slope, 0)
        by_spike = torch.where(x <= 0, 0, by_potential)
        if neuron.has_surrogate:
            by_spike = by_spike + by_slope * vanishing(x, neuron)
    return (by_spike * skip_weight.to(precise)).to(h.dtype), sum_rows(by_weight)


def stack_mask(x: Tensor, sigma: Tensor | float) -> Tensor:
    """x stacked with its mask along the first dimension: [x ; σ·[x > 0]]; maps come out channels-last."""
    if is_formula(x):
        stacked = run((masking,), to_rows(x).flatten(), rule.scalar(sigma, x))
        return like_rows(stacked, (2 * len(x), *x.shape[1:]))
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    stacked = torch.empty(2 * len(x), *x.shape[1:], dtype=x.dtype, device=x.device, memory_format=layout)
    values, mask = stacked.tensor_split(2)
    values.copy_(x)
    torch.gt(x, 0, out=mask)  # into floats: comparisons that write booleans are not vectorised on CPU
    if isinstance(sigma, Tensor) or sigma != 1.0:
        mask.mul_(sigma)
    return stacked


def masking(x: Tensor, sigma: Tensor) -> Tensor:
    """x [elements] stacked with its mask: [x ; σ·[x > 0]], [2, elements]."""
    return torch.stack([x, torch.where(x > 0, sigma, 0).to(x.dtype)])


def at_inputs(grad_x: Tensor, x: Tensor, neuron: Neuron, sigma: Tensor | float) -> Tensor:
    """The gradient of a layer's input x from the contraction's result `grad_x`.

    It is zero where x is silent: a small change leaves x silent. With a surrogate, the gradient of the mask is added
    where a spike could appear or vanish; it is stacked in `grad_x`, unless x and mask have the same.
    """
    by_activation, by_mask = grad_x.tensor_split(2) if len(grad_x) > len(x) else (grad_x, grad_x)
    elements = (to_rows(tensor).flatten() for tensor in (by_activation, by_mask, x))
    return like_rows(run((entering, neuron), *elements, rule.scalar(sigma, x)), x.shape)


def entering(neuron: Neuron, by_activation: Tensor, by_mask: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The gradient of a layer's input [elements] from the gradients of its activations and, with a surrogate, masks."""
    grad = aten.threshold_backward(by_activation, x, 0)  # where x > 0
    return grad + vanishing(x, neuron) * by_mask * sigma if neuron.surrogate_width else grad


def neurons_of(maps: Tensor, pairs: int) -> Tensor:
    """[pairs · N, C, P, Q] → [pairs, N, P·Q, C], a view of channels-last maps; [pairs · N, C] → [pairs, N, 1, C]."""
    positions = maps.shape[2] * maps.shape[3] if maps.dim() == 4 else 1
    return to_rows(maps).view(pairs, len(maps) // pairs, positions, maps.shape[1])


def delayed_of(skip: Tensor | None) -> Tensor | None:
    """Delayed spikes [N, C, P, Q] or [N, C] → [N, P·Q, C] or [N, 1, C]."""
    return None if skip is None else neurons_of(skip, 1)[0]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def to_rows(maps: Tensor) -> Tensor:
    """[N, C, P, Q] → [N·P·Q, C], a view of channels-last maps; [N, C] as it is."""
    return (maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]) if maps.dim() == 4 else maps).contiguous()


def like_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_rows`, for rows in any shape: channels-last maps, or a matrix."""
    if len(shape) == 2:
        return rows.view(*shape)
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
