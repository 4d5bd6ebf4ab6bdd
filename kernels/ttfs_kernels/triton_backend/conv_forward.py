"""Forward pass of a convolution as implicit GEMM: receptive fields are addressed, never written out.

A fully connected layer is a 1×1 convolution of 1×1 maps, here and in the gradients.

x is [B, H, W, C_total] (channels last), weight [N_total, R, S, C] with C inputs a group, y and gain [B, P, Q, N_total].
A block is BLOCK_M output positions (m runs over B·P·Q) times BLOCK_N channels of one group; the depth is R·S·C.
BY_POSITION: a block is one position (p, q) of BLOCK_M images instead, and leaves out the taps outside the map.
POOL > 1: rows are ordered by windows of POOL × POOL positions, so that a block holds whole windows; of each, y, gain
and winner [B, P / POOL, Q / POOL, N_total] get the earliest spike, its gain, and its place in the window.
HAS_SKIP: skip [B, P, Q, N_total] holds delayed spikes, one a neuron; not with a pool.
Without FIRES, y is A and gain is W without σ, for a rule that waits for statistics of both; no pool, no skip.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import (
    WEIGHTS_FIRST,
    accumulate,
    at_row,
    block_position,
    multiple,
    separate,
    store_spikes,
    taps_inside,
    zero_potentials,
)


@triton.jit(do_not_specialize=["B"])
def conv2d_forward(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    gain_ptr,
    winner_ptr,
    skip_ptr,
    skip_weight_ptr,
    B,
    H,
    W_in,
    C,
    P,
    Q,
    N,
    properties,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    FIRES: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    WITH_GAIN: tl.constexpr,
    WITH_WINNER: tl.constexpr,
    POOL: tl.constexpr,
    SURROGATE: tl.constexpr,
    FEW_CHANNELS: tl.constexpr,
    BY_POSITION: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_N: tl.constexpr,
    PRECISION: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y, gain and winner of one block; program (block, group of channels).

    FEW_CHANNELS: a step runs over the joint index (r, s, c), so that short channels do not leave it mostly empty.
    EVEN: BLOCK_K divides C. UNIT_C and UNIT_N divide C and N.
    """
    AXIS: tl.constexpr = 1 if FORM == WEIGHTS_FIRST else 0
    C = multiple(C, UNIT_C)
    N = multiple(N, UNIT_N)
    AREA: tl.constexpr = POOL * POOL
    rows_passed = P // POOL
    columns_passed = Q // POOL
    M = B * rows_passed * columns_passed * AREA
    image_blocks = tl.cdiv(B, BLOCK_M)
    rows = P * Q * image_blocks * BLOCK_M if BY_POSITION else M
    block_m, block_n = block_position(tl.program_id(0), rows, N, BLOCK_M, BLOCK_N, GROUP)
    group = tl.program_id(1)
    lanes = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Offsets count from the block's first image and first channel.
    if BY_POSITION:
        # Inner positions before those at the edge, which meet fewer taps: the longest programs start first.
        p = ((block_m // image_blocks) // Q + PAD_H) % P
        q = ((block_m // image_blocks) % Q + PAD_W) % Q
        first_image = (block_m % image_blocks) * BLOCK_M
        image = lanes
        kept = lanes < B - first_image
    else:
        m = block_m * BLOCK_M + lanes
        window = m // AREA
        p = (window // columns_passed) % rows_passed * POOL + m % AREA // POOL
        q = window % columns_passed * POOL + m % POOL
        first_image = (block_m * (BLOCK_M // AREA)) // (rows_passed * columns_passed)
        image = window // (rows_passed * columns_passed) - first_image
        kept = m < M
    h0 = p * STRIDE_H - PAD_H
    w0 = q * STRIDE_W - PAD_W
    channels = C * GROUPS
    x_ptr = at_row(x_ptr, first_image, H * W_in * channels) + group * C
    x_row = ((image * H + h0) * W_in + w0) * channels
    first_channel = group * N + block_n * BLOCK_N
    w_ptr = at_row(w_ptr, first_channel, R * S * C)
    w_row = n * (R * S * C)
    n_kept = n < N - block_n * BLOCK_N
    A, W = zero_potentials(FORM, BLOCK_M, BLOCK_N)
    if FEW_CHANNELS:
        depth = R * S * C
        tl.assume(depth > 0)
        for start in range(0, depth, BLOCK_K):
            joint = start + k
            tap = joint // C
            r = (tap // S) * DILATION_H
            s = (tap % S) * DILATION_W
            h = tl.expand_dims(h0, 1 - AXIS) + tl.expand_dims(r, AXIS)
            w_at = tl.expand_dims(w0, 1 - AXIS) + tl.expand_dims(s, AXIS)
            inside = (h >= 0) & (h < H) & (w_at >= 0) & (w_at < W_in)
            inside &= tl.expand_dims(kept, 1 - AXIS) & tl.expand_dims(joint < depth, AXIS)
            shift = (r * W_in + s) * channels + joint % C
            x = tl.load(x_ptr + tl.expand_dims(x_row, 1 - AXIS) + tl.expand_dims(shift, AXIS), mask=inside, other=0.0)
            w_kept = tl.expand_dims(n_kept, AXIS) & tl.expand_dims(joint < depth, 1 - AXIS)
            w_at_joint = tl.expand_dims(w_row, AXIS) + tl.expand_dims(joint, 1 - AXIS)
            w = tl.load(w_ptr + w_at_joint, mask=w_kept, other=0.0)
            A, W = accumulate(x, w, A, W, FORM, WITH_SLOPE, PRECISION)
    else:
        r_first = 0
        s_first = 0
        r_taps = R
        s_taps = S
        kept_x = kept
        if BY_POSITION:
            r_first, r_taps, some_h = taps_inside(h0, H, R, DILATION_H)
            s_first, s_taps, some_w = taps_inside(w0, W_in, S, DILATION_W)
            kept_x = lanes < (B - first_image) * (some_h * some_w)
        tl.assume(r_taps * s_taps > 0)
        tl.assume(C > 0)
        for step in tl.range(r_taps * s_taps, flatten=True):
            tap_h = r_first + step // s_taps
            tap_w = s_first + step % s_taps
            tap = tap_h * S + tap_w
            r = tap_h * DILATION_H
            s = tap_w * DILATION_W
            inside = kept_x
            if not BY_POSITION:
                inside &= (h0 + r >= 0) & (h0 + r < H) & (w0 + s >= 0) & (w0 + s < W_in)
            for c in range(0, C, BLOCK_K):
                x_kept = tl.expand_dims(inside, 1 - AXIS)
                w_kept = tl.expand_dims(n_kept, AXIS)
                if not EVEN:
                    x_kept &= tl.expand_dims(k < C - c, AXIS)
                    w_kept &= tl.expand_dims(k < C - c, 1 - AXIS)
                x_at = tl.expand_dims(x_row + (r * W_in + s) * channels + c, 1 - AXIS) + tl.expand_dims(k, AXIS)
                w_at_tap = tl.expand_dims(w_row + tap * C + c, AXIS) + tl.expand_dims(k, 1 - AXIS)
                x = tl.load(x_ptr + x_at, mask=x_kept, other=0.0)
                w = tl.load(w_ptr + w_at_tap, mask=w_kept, other=0.0)
                A, W = accumulate(x, w, A, W, FORM, WITH_SLOPE, PRECISION)
    A, W = separate(A, W, FORM, BLOCK_M, BLOCK_N)
    if BY_POSITION:
        row = tl.where(kept, image * (P * Q) + (p * Q + q), M)
        first_row = first_image * (P * Q)
    else:
        first_row = block_m * (BLOCK_M // AREA)
        row = tl.arange(0, BLOCK_M // AREA)
        row = tl.where(row < M // AREA - first_row, row, M)
    if HAS_BIAS:
        bias_ptr += first_channel
    if WITH_GAIN:
        gain_ptr = at_row(gain_ptr, first_row, N * GROUPS) + first_channel
    if WITH_WINNER:
        winner_ptr = at_row(winner_ptr, first_row, N * GROUPS) + first_channel
    if HAS_SKIP:
        skip_ptr = at_row(skip_ptr, first_row, N * GROUPS) + first_channel
        skip_weight_ptr += first_channel
    store_spikes(
        A,
        W,
        bias_ptr,
        at_row(y_ptr, first_row, N * GROUPS) + first_channel,
        gain_ptr,
        row,
        n,
        M,
        N - block_n * BLOCK_N,
        0,
        N * GROUPS,
        properties,
        AXIS,
        HAS_BIAS,
        WITH_SLOPE,
        WITH_GAIN,
        SURROGATE,
        winner_ptr,
        WITH_WINNER,
        AREA,
        skip_ptr,
        skip_weight_ptr,
        HAS_SKIP,
        FIRES,
    )
