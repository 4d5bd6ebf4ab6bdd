"""Passes over a layer's neurons for the PyTorch backend, each fused into one loop by PyTorch's compiler, on a CPU.

Eager PyTorch goes through memory once per operation: a layer on large maps, with few synapses per neuron, spends most
of its time there. Fusion is off until `fuse_passes` turns it on: compiling takes some 20 seconds per process, once for
all shapes, and needs a C++ compiler. In float32 and float64, results equal the eager passes bit for bit, except that
sums have another order. In 16 bits they are rounded less often, since intermediate values are never stored.

Tensors here have the shape [2, neurons, channels] or, where channels do not matter, [2, elements]: potentials A and
slopes W, or gradients of activations and of their masks.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron, PlacedNeuron
from ttfs_kernels.rule import fire_with_derivatives, is_nan, vanishing

logger = logging.getLogger(__name__)

# Passes over fewer elements are not fused: calling a compiled pass takes as long as it saves. Measured on one core.
SMALLEST = 1 << 15

_on = False


def fuse_passes(on: bool = True) -> None:
    """Turn on (or off) fusion of layers' passes over neurons by PyTorch's compiler, on a CPU, in this process.

    The gradient of `standardise_weight` is fused, too. If compiling fails, for example without a C++ compiler, the
    logger "ttfs_kernels.fused" warns once with the reason, and passes run eagerly from then on.

    Args:
        on: True fuses passes; False runs them eagerly.
    """
    global _on
    _on = on


def is_fused(x: Tensor) -> bool:
    """Whether passes over x are fused: by `fuse_passes`, and by the device and size of x."""
    return _on and x.device.type == "cpu" and x.numel() >= SMALLEST


def is_formula(x: Tensor) -> bool:
    """Whether to run a pass over x as a formula: it is fused here, or `torch.compile` is tracing the caller."""
    return torch.compiler.is_compiling() or is_fused(x)


def run(formula: tuple[Any, ...], *operands: Tensor | None) -> Any:
    """Evaluate a formula, (function, *settings); fused if `is_fused` holds for the first operand, the largest one.

    Example: `run((entering, neuron), grad, x, sigma)`.
    """
    function, *settings = formula
    assert operands[0] is not None
    if torch.compiler.is_compiling() or not is_fused(operands[0]):
        return function(*settings, *operands)
    return compiled(function, *settings)(*operands)


@cache
def compiled(formula: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """The pass of a formula, compiled at its first call and cached; if compiling fails, it runs eagerly."""
    from torch._dynamo.exc import TorchDynamoException  # here, since importing it takes a second

    def bound(*operands: Tensor | None) -> Any:
        return formula(*settings, *operands)

    # The compiler limits compiled versions per code object, which closures share: give each pass its own.
    bound.__code__ = bound.__code__.replace(co_name=f"{formula.__name__}_fused")
    fused = torch.compile(bound, dynamic=True)

    def fused_or_eager(*operands: Tensor | None) -> Any:
        # Detached, since the compiler would treat the shapes of parameters as constants.
        operands = tuple([None if operand is None else operand.detach() for operand in operands])
        try:
            return fused(*operands)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning("passes are not fused: PyTorch's compiler failed (%s)", reason)
            fuse_passes(False)
            return bound(*operands)

    return fused_or_eager


def persistence(neuron: Neuron, like: Tensor) -> Tensor:
    """σ as an operand of a formula or kernel: a scalar tensor on the device of `like`, in at least float32."""
    sigma = factor(neuron, like)
    if isinstance(sigma, Tensor):
        return sigma
    return torch.full((), sigma, dtype=precise_dtype(like.dtype), device=like.device)


def factor(neuron: Neuron, like: Tensor) -> Tensor | float:
    """σ as a factor of an eager operation on `like`: the tensor of a `PlacedNeuron`, else the number."""
    if isinstance(neuron, PlacedNeuron) and like.dtype != torch.float64:
        return neuron.sigma
    return neuron.psp_persistence


def of_any_persistence(neuron: Neuron) -> Neuron:
    """The neuron with any σ > 0 replaced by 1: formulas get σ as a tensor, so that a new σ recompiles nothing."""
    if isinstance(neuron, PlacedNeuron):
        return Neuron.unpack((1.0, *neuron.pack()[1:]))
    return replace(neuron, psp_persistence=1.0) if neuron.has_slope else neuron


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a formula computes: at least float32."""
    return torch.promote_types(dtype, torch.float32)


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


def clamping(potentials: Tensor, skip: Tensor, skip_weight: Tensor) -> Tensor:
    """The firing rule at σ = 0, with delayed spikes: activations of potentials [neurons, channels]."""
    potential, _ = with_delayed(potentials.to(precise_dtype(potentials.dtype)), None, skip, skip_weight)
    return potential.clamp(0, 1).to(skip.dtype)


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


def scaling(derivatives: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(h, Σ h[0] over neurons): h is the product of derivatives [2, neurons, channels] and gradient."""
    h = derivatives * grad
    return h, h[0].sum(0, dtype=precise_dtype(h.dtype))


def entering(neuron: Neuron, grad: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The gradient of a layer's input [elements] from the gradients of its activations and masks [2, elements].

    Without a surrogate, masks have no gradient: `grad` is [elements], the gradient of the activations.
    """
    if neuron.surrogate_width == 0:
        return torch.where(x <= 0, 0, grad)
    by_mask = grad[1] * vanishing(x, neuron)
    return torch.where(x <= 0, 0, grad[0]) + by_mask * sigma


def entering_shared(neuron: Neuron, grad: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """`entering` where activations and masks have the same gradient, `grad` [elements]."""
    return entering(neuron, torch.stack([grad, grad]) if neuron.has_surrogate else grad, x, sigma)


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


def sum_rows(values: Tensor) -> Tensor:
    """The sum over all dimensions but the last, the channels; over an image first, so sums are short and parallel."""
    while values.dim() > 1:
        values = values.sum(-2)
    return values


def masking(x: Tensor, sigma: Tensor) -> Tensor:
    """x [elements] stacked with its mask: [x ; σ·[x > 0]], [2, elements]."""
    return torch.stack([x, torch.where(x > 0, sigma, 0).to(x.dtype)])
