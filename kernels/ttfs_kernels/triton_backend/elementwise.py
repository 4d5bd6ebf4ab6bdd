"""Small kernels around the contractions: local gradients, sums over splits."""

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
    skip_ptr,
    skip_weight_ptr,
    grad_skip_ptr,
    skip_weight_sum_ptr,
    M,
    N,
    rows_per_program,
    properties,
    WITH_SLOPE: tl.constexpr,
    WITH_BIAS: tl.constexpr,
    WITH_SLOPE_H: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    SURROGATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """h = grad·∂a/∂A, slope_h = σ·grad·∂a/∂W (Eq. 9, 10; both derivatives clipped), and each program's sum of h.

    All [M, N]; bias_sum [programs along M, N] float32. Without slope (σ = 0), ∂a/∂A is 1 where 0 < y < 1. NaN stays
    NaN. A program takes `rows_per_program` rows, BLOCK_M at a time, and sums over them once, after its loop.
    HAS_SKIP: also the gradient of the delayed spikes skip [M, N], masked like the gradient of x in
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
        grad = tl.load(grad_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
        if WITH_SLOPE:
            gain = tl.load(gain_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
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
