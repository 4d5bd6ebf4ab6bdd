"""Forward pass of a convolution as implicit GEMM: receptive fields are addressed, never written out.

x is [B, H, W, C_total] (channels last), weight [N_total, R, S, C] with C inputs a group, y and gain [B, P, Q, N_total].
A block is BLOCK_M output positions (m runs over B·P·Q) times BLOCK_N channels of one group; the depth is R·S·C.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import (
    WEIGHTS_FIRST,
    accumulate,
    block_position,
    separate,
    store_spikes,
    zero_potentials,
)


@triton.jit
def conv2d_forward(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    gain_ptr,
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
    WITH_SLOPE: tl.constexpr,
    WITH_GAIN: tl.constexpr,
    SURROGATE: tl.constexpr,
    FEW_CHANNELS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y and gain of one block; program (block, group of channels).

    FEW_CHANNELS: a step runs over the joint index (r, s, c), so that short channels do not leave it mostly empty.
    EVEN: BLOCK_K divides C. WIDE: some offset needs 64 bits.
    """
    AXIS: tl.constexpr = 1 if FORM == WEIGHTS_FIRST else 0
    M = B * P * Q
    block_m, block_n = block_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    group = tl.program_id(1)
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    q = m % Q
    p = (m // Q) % P
    image = m // (P * Q)
    row = m.to(tl.int64) if WIDE else m
    image = image.to(tl.int64) if WIDE else image
    h0 = p * STRIDE_H - PAD_H
    w0 = q * STRIDE_W - PAD_W
    channels = C * GROUPS
    x_row = ((image * H + h0) * W_in + w0) * channels + group * C
    channel = (group * N + n).to(tl.int64) if WIDE else group * N + n
    w_row = channel * (R * S * C)
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
            inside &= tl.expand_dims(m < M, 1 - AXIS) & tl.expand_dims(joint < depth, AXIS)
            shift = (r * W_in + s) * channels + joint % C
            x = tl.load(x_ptr + tl.expand_dims(x_row, 1 - AXIS) + tl.expand_dims(shift, AXIS), mask=inside, other=0.0)
            w_kept = tl.expand_dims(n < N, AXIS) & tl.expand_dims(joint < depth, 1 - AXIS)
            w_at_joint = tl.expand_dims(w_row, AXIS) + tl.expand_dims(joint, 1 - AXIS)
            w = tl.load(w_ptr + w_at_joint, mask=w_kept, other=0.0)
            A, W = accumulate(x, w, A, W, FORM, WITH_SLOPE, PRECISION)
    else:
        tl.assume(C > 0)
        for tap in tl.range(R * S, flatten=True):
            r = (tap // S) * DILATION_H
            s = (tap % S) * DILATION_W
            inside = (m < M) & (h0 + r >= 0) & (h0 + r < H) & (w0 + s >= 0) & (w0 + s < W_in)
            for c in range(0, C, BLOCK_K):
                x_kept = tl.expand_dims(inside, 1 - AXIS)
                w_kept = tl.expand_dims(n < N, AXIS)
                if not EVEN:
                    x_kept &= tl.expand_dims(k < C - c, AXIS)
                    w_kept &= tl.expand_dims(k < C - c, 1 - AXIS)
                x_at = tl.expand_dims(x_row + (r * W_in + s) * channels + c, 1 - AXIS) + tl.expand_dims(k, AXIS)
                w_at_tap = tl.expand_dims(w_row + tap * C + c, AXIS) + tl.expand_dims(k, 1 - AXIS)
                x = tl.load(x_ptr + x_at, mask=x_kept, other=0.0)
                w = tl.load(w_ptr + w_at_tap, mask=w_kept, other=0.0)
                A, W = accumulate(x, w, A, W, FORM, WITH_SLOPE, PRECISION)
    A, W = separate(A, W, FORM, BLOCK_M, BLOCK_N)
    store_spikes(
        A,
        W,
        bias_ptr,
        y_ptr,
        gain_ptr,
        row,
        n,
        M,
        N,
        group * N,
        N * GROUPS,
        properties,
        AXIS,
        HAS_BIAS,
        WITH_SLOPE,
        WITH_GAIN,
        SURROGATE,
    )
