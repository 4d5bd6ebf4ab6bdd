"""The firing rule in PyTorch, in two forms: readable (`fire`), and in place over blocks that fit the cache (`fire_`).

Notation (Wei et al., ICCV 2023, with the window's length and the ramp's height at 1): A is the membrane potential at
the window's start, W the slope of the membrane potential inside the window. The potential A + W·s meets the firing
threshold 1 − s (Eq. 5) at s = (1 − A)/(1 + W), which is Eq. 6; the activation is a = 1 − s.

The derivatives of Eq. 9 and 10 describe spikes that move, not spikes that appear or vanish: a neuron that is silent for
all images learns no more. A surrogate width δ > 0 adds these derivatives, as if spikes near the border appeared and
vanished smoothly: see `fire_with_derivatives` and `vanishing`.

Two bounds before the division decide which neurons saturate or stay silent. The closing speed 1 + W is bounded below by
the smallest 1 − A that a neuron with A < 1 can have, so s ≥ 1 (silent) if 1 + W ≤ 0. And 1 − A is bounded below by 0,
so s = 0 exactly if A ≥ 1, also for infinite A and W. NaN stays NaN, in derivatives as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron, PlacedNeuron

aten = torch.ops.aten

# Elements of a block per thread: the rule's float32 operands stay in a core's second-level cache. Measured on one core
# (AVX-512, 2 MiB), 2 million neurons: 5.3 ms in blocks, 7.5 ms in one piece.
BLOCK_ELEMENTS = 1 << 17

# Upper bound on a silent neuron's derivative, far below the largest derivative of a neuron that fires.
SURROGATE_BOUND = 2.0

EXACT = Neuron(derivative_clip=None)


def vanishing(x: Tensor, neuron: Neuron) -> Tensor:
    """Factor of the mask's gradient in an input's gradient: 1 − x/δ where x < δ (1 if silent), else 0; shape of x."""
    return (1 - x * (1 / neuron.surrogate_width)).clamp_min(0)


def fire(A: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Spike of each neuron, in closed form (Eq. 7).

    a = 1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0.

    Args:
        A: membrane potential at the window's start, any shape, float32 or float64, in threshold heights.
        W: slope of the membrane potential inside the window, times the PSP persistence σ; shape of A.
    Returns:
        activation in [0, 1], and gain = ∂a/∂A = 1/(1 + W) where the neuron crosses inside the window, else 0.
        Both are NaN where A or W is. The other derivative is ∂a/∂W = (1 − a)·gain (Eq. 9, 10).
    """
    return fire_with_derivatives(A, W, EXACT)[:2]


