"""Forward pass of a convolution as implicit GEMM: receptive fields are addressed, never written out.

A fully connected layer is a 1×1 convolution of 1×1 maps, here and in the gradients.

x is [B, H, W, C_total] (channels last), weight [N_total, R, S, C], C inputs per group, y and gain [B, P, Q, N_total].
A block is BLOCK_M output positions (m runs over B·P·Q) times BLOCK_N channels of one group; the depth is R·S·C.
BY_POSITION: a block is one position (p, q) of BLOCK_M images instead, and leaves out the taps outside the map.
HAS_SKIP: skip [B, P, Q, N_total] holds delayed spikes, one per neuron.
Without FIRES, for batch norm, y gets A, and gain gets Σ w·[x > 0]; no skip.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportArgumentType=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import (
    accumulate,
    at_row,
    block_position,
    clamp_to_window,
    fire,
    fits,
    multiple,
    taps_inside,
    zero_pair,
)


@triton.jit(do_not_specialize=["B"])
def conv2d_forward(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    gain_ptr,
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
    SURROGATE: tl.constexpr,
    FEW_CHANNELS: tl.constexpr,
    BY_POSITION: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_N: tl.constexpr,
    PRECISION: tl.constexpr,
    INPUTS_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute y and gain of one block; program (block, group of channels).

    FEW_CHANNELS: a step runs over the joint index (r, s, c), so that few channels do not leave it mostly empty.
    EVEN: BLOCK_K divides C. UNIT_C and UNIT_N divide C and N.
    """
    AXIS: tl.constexpr = 0 if INPUTS_FIRST else 1
    C = multiple(C, UNIT_C)
    N = multiple(N, UNIT_N)
    M = B * P * Q
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
        p = (m // Q) % P
        q = m % Q
        first_image = (block_m * BLOCK_M) // (P * Q)
        image = m // (P * Q) - first_image
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
    A, W = zero_pair(not INPUTS_FIRST, BLOCK_M, BLOCK_N)
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
            A, W = accumulate(x, w, A, W, INPUTS_FIRST, WITH_SLOPE, PRECISION)
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
                A, W = accumulate(x, w, A, W, INPUTS_FIRST, WITH_SLOPE, PRECISION)
    if BY_POSITION:
        first_row = first_image * (P * Q)
        row = tl.where(kept, image * (P * Q) + (p * Q + q), M)
    else:
        first_row = block_m * BLOCK_M
        row = tl.where(lanes < M - first_row, lanes, M)
    kept = tl.expand_dims(row < M, 1 - AXIS) & tl.expand_dims(n_kept, AXIS)
    first = first_row.to(tl.int64) * (N * GROUPS) + first_channel
    at = tl.expand_dims(row * (N * GROUPS), 1 - AXIS) + tl.expand_dims(n, AXIS)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + first_channel + n, mask=n_kept, other=0.0).to(tl.float32)
        A += tl.expand_dims(bias, AXIS)
    if HAS_SKIP:
        skip = tl.load(skip_ptr + first + at, mask=kept, other=0.0).to(tl.float32)
        skip_weight = tl.load(skip_weight_ptr + first_channel + n, mask=n_kept, other=0.0).to(tl.float32)
        skip_weight = tl.expand_dims(skip_weight, AXIS)
        A += skip_weight * skip
        if WITH_SLOPE:
            W += tl.where(skip > 0, skip_weight, 0.0)
    if not FIRES:
        y = A
        gain = W
    elif WITH_SLOPE:
        y, gain = fire(A, tl.load(properties.psp_persistence) * W, properties, SURROGATE and WITH_GAIN)
    else:
        y = clamp_to_window(A)
        gain = y
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if WITH_SLOPE and WITH_GAIN:
        gain = fits(gain, dtype) if FIRES else gain.to(dtype)
        tl.store(gain_ptr + first + at, gain, mask=kept)
    tl.store(y_ptr + first + at, y.to(dtype), mask=kept)
