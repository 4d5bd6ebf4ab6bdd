"""Kernels between the contractions of a layer with batch norm; `ttfs_kernels.normalised` has the formulas.

Potentials are rows in memory, A and the slope Σ w·[x > 0] each [M, N]; the slope is absent at σ = 0. W, V = A + W and
the normalised potentials are computed in registers, forward and backward, and never stored. `statistics` is one float32
tensor [7, N], a row for each of the constants below. A new value of σ compiles nothing.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportOptionalMemberAccess=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ttfs_kernels.triton_backend.rule import at_inputs, at_most, clamp_to_window, fire

COUNT = tl.constexpr(0)  # number of values per channel in the whole batch
MEAN = tl.constexpr(1)  # mean of V
SQUARES = tl.constexpr(2)  # Σ (V − mean)²
VARIANCE = tl.constexpr(3)  # unbiased variance
INVERSE = tl.constexpr(4)  # 1/√(s² + ε), of the biased variance s²
SCALE = tl.constexpr(5)  # g
SHIFT = tl.constexpr(6)  # β − g·mean
MOMENTS = tl.constexpr(3)  # the first rows, which can be merged from the same rows of parts of a batch
STATISTICS = 7  # all rows


class Neurons(NamedTuple):
    """Tensors of a layer between its contractions, passed to a kernel as one argument.

    Attributes:
        A, W: potentials and slopes Σ w·[x > 0], without the factor σ, [M, N]; W is None at σ = 0.
        statistics: [7, N] float32; None before they are known.
        skip, skip_weight: delayed spikes [M, N], one per neuron, and weights [N] of their synapses; or None.
    """

    A: Tensor
    W: Tensor | None
    statistics: Tensor | None = None
    skip: Tensor | None = None
    skip_weight: Tensor | None = None


@triton.jit
def load_potentials(neurons, at, kept, properties, WITH_SLOPE: tl.constexpr):
    """(A, W) in float32; W is 0 at σ = 0."""
    A = tl.load(neurons.A + at, mask=kept, other=0.0).to(tl.float32)
    W = tl.zeros_like(A)
    if WITH_SLOPE:
        W = tl.load(properties.psp_persistence) * tl.load(neurons.W + at, mask=kept, other=0.0).to(tl.float32)
    return A, W


@triton.jit
def load_channels(ptr, ROW: tl.constexpr, n, N):
    """Row ROW of [rows, N] at the channels n, as a row of a block."""
    return tl.load(ptr + ROW * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def normalised(neurons, A, W, at, kept, n, N, properties, HAS_SKIP: tl.constexpr, WITH_SLOPE: tl.constexpr):
    """(A', W', skip): normalised potentials g·A + β − g·mean and g·W with delayed spikes added, and these spikes."""
    scale = load_channels(neurons.statistics, SCALE, n, N)
    A = A * scale + load_channels(neurons.statistics, SHIFT, n, N)
    W = W * scale
    skip = tl.zeros_like(A)
    if HAS_SKIP:
        skip = tl.load(neurons.skip + at, mask=kept, other=0.0).to(tl.float32)
        skip_weight = load_channels(neurons.skip_weight, 0, n, N)
        A += skip_weight * skip
        if WITH_SLOPE:
            W += tl.load(properties.psp_persistence) * tl.where(skip > 0, skip_weight, 0.0)
    return A, W, skip


@triton.jit(do_not_specialize=["M"])
def moments(
    neurons,
    parts_ptr,
    M,
    N,
    rows_per_program,
    properties,
    WITH_SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Count, mean and summed squares of V over each program's rows: parts [programs along M, 3, N] float32.

    Every lane sums squares around its own mean (Welford 1962), so no digits are lost if the mean is far from 0.
    """
    program = tl.program_id(0)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    lane = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mean = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    seen = 0.0
    for start in range(first, last, BLOCK_M):
        m = start + lane
        kept = (m < last)[:, None] & (n < N)[None, :]
        A, W = load_potentials(neurons, m.to(tl.int64)[:, None] * N + n[None, :], kept, properties, WITH_SLOPE)
        seen += 1.0
        before = A + W - mean
        mean += tl.where(kept, before * (1 / seen), 0.0)
        squares += tl.where(kept, before * (A + W - mean), 0.0)
    rows = tl.maximum(last - first - lane + BLOCK_M - 1, 0) // BLOCK_M
    store_moments(parts_ptr + program.to(tl.int64) * MOMENTS * N + n, rows[:, None], mean, squares, n, N)


