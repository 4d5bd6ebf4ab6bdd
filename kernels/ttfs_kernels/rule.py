"""The firing rule in PyTorch, in two forms: readable (`fire`), and in place over cache-sized blocks (`fire_`).

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

import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron

aten = torch.ops.aten

# Elements of a block per thread: the rule's float32 operands stay in a core's second-level cache. Measured on one core
# (AVX-512, 2 MiB), 2 million neurons: 5.3 ms in blocks, 7.5 ms in one piece.
BLOCK_ELEMENTS = 1 << 17

# Upper bound on a silent neuron's derivative, far below the largest derivative of a neuron that fires.
SURROGATE_BOUND = 2.0

EXACT = Neuron(derivative_clip=None)


def vanishing(x: Tensor, neuron: Neuron) -> Tensor:
    """Factor of the mask's gradient in an input's gradient: 1 − x/δ where x < δ (1 if silent), else 0; shape of x."""
    return (1 - x / neuron.surrogate_width).clamp_min(0)


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
        near = ((potential + speed - (1 - width)) / width).clamp(0, 1) * gain.clamp_max(SURROGATE_BOUND)
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
        near = torch.add(potential, closing_speed).sub_(1 - width).div_(width).clamp_(0, 1)
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


def is_nan(values: Tensor) -> Tensor:
    """Where values are NaN. PyTorch's compiler vectorises this comparison, but not `isnan`."""
    return values != values


def smallest_closing_speed(dtype: torch.dtype) -> float:
    """Distance from 1 to the next smaller number: the smallest 1 − A > 0."""
    return torch.finfo(dtype).eps / 2