def fire_with_derivatives(potential: Tensor, slope: Tensor, neuron: Neuron) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, ∂a/∂A and ∂a/∂W, surrogate and clip included, in operators that a compiler can fuse.

    With a surrogate width δ > 0, a silent neuron whose potential at the window's end is −δ < A + W ≤ 0 has the
    derivative (1 + (A + W)/δ)·min(1/(1 + W), 2) with respect to both A and W. Otherwise ∂a/∂W = (1 − q·a)·∂a/∂A.

    Args:
        potential, slope: A, initial potential included, and W, any shape, float32 or float64.
        neuron: surrogate width, clip and q of the derivatives; its σ is not read, since `slope` includes it.
    Returns:
        activation, ∂a/∂A and ∂a/∂W, shape and dtype of `potential`.
    """
    smallest = smallest_closing_speed(potential.dtype)
    speed = slope + 1
    closing_speed = speed.clamp_min(smallest)
    crossing = ((1 - potential).clamp_min(0) / closing_speed).clamp_max(1)
    gain = closing_speed.reciprocal()
    by_potential = torch.where((crossing <= 0) | (crossing >= 1), 0, gain)
    by_slope = by_potential * (crossing * neuron.split_gradient + (1 - neuron.split_gradient))  # 1 − q·a
    by_potential = torch.where(is_nan(crossing), crossing, by_potential)
    width = neuron.surrogate_width
    if width > 0:
        near = ((potential + speed - (1 - width)) * (1 / width)).clamp(0, 1) * gain.clamp_max(SURROGATE_BOUND)
        near = torch.where(crossing <= 1 - smallest, 0, near)
        by_potential, by_slope = by_potential + near, by_slope + near
    if neuron.derivative_clip is not None:
        by_potential = by_potential.clamp_max(neuron.derivative_clip)
        by_slope = by_slope.clamp_max(neuron.derivative_clip)
    return 1 - crossing, by_potential, by_slope


def fire_(
    potentials: Tensor,
    bias: Tensor | None,
    neuron: Neuron,
    with_derivatives: bool,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    sigma: Tensor | float = 1.0,
) -> Tensor:
    """Activations [neurons, channels] of a layer's neurons, dtype of `potentials`; computed in float32 or wider.

    `potentials` [2, neurons, channels] hold A without its initial potential `bias`, and W. They are overwritten: with
    derivatives by ∂a/∂A and ∂a/∂W, otherwise by scratch. Each delayed spike of `skip` [neurons, channels] reaches one
    neuron.
    """
    activations = potentials.new_empty(potentials.shape[1:])
    precise = torch.promote_types(potentials.dtype, torch.float32)
    for here in row_blocks(activations):
        both = potentials[:, here].to(precise)  # itself, or a copy where it has 16 bits
        if bias is not None:
            both[0].add_(bias)
        if skip is not None and skip_weight is not None:
            delay_(both, skip[here], skip_weight, sigma)
        crossing = cross_(both, neuron, with_derivatives)
        if with_derivatives and precise != potentials.dtype:
            potentials[:, here].copy_(both)
        activations[here] = crossing.neg_().add_(1)
    return activations


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Blocks of the first dimension of rows [neurons, channels], which fit the cache.

    On an accelerator it is one block: launches of more blocks cost more than the memory traffic that they save.
    """
    neurons, channels = rows.shape
    on_cpu = rows.device.type == "cpu"
    block = max(1, BLOCK_ELEMENTS * torch.get_num_threads() // max(1, channels) if on_cpu else neurons)
    return (slice(start, start + block) for start in range(0, neurons, block))


def delay_(both: Tensor, skip: Tensor, skip_weight: Tensor, sigma: Tensor | float) -> None:
    """Add delayed spikes [neurons, channels] to A, and their masks to W, in `both` [2, ...]; at σ = 0 [1, ...]."""
    skip, skip_weight = skip.to(both.dtype), skip_weight.to(both.dtype)
    both[0].addcmul_(skip, skip_weight)
    if len(both) == 2:
        spikes = torch.gt(skip, 0, out=torch.empty_like(skip)).mul_(sigma)
        both[1].addcmul_(spikes, skip_weight)


def cross_(both: Tensor, neuron: Neuron, with_derivatives: bool) -> Tensor:
    """Crossing times 1 − a; overwrites potentials and slopes [2, neurons, channels] with ∂a/∂A and ∂a/∂W, or scratch.

    In few passes over memory, and without booleans, whose CPU kernels are not vectorised.
    """
    potential, slope = both
    smallest = smallest_closing_speed(both.dtype)
    closing_speed = slope.add_(1)
    near = None
    if with_derivatives and neuron.surrogate_width > 0:
        width = neuron.surrogate_width
        near = torch.add(potential, closing_speed).sub_(1 - width).mul_(1 / width).clamp_(0, 1)
    closing_speed.clamp_min_(smallest)
    crossing = torch.rsub(potential, 1).clamp_min_(0).div_(closing_speed).clamp_max_(1)
    if not with_derivatives:
        return crossing
    gain = closing_speed.reciprocal_()
    if near is not None:
        # threshold_backward(g, s, t) is g where s > t, else 0: for silent neurons, whose s is 1.
        near.mul_(gain.clamp_max(SURROGATE_BOUND))
        aten.threshold_backward.grad_input(near, crossing, 1 - smallest, grad_input=near)
    # hardtanh_backward(g, s, 0, 1) is g where 0 < s < 1, else 0: zero for saturated and silent neurons.
    aten.hardtanh_backward.grad_input(gain, crossing, 0, 1, grad_input=potential)
    potential.add_(crossing, alpha=0)  # NaN where s is NaN, which hardtanh_backward treats as inside; else unchanged
    q = neuron.split_gradient
    if q == 0:
        slope.copy_(potential)
    else:
        torch.mul(potential, crossing if q == 1 else crossing * q + (1 - q), out=slope)
    if near is not None:
        both.add_(near)
    if neuron.derivative_clip is not None:
        both.clamp_max_(neuron.derivative_clip)
    return crossing


@dataclass(frozen=True)
class Passes:
    """The passes over the neurons of a layer with batch norm, whose formulas are those of `fused`.

    A channel's mean μ and variance s² are taken of V = A + W, the potential at the window's end, over the batch and all
    positions. At σ = 0, W is 0, and this is ordinary batch norm. One factor scales both potentials:

        g = γ / √(s² + ε)        A' = g·(A − μ) + β        W' = g·W        activation = fire(A', W')

    So a trained layer is a layer without batch norm, of weights g·w and initial potential β − g·μ. Backward, over the N
    neurons of a channel, with the gradients dA' and dW' from the firing rule:

        dβ = Σ dA'        dγ = Σ (dA'·(A − μ) + dW'·W) / √(s² + ε)
        dA = g·(dA' − dβ/N − (V − μ)·dγ/(N·√(s² + ε)))        dW = the same with dW' in place of dA'

    Attributes:
        potentials: [2, neurons, channels], A and Σ w·[x > 0]; at σ = 0 [1, ...].
        sigma: σ, a number or a scalar tensor.
    """

    potentials: Tensor
    sigma: Tensor | float

    def sums(self, estimate: Tensor) -> Tensor:
        """Σ (V − estimate) and Σ (V − estimate)², [2, channels]."""
        total = torch.zeros(2, len(estimate), dtype=precise_dtype(self.potentials.dtype), device=estimate.device)
        for here in row_blocks(self.potentials[0]):
            offset = self._end(here).sub_(estimate)
            total[0].add_(offset.sum(0))
            total[1].add_(offset.square_().sum(0))
        return total

    def fire(self, neuron: Neuron, *others: Any) -> Tensor:
        """Activations [neurons, channels]; `others` are the other operands of `_normalise`."""
        activations = torch.empty_like(self.potentials[0])
        for here in row_blocks(activations):
            both = self._normalise(here, *others)
            fired = both[0].clamp_(0, 1) if len(both) == 1 else cross_(both, neuron, False).neg_().add_(1)
            activations[here] = fired
        return activations

    def derive(self, neuron: Neuron, grad: Tensor, h: Tensor, mean: Tensor, *others: Any) -> Tensor:
        """Write the gradients of A' and W' into h (of both at once where h has one row); dβ and dg, [2, channels]."""
        total = torch.zeros(2, len(mean), dtype=precise_dtype(h.dtype), device=h.device)
        for here in row_blocks(self.potentials[0]):
            both = self._normalise(here, *others)
            rows = grad[here].to(both.dtype)
            if len(both) == 1:
                inside = aten.hardtanh_backward(rows, both[0], 0, 1)
                both = inside.add_(both[0], alpha=0).unsqueeze(0)
            else:
                cross_(both, neuron, True)
                both = both[: len(h)].mul_(rows)
            h[:, here] = both
            total[0].add_(both[0].sum(0))
            potentials = self._precise(here)
            potentials[0].sub_(mean)
            total[1].add_(potentials.mul_(both).sum((0, 1)))
        return total

    def spread(self, h: Tensor, scale: Tensor, mean: Tensor, by_mean: Tensor, by_variance: Tensor) -> None:
        """Replace the gradients of A' and W' in h by those of A and of Σ w·[x > 0]."""
        for here in row_blocks(self.potentials[0]):
            shared = self._end(here).sub_(mean).mul_(by_variance).add_(by_mean)
            rows = h[:, here].to(shared.dtype).sub_(shared).mul_(scale)
            if len(rows) == 2:
                self._persist_(rows[1])
            if rows.dtype != h.dtype:
                h[:, here] = rows

    def _precise(self, here: slice) -> Tensor:
        """A copy of A and W = σ·Σ w·[x > 0] in at least float32."""
        both = self.potentials[:, here].to(precise_dtype(self.potentials.dtype), copy=True)
        if len(both) == 2:
            self._persist_(both[1])
        return both

    def _persist_(self, slope: Tensor) -> None:
        if isinstance(self.sigma, Tensor) or self.sigma != 1.0:
            slope.mul_(self.sigma)

    def _end(self, here: slice) -> Tensor:
        """V = A + W, in memory of its own."""
        A, *W = self._precise(here)
        return A.add_(W[0]) if W else A

    def _normalise(
        self, here: slice, scale: Tensor, shift: Tensor, skip: Tensor | None, skip_weight: Tensor | None
    ) -> Tensor:
        """A' and W', with delayed spikes; `scale` is g and `shift` β − g·μ."""
        both = self._precise(here).mul_(scale)
        both[0].add_(shift)
        if skip is not None and skip_weight is not None:
            delay_(both, skip[here], skip_weight, self.sigma)
        return both


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


def factor(neuron: Neuron, like: Tensor) -> Tensor | float:
    """σ as a factor of an eager operation on `like`: the tensor of a `PlacedNeuron`, else the number."""
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


def of_any_persistence(neuron: Neuron) -> Neuron:
    """The neuron with any σ > 0 replaced by 1: formulas get σ as a tensor, so that a new σ recompiles nothing."""
    if isinstance(neuron, PlacedNeuron):
        return Neuron.unpack((1.0, *neuron.pack()[1:]))
    return replace(neuron, psp_persistence=1.0) if neuron.has_slope else neuron


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a formula computes: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def is_nan(values: Tensor) -> Tensor:
    """Where values are NaN. PyTorch's compiler vectorises this comparison, but not `isnan`."""
    return values != values


def smallest_closing_speed(dtype: torch.dtype) -> float:
    """Distance from 1 to the next smaller number: the smallest 1 − A > 0."""
    return torch.finfo(dtype).eps / 2
