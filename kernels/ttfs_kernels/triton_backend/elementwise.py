"""Small kernels around the contractions: local gradients, pools, sums over splits."""

# Triton's language is not Python's:
# pyright: reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import at_inputs, at_most


@triton.jit(do_not_specialize=["M"])
def local_gradient(
    grad_ptr,
    y_ptr,
    gain_ptr,
    h_ptr,
    slope_h_ptr,
    bias_sum_ptr,
    winner_ptr,
    skip_ptr,
    skip_weight_ptr,
    grad_skip_ptr,
    skip_weight_sum_ptr,
    M,
    N,
    P,
    Q,
    rows_per_program,
    properties,
    WITH_SLOPE: tl.constexpr,
    WITH_BIAS: tl.constexpr,
    WITH_SLOPE_H: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    SURROGATE: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """h = grad·∂a/∂A, slope_h = σ·grad·∂a/∂W (Eq. 9, 10; both derivatives clipped), and each program's sum of h.

    All [M, N]; bias_sum [programs along M, N] float32. Without slope (σ = 0), ∂a/∂A is 1 where 0 < y < 1. NaN stays
    NaN. A program takes `rows_per_program` rows, BLOCK_M at a time, and sums over them once, after its loop.
    POOL > 1: grad, y, gain and winner [B, P / POOL, Q / POOL, N] have one row per window, and M counts the rows of maps
    [B, P, Q]. Neurons that did not win, or are in no window, get 0.
    HAS_SKIP, not with a pool: also the gradient of the delayed spikes skip [M, N], masked like the gradient of x in
    `conv2d_grad_x`, and each program's sum of their weights' gradient, h·skip + slope_h·[skip > 0].
    """
    program = tl.program_id(0)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if HAS_SKIP:
        skip_weight = tl.load(skip_weight_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        skip_total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        offsets = m.to(tl.int64)[:, None] * N + n[None, :]
        kept = (m < last)[:, None] & (n < N)[None, :]
        sources = offsets
        there = kept
        if POOL > 1:
            window, inside, place = window_of(m, P, Q, POOL)
            sources = window.to(tl.int64)[:, None] * N + n[None, :]
            there &= inside[:, None]
            won = there & (tl.load(winner_ptr + sources, mask=there, other=0) == place[:, None])
        grad = tl.load(grad_ptr + sources, mask=there, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + sources, mask=there, other=0.0).to(tl.float32)
        if POOL > 1:  # after the loads: a mask that differs from channel to channel would make them short
            grad = tl.where(won, grad, 0.0)
            y = tl.where(won, y, 0.0)
        if WITH_SLOPE:
            gain = tl.load(gain_ptr + sources, mask=there, other=0.0).to(tl.float32)
            if POOL > 1:
                gain = tl.where(won, gain, 0.0)
            h = (grad * at_most(gain, properties.derivative_clip)).to(dtype)
            if WITH_SLOPE_H or HAS_SKIP:
                split = 1 - properties.split_gradient * y
                slope_h = grad * at_most(split * gain, properties.derivative_clip)
                slope_h = tl.load(properties.psp_persistence) * slope_h
            if WITH_SLOPE_H:
                tl.store(slope_h_ptr + offsets, slope_h.to(dtype), mask=kept)
        else:
            h = tl.where((y <= 0) | (y >= 1), 0.0, grad)
            h = tl.where(y == y, h, y).to(dtype)
        tl.store(h_ptr + offsets, h, mask=kept)
        if WITH_BIAS:
            total += h.to(tl.float32)
        if HAS_SKIP:
            skip = tl.load(skip_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
            grad_skip = h.to(tl.float32) * skip_weight
            if WITH_SLOPE:
                by_mask = slope_h * skip_weight if SURROGATE else 0.0
                grad_skip = at_inputs(grad_skip, by_mask, skip, properties, SURROGATE)
            tl.store(grad_skip_ptr + offsets, grad_skip.to(dtype), mask=kept)
            skip_total += h.to(tl.float32) * skip
            if WITH_SLOPE:
                skip_total += tl.where(skip > 0, slope_h, 0.0)
    if HAS_SKIP:
        tl.store(skip_weight_sum_ptr + program.to(tl.int64) * N + n, tl.sum(skip_total, axis=0), mask=n < N)
    if WITH_BIAS:
        tl.store(bias_sum_ptr + program.to(tl.int64) * N + n, tl.sum(total, axis=0), mask=n < N)


@triton.jit
def window_of(m, P, Q, POOL: tl.constexpr):
    """(window, whether it exists, place in it) of the neurons at rows m of maps [B, P, Q]."""
    p = (m // Q) % P
    q = m % Q
    window = ((m // (P * Q)) * (P // POOL) + p // POOL) * (Q // POOL) + q // POOL
    return window, (p // POOL < P // POOL) & (q // POOL < Q // POOL), p % POOL * POOL + q % POOL


@triton.jit
def first_of_window(window, P, Q, POOL: tl.constexpr):
    """Row of a window's first neuron in maps [B, P, Q]."""
    rows = P // POOL
    columns = Q // POOL
    return (window // (rows * columns) * P + window // columns % rows * POOL) * Q + window % columns * POOL


@triton.jit(do_not_specialize=["windows"])
def pool_spikes(
    y_ptr,
    gain_ptr,
    pooled_ptr,
    pooled_gain_ptr,
    winner_ptr,
    P,
    Q,
    N,
    windows,
    WITH_GAIN: tl.constexpr,
    WITH_WINNER: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The earliest spike of each window of maps [B, P, Q, N]: [windows, N].

    Chosen as by `torch.nn.functional.max_pool2d`: of equals the first, of NaN the last.
    """
    window = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    kept = (window < windows)[:, None] & (n < N)[None, :]
    first = first_of_window(window, P, Q, POOL).to(tl.int64)[:, None] * N + n[None, :]
    i = window.to(tl.int64)[:, None] * N + n[None, :]
    best = tl.load(y_ptr + first, mask=kept, other=0.0)
    winner = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if WITH_GAIN:
        gain = tl.load(gain_ptr + first, mask=kept, other=0.0)
    for place in tl.static_range(1, POOL * POOL):
        at = first + (place // POOL * Q + place % POOL) * N
        y = tl.load(y_ptr + at, mask=kept, other=0.0)
        wins = (y > best) | (y != y)
        best = tl.where(wins, y, best)
        winner = tl.where(wins, place, winner)
        if WITH_GAIN:
            gain = tl.where(wins, tl.load(gain_ptr + at, mask=kept, other=0.0), gain)
    tl.store(pooled_ptr + i, best, mask=kept)
    if WITH_GAIN:
        tl.store(pooled_gain_ptr + i, gain, mask=kept)
    if WITH_WINNER:
        tl.store(winner_ptr + i, winner.to(tl.uint8), mask=kept)


@triton.jit(do_not_specialize=["splits"])
def sum_splits(parts_ptr, out_ptr, splits, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out = the sum of parts [splits, size] over the splits, ROWS of them at a time, in an order that never changes."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, splits, ROWS):
        row = start + tl.arange(0, ROWS)
        kept = (row < splits)[:, None] & (i < size)[None, :]
        total += tl.load(parts_ptr + row.to(tl.int64)[:, None] * size + i[None, :], mask=kept, other=0.0)
    tl.store(out_ptr + i, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty), mask=i < size)


@triton.jit(do_not_specialize=["splits"])
def sum_grad_x(
    parts_ptr,
    x_ptr,
    grad_x_ptr,
    splits,
    size,
    properties,
    MASKED: tl.constexpr,
    SURROGATE: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of x: the splits of `conv2d_grad_x`, added in their order, which gives the same bits in every run."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = i < size
    total = tl.zeros((BLOCK,), tl.float32)
    by_mask = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(parts_ptr + i, mask=kept, other=0.0)
        parts_ptr += size
        if SURROGATE and not SHARED:
            by_mask += tl.load(parts_ptr + i, mask=kept, other=0.0)
            parts_ptr += size
    if SHARED:
        by_mask = tl.load(properties.psp_persistence) * total
    if MASKED:
        x = tl.load(x_ptr + i, mask=kept, other=0.0)
        total = at_inputs(total, by_mask, x, properties, SURROGATE)
    tl.store(grad_x_ptr + i, total.to(grad_x_ptr.dtype.element_ty), mask=kept)
