"""Gradient of a convolution's weight as implicit GEMM, split over the output positions.

h and slope_h are [B, P, Q, N_total] (`elementwise.py`), x [B, H, W, C_total]; out is [splits, N_total, R, S, C].

BY_POSITION: a step is one position of BLOCK_K images, and a tap has steps only where it is inside the map. Taps then
have splits of one length but not equally many; `sum_tap_splits` adds those that there are. Not with FEW_CHANNELS,
where the weights of a block have several taps.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import (
    add_product,
    at_row,
    multiple,
    positions_inside,
    spike_mask,
    zero_pair,
)


@triton.jit(do_not_specialize=["B", "steps_per_split"])
def conv2d_grad_w(
    h_ptr,
    slope_h_ptr,
    x_ptr,
    out_ptr,
    B,
    H,
    W_in,
    C,
    N,
    steps_per_split,
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
    INPUTS_FIRST: tl.constexpr,
    BY_POSITION: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_N: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """hᵀ·x + slope_hᵀ·[x > 0] of BLOCK_M output channels and BLOCK_N weights; BLOCK_K positions a step.

    Program (block, split, group of channels). The weights of a block share one tap, or with FEW_CHANNELS run over
    the joint index (r, s, c). P and Q are known at compile time: dividing by them is most of the address arithmetic.
    UNIT_C and UNIT_N divide C and N.
    """
    AXIS: tl.constexpr = 1 if INPUTS_FIRST else 0
    C = multiple(C, UNIT_C)
    N = multiple(N, UNIT_N)
    M = B * P * Q
    depth = R * S * C
    blocks_n = tl.cdiv(N, BLOCK_M)
    block_n = tl.program_id(0) % blocks_n
    block_weights = tl.program_id(0) // blocks_n
    split = tl.program_id(1)
    group = tl.program_id(2)
    n = block_n * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
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
    image_blocks = tl.cdiv(B, BLOCK_K)
    if BY_POSITION:
        p_first, p_count = positions_inside(r, H, P, STRIDE_H)
        q_first, q_count = positions_inside(s, W_in, Q, STRIDE_W)
        # A tap that is never inside takes one step that reads nothing: its gradient is 0.
        images = tl.where(p_count * q_count > 0, B, 0)
        p_count = tl.maximum(p_count, 1)
        q_count = tl.maximum(q_count, 1)
    steps = p_count * q_count * image_blocks if BY_POSITION else tl.cdiv(M, BLOCK_K)
    first = split * steps_per_split
    if first >= steps:
        return
    last = tl.minimum(first + steps_per_split, steps)
    by_x, by_mask = zero_pair(INPUTS_FIRST, BLOCK_M, BLOCK_N)
    if BY_POSITION:
        next_p = p_first + (first // image_blocks) // q_count
        next_q = q_first + (first // image_blocks) % q_count
        next_image = (first % image_blocks) * BLOCK_K
    tl.assume(last > first)
    for step in range(first, last):
        if BY_POSITION:
            p = next_p
            q = next_q
            first_image = next_image
            # Carried on: as divisions they would be a sixth of the loop.
            next_image = tl.where(first_image + BLOCK_K < B, first_image + BLOCK_K, 0)
            next_q = tl.where(next_image > 0, q, q + 1)
            next_p = tl.where(next_q < q_first + q_count, p, p + 1)
            next_q = tl.where(next_q < q_first + q_count, next_q, q_first)
            image = k
            kept = k < images - first_image
            row = image * (P * Q) + (p * Q + q)
            first_row = first_image * (P * Q)
        else:
            m = step * BLOCK_K + k
            p = (m // Q) % P
            q = m % Q
            first_image = (step * BLOCK_K) // (P * Q)
            image = m // (P * Q) - first_image
            kept = m < M
            row = k
            first_row = step * BLOCK_K
        h_at = tl.expand_dims(row * (N * GROUPS) + group * N, AXIS) + tl.expand_dims(n, 1 - AXIS)
        h_kept = tl.expand_dims(kept, AXIS) & tl.expand_dims(n < N, 1 - AXIS)
        h = tl.load(at_row(h_ptr, first_row, N * GROUPS) + h_at, mask=h_kept, other=0.0)
        x_kept = tl.expand_dims(kept, 1 - AXIS) & tl.expand_dims(weight_kept, AXIS)
        if FEW_CHANNELS:
            i = tl.expand_dims(p * STRIDE_H, 1 - AXIS) + tl.expand_dims(r, AXIS)
            j = tl.expand_dims(q * STRIDE_W, 1 - AXIS) + tl.expand_dims(s, AXIS)
            x_kept &= (i >= 0) & (i < H) & (j >= 0) & (j < W_in)
            position = (tl.expand_dims(image * H, 1 - AXIS) + i) * W_in + j
            x_at = position * (C * GROUPS) + tl.expand_dims(group * C + c, AXIS)
        else:
            i = p * STRIDE_H + r
            j = q * STRIDE_W + s
            if not BY_POSITION:
                x_kept &= tl.expand_dims((i >= 0) & (i < H) & (j >= 0) & (j < W_in), 1 - AXIS)
            x_row = ((image * H + i) * W_in + j) * (C * GROUPS) + group * C
            x_at = tl.expand_dims(x_row, 1 - AXIS) + tl.expand_dims(c, AXIS)
        x = tl.load(at_row(x_ptr, first_image, H * W_in * C * GROUPS) + x_at, mask=x_kept, other=0.0)
        by_x = add_product(h, x, by_x, INPUTS_FIRST, PRECISION)
        if WITH_SLOPE:
            slope_h = tl.load(at_row(slope_h_ptr, first_row, N * GROUPS) + h_at, mask=h_kept, other=0.0)
            if INPUTS_FIRST:
                by_x = add_product(slope_h, spike_mask(x), by_x, INPUTS_FIRST, PRECISION)
            else:
                by_mask = add_product(slope_h, spike_mask(x), by_mask, INPUTS_FIRST, PRECISION)
    total = by_x + by_mask if WITH_SLOPE and not INPUTS_FIRST else by_x
    channel = (split * (N * GROUPS) + group * N + n).to(tl.int64)
    out_at = tl.expand_dims(channel * depth, 1 - AXIS) + tl.expand_dims(joint, AXIS)
    kept = tl.expand_dims(n < N, 1 - AXIS) & tl.expand_dims(weight_kept, AXIS)
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["B", "splits", "steps_per_split"])
def sum_tap_splits(
    parts_ptr,
    out_ptr,
    B,
    H,
    W_in,
    C,
    splits,
    size,
    steps_per_split,
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
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [size] = the sum of parts [splits, size] in their order: of each weight those splits that its tap has."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tap = (i // C % (R * S)).to(tl.int32)
    p_count = positions_inside((tap // S) * DILATION_H - PAD_H, H, P, STRIDE_H)[1]
    q_count = positions_inside((tap % S) * DILATION_W - PAD_W, W_in, Q, STRIDE_W)[1]
    steps = tl.maximum(p_count, 1) * tl.maximum(q_count, 1) * tl.cdiv(B, BLOCK_K)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        kept = (i < size) & (split * steps_per_split < steps)
        total += tl.load(parts_ptr + i, mask=kept, other=0.0)
        parts_ptr += size
    tl.store(out_ptr + i, total.to(out_ptr.dtype.element_ty), mask=i < size)
