"""Gradient of a convolution's weight as implicit GEMM, split over the output positions.

h and late_h are [B, P, Q, N_total] (`gradient.py`), x [B, H, W, C_total]; out is [splits, N_total, R, S, C].
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import contract_rows, spike_mask, zero_gradients


@triton.jit
def conv2d_grad_w(
    h_ptr,
    late_h_ptr,
    x_ptr,
    out_ptr,
    B,
    H,
    W_in,
    C,
    N,
    rows_per_split,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    GROUPS: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    FEW_CHANNELS: tl.constexpr,
    TWO_ACCUMULATORS: tl.constexpr,
    INPUTS_FIRST: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """hᵀ·x + late_hᵀ·[x > 0] of BLOCK_M output channels and BLOCK_N weights; BLOCK_K positions a step.

    Program (block, split, group of channels). The weights of a block share one tap, or with FEW_CHANNELS run over
    the joint index (r, s, c). P and Q are known at compile time: dividing by them is most of the address arithmetic.
    """
    AXIS: tl.constexpr = 1 if INPUTS_FIRST else 0
    M = B * P * Q
    depth = R * S * C
    blocks_n = tl.cdiv(N, BLOCK_M)
    block_n = tl.program_id(0) % blocks_n
    block_weights = tl.program_id(0) // blocks_n
    split = tl.program_id(1)
    group = tl.program_id(2)
    n = block_n * BLOCK_M + tl.arange(0, BLOCK_M)
    lanes = tl.arange(0, BLOCK_N)
    if FEW_CHANNELS:
        joint = block_weights * BLOCK_N + lanes
        tap = joint // C
        c = joint % C
        weight_kept = joint < depth
    else:
        blocks_c = tl.cdiv(C, BLOCK_N)
        tap = block_weights // blocks_c
        c = (block_weights % blocks_c) * BLOCK_N + lanes
        joint = tap * C + c
        weight_kept = c < C
    r = (tap // S) * DILATION_H - PAD_H
    s = (tap % S) * DILATION_W - PAD_W
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, M)
    by_x, by_mask = zero_gradients(INPUTS_FIRST, BLOCK_M, BLOCK_N)
    tl.assume(last > first)
    for start in range(first, last, BLOCK_K):
        m = start + tl.arange(0, BLOCK_K)
        row = m.to(tl.int64) if WIDE else m
        h_at = tl.expand_dims(row * (N * GROUPS) + group * N, AXIS) + tl.expand_dims(n, 1 - AXIS)
        h_kept = tl.expand_dims(m < last, AXIS) & tl.expand_dims(n < N, 1 - AXIS)
        h = tl.load(h_ptr + h_at, mask=h_kept, other=0.0)
        q = m % Q
        p = (m // Q) % P
        image = m // (P * Q)
        image = image.to(tl.int64) if WIDE else image
        x_kept = tl.expand_dims(m < last, 1 - AXIS) & tl.expand_dims(weight_kept, AXIS)
        if FEW_CHANNELS:
            i = tl.expand_dims(p * STRIDE_H, 1 - AXIS) + tl.expand_dims(r, AXIS)
            j = tl.expand_dims(q * STRIDE_W, 1 - AXIS) + tl.expand_dims(s, AXIS)
            x_kept &= (i >= 0) & (i < H) & (j >= 0) & (j < W_in)
            position = (tl.expand_dims(image * H, 1 - AXIS) + i) * W_in + j
            x_at = position * (C * GROUPS) + tl.expand_dims(group * C + c, AXIS)
        else:
            i = p * STRIDE_H + r
            j = q * STRIDE_W + s
            x_kept &= tl.expand_dims((i >= 0) & (i < H) & (j >= 0) & (j < W_in), 1 - AXIS)
            x_row = ((image * H + i) * W_in + j) * (C * GROUPS) + group * C
            x_at = tl.expand_dims(x_row, 1 - AXIS) + tl.expand_dims(c, AXIS)
        x = tl.load(x_ptr + x_at, mask=x_kept, other=0.0)
        by_x = contract_rows(h, x, by_x, INPUTS_FIRST, PRECISION)
        if WITH_SLOPE:
            late_h = tl.load(late_h_ptr + h_at, mask=h_kept, other=0.0)
            if TWO_ACCUMULATORS:
                by_mask = contract_rows(late_h, spike_mask(x), by_mask, INPUTS_FIRST, PRECISION)
            else:
                by_x = contract_rows(late_h, spike_mask(x), by_x, INPUTS_FIRST, PRECISION)
    total = by_x + by_mask if TWO_ACCUMULATORS else by_x
    channel = (split * (N * GROUPS) + group * N + n).to(tl.int64)
    out_at = tl.expand_dims(channel * depth, 1 - AXIS) + tl.expand_dims(joint, AXIS)
    kept = tl.expand_dims(n < N, 1 - AXIS) & tl.expand_dims(weight_kept, AXIS)
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=kept)
