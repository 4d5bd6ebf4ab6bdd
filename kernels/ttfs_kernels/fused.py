"""Passes over a layer's neurons as formulas, each of which PyTorch's compiler fuses into one loop; see `torch_layer`.

Tensors have the shape [2, neurons, channels] or, where channels do not matter, [2, elements]: potentials A and slopes
W, or gradients of activations and of their masks. With batch norm, potentials are [2, images, positions, channels] for
A and Σ w·[x > 0], or [1, ...] for A alone at σ = 0. In a fully connected layer, each row counts as an image of one
position. `rule.Passes` explains what is computed.
"""

from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import fire_with_derivatives, is_nan, precise_dtype, sum_rows


def masking(x: Tensor, sigma: Tensor) -> Tensor:
    """x [elements] stacked with its mask: [x ; σ·[x > 0]], [2, elements]."""
    return torch.stack([x, torch.where(x > 0, sigma, 0).to(x.dtype)])


def firing(
    neuron: Neuron,
    with_derivatives: bool,
    potentials: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    sigma: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """The firing rule as a formula, see `rule.fire_`: activations, and stacked derivatives or None."""
    potential, slope = potentials.to(precise_dtype(potentials.dtype))
    if bias is not None:
        potential = potential + bias
    potential, slope = with_delayed(potential, slope, skip, skip_weight, sigma)
    assert slope is not None  # since a slope was given
    activations, *derivatives = fire_with_derivatives(potential, slope, neuron)
    activations = activations.to(potentials.dtype)
    return activations, torch.stack(derivatives).to(potentials.dtype) if with_derivatives else None


def with_delayed(
    A: Tensor, W: Tensor | None, skip: Tensor | None, skip_weight: Tensor | None, sigma: Tensor | float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """(A, W) [..., channels] plus delayed spikes, each of which reaches one neuron; W is None at σ = 0."""
    if skip is None or skip_weight is None:
        return A, W
    skip, skip_weight = skip.to(A.dtype), skip_weight.to(A.dtype)
    A = A + skip * skip_weight
    return A, None if W is None else W + torch.where(skip > 0, skip_weight * sigma, 0)


def crossing(grad: Tensor, activations: Tensor) -> tuple[Tensor, Tensor]:
    """(h, Σ h over neurons) at σ = 0: h is the gradient where 0 < a < 1, else 0; NaN where a is NaN."""
    precise = precise_dtype(grad.dtype)
    h = inside(grad.to(precise), activations.to(precise))  # in 16 bits, comparisons are not vectorised
    return h.to(grad.dtype), h.sum(0)


def inside(grad: Tensor, values: Tensor) -> Tensor:
    """The gradient where the values (potentials or activations) lie between 0 and 1, else 0; NaN where they are NaN."""
    h = torch.where((values <= 0) | (values >= 1), 0, grad)
    return torch.where(is_nan(values), values, h)  # PyTorch 2.13's compiler takes 0 * a for 0


def both(potentials: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
    """(A, W) in at least float32; W is None at σ = 0."""
    precise = precise_dtype(potentials.dtype)
    A = potentials[0].to(precise)
    return A, potentials[1].to(precise) * sigma if len(potentials) == 2 else None


def summing(potentials: Tensor, sigma: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (V − estimate) and Σ (V − estimate)², [C]."""
    A, W = both(potentials, sigma)
    offset = (A if W is None else A + W) - estimate
    return sum_rows(offset), sum_rows(offset.square())


def normalise(
    potentials: Tensor,
    sigma: Tensor,
    scale: Tensor,
    shift: Tensor,
    skip: Tensor | None,
    skip_weight: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """(A', W') plus delayed spikes; `scale` is g and `shift` is β − g·μ."""
    A, W = both(potentials, sigma)
    return with_delayed(A * scale + shift, None if W is None else W * scale, skip, skip_weight, sigma)


def normalised_firing(neuron: Neuron, potentials: Tensor, *others: Any) -> Tensor:
    """Activations of normalised potentials; `others` are the other operands of `normalise`."""
    A, W = normalise(potentials, *others)
    activations = A.clamp(0, 1) if W is None else fire_with_derivatives(A, W, neuron)[0]
    return activations.to(potentials.dtype)


def deriving(neuron: Neuron, potentials: Tensor, grad: Tensor, *others: Any) -> Tensor:
    """The gradients of A' and W', [2, ...]; [1, ...] if they are the same, or at σ = 0. `others`: see `normalise`."""
    A, W = normalise(potentials, *others)
    grad = grad.to(A.dtype)
    if W is None:
        return inside(grad, A).to(potentials.dtype).unsqueeze(0)
    _, *derivatives = fire_with_derivatives(A, W, neuron)
    if neuron.split_gradient == 0:
        del derivatives[1]
    return torch.stack([grad * derivative for derivative in derivatives]).to(potentials.dtype)


def reducing(potentials: Tensor, h: Tensor, sigma: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(dβ, dg), [C] each, from h of `deriving`; dγ is dg / √(s² + ε)."""
    A, W = both(potentials, sigma)
    by_A = h[0].to(A.dtype)
    by_scale = by_A * (A - mean)
    if W is not None:
        by_scale = by_scale + h[-1].to(A.dtype) * W
    return sum_rows(by_A), sum_rows(by_scale)


def spreading(
    potentials: Tensor,
    h: Tensor,
    sigma: Tensor,
    scale: Tensor,
    mean: Tensor,
    by_mean: Tensor,
    by_variance: Tensor,
) -> Tensor:
    """The gradients of A and of Σ w·[x > 0] from those of A' and W', h of `deriving`.

    These are g·(dA' − shared) and σ·g·(dW' − shared), with shared = by_mean + (V − μ)·by_variance. `by_mean` is dβ/N,
    `by_variance` dγ/(N·√(s² + ε)).
    """
    A, W = both(potentials, sigma)
    shared = by_mean + ((A if W is None else A + W) - mean) * by_variance
    spread = [scale * (h[0].to(A.dtype) - shared)]
    if len(h) == 2:
        spread.append(sigma * scale * (h[1].to(A.dtype) - shared))
    return torch.stack(spread).to(h.dtype)
