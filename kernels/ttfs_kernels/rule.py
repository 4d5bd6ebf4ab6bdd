"""The firing rule in PyTorch, and the passes over a layer's neurons between its contractions, as formulas.

Notation (Wei et al., ICCV 2023, with the window's length and the ramp's height at 1): A is the membrane potential at
the window's start, W the slope of the membrane potential inside the window. The potential A + W·s meets the firing
threshold 1 − s (Eq. 5) at s = (1 − A)/(1 + W), which is Eq. 6; the activation is a = 1 − s.

The derivatives of Eq. 9 and 10 describe spikes that move, not spikes that appear or vanish: a neuron that is silent for
all images learns no more. A surrogate width δ > 0 adds derivatives of those, as if spikes near the border appeared and
vanished smoothly: see `fire_with_derivatives` and `vanishing`.

The division has two bounds. The lower bound on 1 + W is the smallest 1 − A of a neuron with A < 1: s ≥ 1 (silent) if
1 + W ≤ 0. That on 1 − A is 0: s = 0 exactly if A ≥ 1, also for infinite A and W. NaN stays NaN, in derivatives too.

A pass takes A and W, or their gradients, as one tensor [2, images, positions, channels]; at σ = 0 A alone, [1, ...]. A
fully connected layer has one position per image. Values of channels are [channels], σ is a scalar tensor.

With batch norm, a channel has the mean μ and variance s² of V = A + W, the potential at the window's end, over batch
and positions. At σ = 0, W is 0, and this is ordinary batch norm. One factor scales A and W:

    g = γ / √(s² + ε)        A' = g·(A − μ) + β        W' = g·W        activation = fire(A', W')

So a trained layer equals a layer without batch norm that has weights g·w and initial potential β − g·μ. Backward, sums
run over a channel's N neurons; the firing rule gives the gradients dA' and dW':

    dβ = Σ dA'        dγ = Σ (dA'·(A − μ) + dW'·W) / √(s² + ε)
    dA = g·(dA' − dβ/N − (V − μ)·dγ/(N·√(s² + ε)))        dW = the same with dW' in place of dA'
"""

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron, PlacedNeuron

aten = torch.ops.aten
logger = logging.getLogger(__name__)

# Elements of a block per thread: so the rule's float32 operands stay in a core's second-level cache. Measured on one
# core (AVX-512, 2 MiB), 2 million neurons: 5.3 ms in blocks, 7.5 ms in one piece.
BLOCK_ELEMENTS = 1 << 17

# Passes over fewer elements are not fused: calling a compiled pass takes as long as it saves. Measured on one core.
SMALLEST = 1 << 15

# Upper bound on a silent neuron's derivative, far below the largest derivative of a neuron that fires.
SURROGATE_BOUND = 2.0

EXACT = Neuron(derivative_clip=None)

_fusing = False