@triton.jit
def store_moments(to, count, mean, squares, n, N):
    """Merge count, mean and summed squares of all lanes (Chan, Golub and LeVeque 1979), store and return them."""
    count = tl.zeros_like(mean) + count
    whole = tl.sum(count, axis=0)
    centre = tl.sum(count * mean, axis=0) / tl.maximum(whole, 1.0)
    apart = mean - centre[None, :]
    total = tl.sum(squares + count * apart * apart, axis=0)
    tl.store(to + COUNT * N, whole, mask=n < N)
    tl.store(to + MEAN * N, centre, mask=n < N)
    tl.store(to + SQUARES * N, total, mask=n < N)
    return whole, centre, total


@triton.jit(do_not_specialize=["parts"])
def merge(
    parts_ptr,
    gamma_ptr,
    beta_ptr,
    statistics_ptr,
    parts,
    N,
    epsilon,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """All statistics of a batch from the moments of its parts [parts, 3, N], merged in an order that never changes."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    counts = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    mean = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, parts, BLOCK_M):
        part = start + tl.arange(0, BLOCK_M)
        at = parts_ptr + part.to(tl.int64)[:, None] * (MOMENTS * N) + n[None, :]
        kept = (part < parts)[:, None] & (n < N)[None, :]
        count = tl.load(at + COUNT * N, mask=kept, other=0.0)
        apart = tl.load(at + MEAN * N, mask=kept, other=0.0) - mean
        counts += count
        share = count / tl.maximum(counts, 1.0)
        mean += share * apart
        squares += tl.load(at + SQUARES * N, mask=kept, other=0.0) + (counts - count) * share * apart * apart
    to = statistics_ptr + n
    count, mean, square = store_moments(to, counts, mean, squares, n, N)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(square / tl.maximum(count, 1.0) + epsilon))
    scale = tl.load(gamma_ptr + n, mask=n < N, other=0.0).to(tl.float32) * inverse
    shift = tl.load(beta_ptr + n, mask=n < N, other=0.0).to(tl.float32) - scale * mean
    tl.store(to + VARIANCE * N, square / tl.maximum(count - 1, 1.0), mask=n < N)
    tl.store(to + INVERSE * N, inverse, mask=n < N)
    tl.store(to + SCALE * N, scale, mask=n < N)
    tl.store(to + SHIFT * N, shift, mask=n < N)


@triton.jit(do_not_specialize=["M"])
def fire_normalised(
    neurons,
    y_ptr,
    M,
    N,
    properties,
    HAS_SKIP: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Activations y [M, N] by the firing rule."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    kept = (m < M)[:, None] & (n < N)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    A, W = load_potentials(neurons, at, kept, properties, WITH_SLOPE)
    A, W, _ = normalised(neurons, A, W, at, kept, n, N, properties, HAS_SKIP, WITH_SLOPE)
    if WITH_SLOPE:
        y, _ = fire(A, W)
    else:
        y = clamp_to_window(A)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit
def differentiate(
    neurons,
    grad_ptr,
    m,
    n,
    last,
    N,
    properties,
    HAS_SKIP: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    SURROGATE: tl.constexpr,
):
    """(offsets, kept, A − mean, W, dA', dW', skip) at rows m; dA' and dW' are 0 from row `last` on."""
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    kept = (m < last)[:, None] & (n < N)[None, :]
    A, W = load_potentials(neurons, at, kept, properties, WITH_SLOPE)
    potential, slope, skip = normalised(neurons, A, W, at, kept, n, N, properties, HAS_SKIP, WITH_SLOPE)
    grad = tl.load(grad_ptr + at, mask=kept, other=0.0).to(tl.float32)
    if WITH_SLOPE:
        y, gain = fire(potential, slope, properties, SURROGATE)
        by_A = grad * at_most(gain, properties.derivative_clip)
        by_W = grad * at_most((1 - properties.split_gradient * y) * gain, properties.derivative_clip)
    else:
        by_A = tl.where((potential <= 0) | (potential >= 1), 0.0, grad)
        by_A = tl.where(potential == potential, by_A, potential)
        by_W = tl.zeros_like(by_A)
    return at, kept, A - load_channels(neurons.statistics, MEAN, n, N), W, by_A, by_W, skip


@triton.jit(do_not_specialize=["M"])
def reduce_gradient(
    neurons,
    grad_ptr,
    parts_ptr,
    grad_skip_ptr,
    M,
    N,
    rows_per_program,
    properties,
    HAS_SKIP: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    SURROGATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each program's sums for dβ and dγ (see `ttfs_kernels.normalised`), parts [programs along M, 2, N] float32.

    HAS_SKIP: also grad_skip [M, N], and as a third sum the gradient of the skip's weights.
    """
    program = tl.program_id(0)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    by_shift = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_scale = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_weight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        at, kept, centred, W, by_A, by_W, skip = differentiate(
            neurons, grad_ptr, m, n, last, N, properties, HAS_SKIP, WITH_SLOPE, SURROGATE
        )
        by_shift += by_A
        by_scale += by_A * centred
        if WITH_SLOPE:
            by_scale += by_W * W
        if HAS_SKIP:
            skip_weight = load_channels(neurons.skip_weight, 0, n, N)
            by_weight += by_A * skip
            grad_skip = by_A * skip_weight
            if WITH_SLOPE:
                by_mask = tl.load(properties.psp_persistence) * by_W
                by_weight += tl.where(skip > 0, by_mask, 0.0)
                grad_skip = at_inputs(grad_skip, by_mask * skip_weight, skip, properties, SURROGATE)
            tl.store(grad_skip_ptr + at, grad_skip.to(grad_skip_ptr.dtype.element_ty), mask=kept)
    SUMS: tl.constexpr = 3 if HAS_SKIP else 2
    to = parts_ptr + program.to(tl.int64) * SUMS * N + n
    inverse = tl.load(neurons.statistics + INVERSE * N + n, mask=n < N, other=0.0)
    tl.store(to, tl.sum(by_shift, axis=0), mask=n < N)
    tl.store(to + N, tl.sum(by_scale, axis=0) * inverse, mask=n < N)
    if HAS_SKIP:
        tl.store(to + 2 * N, tl.sum(by_weight, axis=0), mask=n < N)


@triton.jit(do_not_specialize=["M"])
def spread_gradient(
    neurons,
    grad_ptr,
    sums_ptr,
    h_ptr,
    slope_h_ptr,
    M,
    N,
    properties,
    HAS_SKIP: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    SURROGATE: tl.constexpr,
    PAIR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """h = g·(dA' − shared) and slope_h = σ·g·(dW' − shared), with shared = (dβ + (V − mean)·dγ/√(s² + ε)) / count.

    sums: dβ and dγ [2, N] of the whole batch. PAIR: write slope_h, too, unless it is σ·h.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    at, kept, centred, W, by_A, by_W, _ = differentiate(
        neurons, grad_ptr, m, n, M, N, properties, HAS_SKIP, WITH_SLOPE, SURROGATE
    )
    share = 1 / tl.maximum(load_channels(neurons.statistics, COUNT, n, N), 1.0)  # the count is 0 outside the channels
    spread = load_channels(sums_ptr, 1, n, N) * load_channels(neurons.statistics, INVERSE, n, N)
    shared = (load_channels(sums_ptr, 0, n, N) + (centred + W) * spread) * share
    scale = load_channels(neurons.statistics, SCALE, n, N)
    tl.store(h_ptr + at, (scale * (by_A - shared)).to(h_ptr.dtype.element_ty), mask=kept)
    if PAIR:
        slope_h = tl.load(properties.psp_persistence) * scale * (by_W - shared)
        tl.store(slope_h_ptr + at, slope_h.to(slope_h_ptr.dtype.element_ty), mask=kept)
