"""Small kernels around the contractions: local gradients, sums over splits, the rule on finished potentials."""

import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import clamp_to_window, fire, fits


@triton.jit
def local_gradient(
    grad_ptr,
    y_ptr,
    gain_ptr,
    h_ptr,
    late_h_ptr,
    bias_sum_ptr,
    M,
    N,
    persistence,
    clip,
    WITH_SLOPE: tl.constexpr,
    WITH_BIAS: tl.constexpr,
    WITH_LATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """h = grad·∂a/∂A, late_h = σ·grad·∂a/∂W (Eq. 9, 10; both derivatives clipped), and the sums of h over BLOCK_M rows.

    All [M, N]; bias_sum [ceil(M / BLOCK_M), N] float32. Without slope (σ = 0), ∂a/∂A is 1 where 0 < y < 1.
    """
    block = tl.program_id(0)
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = m.to(tl.int64)[:, None] * N + n[None, :]
    kept = (m < M)[:, None] & (n < N)[None, :]
    grad = tl.load(grad_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    if WITH_SLOPE:
        gain = tl.load(gain_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
        h = (grad * tl.minimum(gain, clip)).to(dtype)
        if WITH_LATE:
            late_h = persistence * (grad * tl.minimum((1 - y) * gain, clip))
            tl.store(late_h_ptr + offsets, late_h.to(dtype), mask=kept)
    else:
        h = tl.where((y > 0) & (y < 1), grad, 0.0).to(dtype)
    tl.store(h_ptr + offsets, h, mask=kept)
    if WITH_BIAS:
        sums = tl.sum(h.to(tl.float32), axis=0)
        tl.store(bias_sum_ptr + block.to(tl.int64) * N + n, sums, mask=n < N)


@triton.jit
def sum_splits(parts_ptr, out_ptr, splits, size, BLOCK: tl.constexpr):
    """out = the sum of parts [splits, size] over the splits, in their order: the same bits in every run."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    part = parts_ptr + i
    for _ in range(splits):
        total += tl.load(part, mask=i < size, other=0.0)
        part += size
    tl.store(out_ptr + i, total.to(out_ptr.dtype.element_ty), mask=i < size)


@triton.jit
def stack_mask(x_ptr, stacked_ptr, size, persistence, BLOCK: tl.constexpr):
    """stacked = [x ; σ·[x > 0]] in one pass over x."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0)
    tl.store(stacked_ptr + i, x, mask=i < size)
    spikes = tl.where(x > 0, persistence, 0.0)
    tl.store(stacked_ptr + size + i, spikes.to(stacked_ptr.dtype.element_ty), mask=i < size)


@triton.jit
def fire_potentials(
    A_ptr,
    W_ptr,
    bias_ptr,
    y_ptr,
    gain_ptr,
    size,
    N,
    surrogate_width,
    HAS_BIAS: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    WITH_GAIN: tl.constexpr,
    SURROGATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rule on potentials [M, N] that a library call made; W includes σ."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = i < size
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    A = tl.load(A_ptr + i, mask=kept, other=0.0).to(tl.float32)
    if HAS_BIAS:
        A += tl.load(bias_ptr + i % N, mask=kept, other=0.0).to(tl.float32)
    if WITH_SLOPE:
        W = tl.load(W_ptr + i, mask=kept, other=0.0).to(tl.float32)
        y, gain = fire(A, W, surrogate_width, SURROGATE and WITH_GAIN)
        if WITH_GAIN:
            tl.store(gain_ptr + i, fits(gain, dtype), mask=kept)
    else:
        y = clamp_to_window(A)
    tl.store(y_ptr + i, y.to(dtype), mask=kept)