def fire(A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Activations a (Eq. 7) and ∂a/∂A. If A ≥ 1, a = 1; if A < 1 and A + W > 0, a = (A + W)/(1 + W); else a = 0.

    Args:
        A: membrane potential at the window's start, any shape, float32 or float64, in threshold heights.
        W: slope of the membrane potential inside the window, times the PSP persistence σ; shape of A.
    """
    return fire_with_derivatives(A, W, EXACT)[:2]


def fire_with_derivatives(potential: Tensor, slope: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, ∂a/∂A and ∂a/∂W, surrogate and clip included.

    With a surrogate width δ > 0, a silent neuron has the derivative (1 + (A + W)/δ)·min(1/(1 + W), 2) for both A and W
    if −δ < A + W ≤ 0, where A + W is its potential at the window's end. Otherwise ∂a/∂W = (1 − q·a)·∂a/∂A.
    `slope` includes σ. With q = 0, both derivatives are one tensor.
    """
    crossing, speed = crossing_of(potential, slope)
    derivatives = derivatives_of(crossing, speed, potential, slope, neuron)
    return 1 - crossing, derivatives[0], derivatives[-1]


def derivatives_of(crossing: Tensor, speed: Tensor, potential: Tensor, slope: Tensor, neuron: Neuron) -> list[Tensor]:
    """[∂a/∂A, ∂a/∂W], or with q = 0 one tensor for both; overwrites `speed`, that is 1 + W.

    It works in place and without booleans, whose CPU kernels are not vectorised.
    """
    gain, q, width = speed.reciprocal_(), neuron.split_gradient, neuron.surrogate_width
    # hardtanh_backward(g, s, 0, 1) is g where 0 < s < 1, else 0; threshold_backward(g, s, t) is g where s > t.
    derivatives = [with_nan_of(crossing, aten.hardtanh_backward(gain, crossing, 0, 1))]
    if q > 0:
        derivatives.append(derivatives[0] * (crossing if q == 1 else crossing * q + (1 - q)))  # 1 − q·a
    if width > 0:
        near = (potential + (slope + 1)).sub_(1 - width).mul_(1 / width).clamp_(0, 1)
        near.mul_(gain.clamp_max_(SURROGATE_BOUND))
        near = aten.threshold_backward(near, crossing, 1 - torch.finfo(crossing.dtype).eps / 2)  # of silent neurons
        derivatives = [derivative.add_(near) for derivative in derivatives]
    if neuron.derivative_clip is not None:
        derivatives = [derivative.clamp_max_(neuron.derivative_clip) for derivative in derivatives]
    return derivatives


def crossing_of(potential: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """(s, 1 + W), both bounded: the time s = 1 − a at which potential and threshold meet, and their closing speed."""
    speed = (slope + 1).clamp_min_(torch.finfo(potential.dtype).eps / 2)  # distance from 1 to the next smaller number
    return (1 - potential).clamp_min_(0).div_(speed).clamp_max_(1), speed


def with_nan_of(values: Tensor, results: Tensor) -> Tensor:
    """`results`, and NaN where `values` are NaN; may overwrite `results`."""
    if torch.compiler.is_compiling():  # PyTorch 2.13's compiler takes 0 * a for 0, and does not vectorise `isnan`
        return torch.where(values != values, values, results)
    return results.add_(values, alpha=0)


def vanishing(x: Tensor, neuron: Neuron) -> Tensor:
    """Factor on the mask's gradient in the input's gradient: 1 − x/δ where x < δ (1 if silent), else 0; shape of x."""
    return (x * (-1 / neuron.surrogate_width)).add_(1).clamp_min_(0)


# ---- passes


def firing(
    neuron: Neuron,
    with_derivatives: bool,
    potentials: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    skip_weight: Tensor | None,
    sigma: Tensor,
) -> tuple[Tensor, ...]:
    """(activations,), or (activations, stacked derivatives); `potentials` are A without initial potential, and W."""
    potential, slope = potentials.to(precise_dtype(potentials.dtype))
    if bias is not None:
        potential = potential + bias
    potential, slope = with_skip(potential, slope, sigma, skip, skip_weight)
    assert slope is not None  # since a slope was given
    if not with_derivatives:
        return ((1 - crossing_of(potential, slope)[0]).to(potentials.dtype),)
    activations, *derivatives = fire_with_derivatives(potential, slope, neuron)
    return activations.to(potentials.dtype), torch.stack(derivatives).to(potentials.dtype)


def with_mask(x: Tensor, sigma: Tensor) -> Tensor:
    """x [elements] and its mask, stacked: [x ; σ·[x > 0]], [2, elements]."""
    return torch.stack([x, torch.where(x > 0, sigma, 0).to(x.dtype)])


def input_gradient(neuron: Neuron, by_activation: Tensor, by_mask: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The gradient of a layer's input, from the gradients of its activations and (with a surrogate) of its mask."""
    grad = aten.threshold_backward(by_activation, x, 0)  # where x > 0
    return grad.add_(vanishing(x, neuron).mul_(by_mask).mul_(sigma)) if neuron.surrogate_width else grad


def potential_and_bias_gradients(derivatives: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(h, Σ h[0] over neurons), where h = derivatives · grad are the gradients of A and W, [2, neurons, channels]."""
    h = derivatives * grad
    return h, h[0].sum(0, dtype=precise_dtype(h.dtype))


def clamp_and_bias_gradients(grad: Tensor, activations: Tensor) -> tuple[Tensor, Tensor]:
    """(h, Σ h over neurons) at σ = 0, where h is the gradient of A: `grad` where 0 < a < 1, else 0; NaN where a is."""
    precise = precise_dtype(grad.dtype)
    h = clamp_gradient(grad.to(precise), activations.to(precise))  # in 16 bits, comparisons are not vectorised
    return h.to(grad.dtype), h.sum(0)


def skip_gradient(neuron: Neuron, h: Tensor, skip: Tensor, skip_weight: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a skip's delayed spikes [..., channels] and of their weights [channels].

    h has the gradients of A and W, [2, ..., channels]; at σ = 0 the gradient of A alone, [1, ..., channels].
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


def with_skip(
    A: Tensor, W: Tensor | None, sigma: Tensor, skip: Tensor | None, skip_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(A, W) plus the skip's delayed spikes, one per neuron; W is None at σ = 0."""
    if skip is None or skip_weight is None:
        return A, W
    skip, skip_weight = skip.to(A.dtype), skip_weight.to(A.dtype)
    slope = None if W is None else W.addcmul((skip > 0).to(W.dtype) * sigma, skip_weight)
    return A.addcmul(skip, skip_weight), slope


def clamp_gradient(grad: Tensor, values: Tensor) -> Tensor:
    """`grad` where `values` (potentials or activations) lie between 0 and 1, else 0; NaN where they are NaN."""
    return with_nan_of(values, aten.hardtanh_backward(grad, values, 0, 1))


def potential_and_slope(potentials: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
    """(A, W) in at least float32; W is None at σ = 0."""
    precise = precise_dtype(potentials.dtype)
    A = potentials[0].to(precise)
    return A, potentials[1].to(precise) * sigma if len(potentials) == 2 else None


def end_potential(A: Tensor, W: Tensor | None, mean: Tensor) -> Tensor:
    """V − mean, in new memory, where V = A + W."""
    return A - mean if W is None else (A + W).sub_(mean)


def end_sums(potentials: Tensor, sigma: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (V − estimate) and Σ (V − estimate)² over a channel's neurons, [channels]."""
    offset = end_potential(*potential_and_slope(potentials, sigma), estimate)
    return sum_rows(offset), sum_rows(offset.square())


def normalise(
    A: Tensor, W: Tensor | None, sigma: Tensor, scale: Tensor, shift: Tensor, *delayed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(A', W'), plus the spikes of `delayed`, which is (skip, skip weight); `scale` is g, `shift` is β − g·μ."""
    return with_skip((A * scale).add_(shift), None if W is None else W * scale, sigma, *delayed)


def normalised_firing(potentials: Tensor, sigma: Tensor, *others: Any) -> Tensor:
    """Activations at normalised potentials; `others` are scale, shift, skip and skip weight, as in `normalise`."""
    A, W = normalise(*potential_and_slope(potentials, sigma), sigma, *others)
    return (A.clamp_(0, 1) if W is None else 1 - crossing_of(A, W)[0]).to(potentials.dtype)


def normalised_gradients(
    neuron: Neuron, potentials: Tensor, grad: Tensor, mean: Tensor, sigma: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, dβ, dg): h are the gradients of A' and W', [2, ...], or [1, ...] if both are equal; dγ is dg / √(s² + ε).

    `others` are as in `normalised_firing`.
    """
    A, W = potential_and_slope(potentials, sigma)
    potential, slope = normalise(A, W, sigma, *others)
    grad = grad.to(A.dtype)
    if W is None or slope is None:
        h = [clamp_gradient(grad, potential)]
        by_scale = h[0] * (A - mean)
    else:
        derivatives = derivatives_of(*crossing_of(potential, slope), potential, slope, neuron)
        h = [derivative.mul_(grad) for derivative in derivatives]
        by_scale = (A - mean).mul_(h[0]).addcmul_(h[-1], W)
    return stack(h).to(potentials.dtype), sum_rows(h[0]), sum_rows(by_scale)


def unnormalised_gradients(
    h: Tensor, potentials: Tensor, sigma: Tensor, scale: Tensor, mean: Tensor, by_mean: Tensor, by_variance: Tensor
) -> Tensor:
    """The gradients of A and of Σ w·[x > 0], from `h` of `normalised_gradients`: those of A' and W'.

    They are g·(dA' − shared) and σ·g·(dW' − shared), where shared = by_mean + (V − μ)·by_variance, by_mean = dβ/N and
    by_variance = dγ/(N·√(s² + ε)).
    """
    shared = end_potential(*potential_and_slope(potentials, sigma), mean).mul_(by_variance).add_(by_mean)
    factors = (scale, sigma * scale)
    return stack([(one.to(shared.dtype) - shared).mul_(by) for one, by in zip(h, factors, strict=False)]).to(h.dtype)


def stack(tensors: list[Tensor]) -> Tensor:
    """The tensors along a new first dimension; a single tensor is not copied."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def sum_rows(values: Tensor) -> Tensor:
    """The sum over all dimensions but the channels, the last; positions first, so that sums are short and parallel."""
    while values.dim() > 1:
        values = values.sum(-2)
    return values


# ---- how passes run: fused, traced, or eagerly in blocks


def fuse_passes(on: bool = True) -> None:
    """Turn on (or off) fusion of layers' passes over neurons by PyTorch's compiler, on a CPU, in this process.

    Eager PyTorch goes through memory once per operation: a layer on large maps, with few synapses per neuron, spends
    most of its time there. Compiling takes some 20 seconds per process, once for all shapes, and needs a C++ compiler.
    In float32 and float64, results equal those of eager passes bit for bit, except that sums have another order. In 16
    bits, results are rounded less often, since intermediate values are never stored.

    If compiling fails, for example without a C++ compiler, the logger "ttfs_kernels.rule" warns once with the reason,
    and passes run eagerly from then on.

    Args:
        on: True fuses passes; False runs them eagerly.
    """
    global _fusing
    _fusing = on


def is_formula(x: Tensor) -> bool:
    """Whether a compiler gets a pass over x: the pass is fused here, or `torch.compile` is tracing the caller."""
    return torch.compiler.is_compiling() or (_fusing and x.device.type == "cpu" and x.numel() >= SMALLEST)


def run(formula: tuple[Any, ...], *operands: Tensor | None) -> Any:
    """Results of a formula, (function, *settings); it is compiled if `is_formula` holds for the first, largest operand.

    Otherwise a first operand of four dimensions is computed in blocks of neurons. Formulas get σ as a tensor, and a
    compiler gets any `Neuron` of σ > 0 with σ = 1, so that a new σ recompiles nothing.
    """
    function, *settings = formula
    first = operands[0]
    assert first is not None
    if is_formula(first):
        settings = [one.of_any_persistence() if isinstance(one, Neuron) else one for one in settings]
        if not torch.compiler.is_compiling():
            return compiled(function, *settings)(*operands)
    elif first.dim() == 4:
        return in_blocks(function, settings, operands)
    return function(*settings, *operands)


def in_blocks(function: Callable[..., Any], settings: list[Any], operands: tuple[Tensor | None, ...]) -> Any:
    """A formula's results in blocks that fit the cache: neurons' are joined, channels' are summed over blocks."""
    first: Any = operands[0]
    _, *size, channels = first.shape
    neurons = max(1, math.prod(size))
    # An accelerator gets one block: more launches would cost more than the memory traffic that they save.
    on_cpu = first.device.type == "cpu"
    block = max(1, BLOCK_ELEMENTS * torch.get_num_threads() // channels) if on_cpu else neurons
    blocks = -(-neurons // block)
    split = ([t] * blocks if t is None or t.dim() < 2 else t.flatten(-3, -2).split(block, -2) for t in operands)
    results: Any = ()
    found: Any = None
    for number, here in enumerate(zip(*split, strict=True)):
        found = function(*settings, *here)
        parts = (found,) if isinstance(found, Tensor) else found
        if blocks == 1:
            results = parts
            break
        results = results or [
            torch.zeros_like(part) if part.dim() < 2 else part.new_empty(*part.shape[:-2], neurons, channels)
            for part in parts
        ]
        for result, part in zip(results, parts, strict=True):
            if part.dim() < 2:
                result += part
            else:  # stored while it is in the cache
                result[..., number * block : (number + 1) * block, :] = part
    results = tuple(result if result.dim() < 2 else result.unflatten(-2, size) for result in results)
    return results[0] if isinstance(found, Tensor) else results


@cache
def compiled(formula: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """The formula as a function that compiles it at the first call; if compiling fails, the formula runs eagerly."""
    from torch._dynamo.exc import TorchDynamoException  # here, since importing it takes a second

    def bound(*operands: Tensor | None) -> Any:
        return formula(*settings, *operands)

    # The compiler limits compiled versions per code object, which closures share: every pass gets a new code object.
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


# ---- σ and precision


def factor(neuron: Neuron, like: Tensor) -> Tensor | float:
    """σ as a factor of an eager operation on `like`: a `PlacedNeuron`'s tensor (unless in float64), else a number."""
    if isinstance(neuron, PlacedNeuron) and like.dtype != torch.float64:
        return neuron.sigma
    return neuron.psp_persistence


def scalar(sigma: Tensor | float, like: Tensor) -> Tensor:
    """σ as an operand of a formula or kernel: a scalar tensor on the device of `like`, in at least float32."""
    if isinstance(sigma, Tensor):
        return sigma
    return torch.full((), sigma, dtype=precise_dtype(like.dtype), device=like.device)


def persistence(neuron: Neuron, like: Tensor) -> Tensor:
    """The `scalar` of the neuron's σ."""
    return scalar(factor(neuron, like), like)


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a formula computes: at least float32."""
    return torch.promote_types(dtype, torch.float32)
