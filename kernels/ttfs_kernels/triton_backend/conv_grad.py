"""Gradients of a convolution as implicit GEMM: of its input, masked by the input's spikes, and of its weight."""

# Triton's language is not Python's:
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import (
    add_product,
    at_inputs,
    at_row,
    block_position,
    multiple,
    positions_inside,
    spike_mask,
    taps_inside,
    zero_pair,
)


@triton.jit
def first_tap(position, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr):
    """Smallest tap by which an output position on the stride's grid meets a padded input position; TAPS if none."""
    found = TAPS
    for candidate in tl.static_range(STRIDE if STRIDE < TAPS else TAPS):
        meets = (position - candidate * DILATION) % STRIDE == 0
        found = tl.where(meets & (found == TAPS), candidate, found)
    return found


@triton.jit(do_not_specialize=["B", "steps_per_split"])
def conv2d_grad_x(
    h_ptr,
    slope_h_ptr,
    w_ptr,
    x_ptr,
    grad_x_ptr,
    B,
    H,
    W_in,
    C,
    P,
    Q,
    N,
    steps_per_split,
    properties,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    GROUPS: tl.constexpr,
    MASKED: tl.constexpr,
    SURROGATE: tl.constexpr,
    SHARED: tl.constexpr,
    SPLIT: tl.constexpr,
    BY_POSITION: tl.constexpr,
    EVEN: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_N: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradient at BLOCK_M inputs of one residue class and BLOCK_N input channels; BLOCK_K output channels per step.

    Program (block, class, group of channels). STEP = stride / gcd(stride, dilation). EVEN: BLOCK_K divides N.
    UNIT_C and UNIT_N divide C and N. MASKED: the gradient is 0 at silent inputs. SURROGATE: plus the gradient of the
    mask, slope_h·w, where a spike may appear or vanish; SHARED: slope_h is σ·h, and is not read.

    SPLIT, for a stride of 1: program (block, split, group) takes `steps_per_split` of the steps. Its sums go to
    parts [splits, ...] float32, or [splits, 2, ...] with two contractions, which `sum_grad_x` adds.
    """
    PAIR: tl.constexpr = SURROGATE and not SHARED
    C = multiple(C, UNIT_C)
    N = multiple(N, UNIT_N)
    class_h = 0 if SPLIT else tl.program_id(1) // STRIDE_W
    class_w = 0 if SPLIT else tl.program_id(1) % STRIDE_W
    split = tl.program_id(1) if SPLIT else 0
    rows = (H - class_h + STRIDE_H - 1) // STRIDE_H
    columns = (W_in - class_w + STRIDE_W - 1) // STRIDE_W
    image_blocks = tl.cdiv(B, BLOCK_M)
    images = image_blocks * BLOCK_M if BY_POSITION else B
    M = images * rows * columns
    # The grid covers the largest class, which is class 0.
    largest = images * ((H + STRIDE_H - 1) // STRIDE_H) * ((W_in + STRIDE_W - 1) // STRIDE_W)
    block_m, block_c = block_position(tl.program_id(0), largest, C, BLOCK_M, BLOCK_N, GROUP)
    if block_m * BLOCK_M >= M:
        return
    group = tl.program_id(2)
    lanes = tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_N)
    n = tl.arange(0, BLOCK_K)
    # Offsets count from the block's first image and first channels.
    if BY_POSITION:
        # Inner positions before those at the edge, which meet fewer taps: the longest programs start first.
        i = class_h + (((block_m // image_blocks) // columns + PAD_H) % rows) * STRIDE_H
        j = class_w + (((block_m // image_blocks) + PAD_W) % columns) * STRIDE_W
        first_image = (block_m % image_blocks) * BLOCK_M
        image = lanes
        kept = lanes < B - first_image
    else:
        m = block_m * BLOCK_M + lanes
        i = class_h + ((m // columns) % rows) * STRIDE_H
        j = class_w + (m % columns) * STRIDE_W
        first_image = (block_m * BLOCK_M) // (rows * columns)
        image = m // (rows * columns) - first_image
        kept = m < M
    r0 = first_tap(class_h + PAD_H, R, STRIDE_H, DILATION_H)
    s0 = first_tap(class_w + PAD_W, S, STRIDE_W, DILATION_W)
    taps_h = (R - r0 + STEP_H - 1) // STEP_H
    taps_w = (S - s0 + STEP_W - 1) // STEP_W
    # Output position that the first tap meets; exact, and may be negative only where i + PAD < r0·DILATION.
    p0 = (i + PAD_H - r0 * DILATION_H) // STRIDE_H
    q0 = (j + PAD_W - s0 * DILATION_W) // STRIDE_W
    P_SHIFT: tl.constexpr = STEP_H * DILATION_H // STRIDE_H
    Q_SHIFT: tl.constexpr = STEP_W * DILATION_W // STRIDE_W
    kept_h = kept
    r_first = 0
    s_first = 0
    if BY_POSITION:
        # Output positions are p0 − tap·P_SHIFT: counted from the map's other end, they grow with the tap.
        r_first, taps_h, some_h = taps_inside(P - 1 - p0, P, taps_h, P_SHIFT)
        s_first, taps_w, some_w = taps_inside(Q - 1 - q0, Q, taps_w, Q_SHIFT)
        kept_h = lanes < (B - first_image) * (some_h * some_w)
    channels = N * GROUPS
    h_ptr = at_row(h_ptr, first_image, P * Q * channels) + group * N
    if PAIR:
        slope_h_ptr = at_row(slope_h_ptr, first_image, P * Q * channels) + group * N
    h_row = ((image * P + p0) * Q + q0) * channels
    w_ptr = at_row(w_ptr, group * N, R * S * C) + block_c * BLOCK_N
    w_row = n * (R * S * C)
    w_stride = tl.full((), R * S * C, tl.int64)  # steps go through all neurons: 32 bits might not be enough
    c_kept = c < C - block_c * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_mask = tl.zeros((BLOCK_M, BLOCK_N) if PAIR else (1, 1), tl.float32)
    if STRIDE_H * STRIDE_W == 1:
        tl.assume(taps_h * taps_w > 0)
    first_n = split * steps_per_split * BLOCK_K if SPLIT else 0
    last_n = tl.minimum(first_n + steps_per_split * BLOCK_K, N) if SPLIT else N
    tl.assume(last_n > first_n)
    for tap in tl.range(taps_h * taps_w, flatten=True):
        r = r_first + tap // taps_w
        s = s_first + tap % taps_w
        p_shift = r * P_SHIFT
        q_shift = s * Q_SHIFT
        inside = kept_h
        if not BY_POSITION:
            inside &= (p0 >= p_shift) & (p0 - p_shift < P) & (q0 >= q_shift) & (q0 - q_shift < Q)
        for start in range(first_n, last_n, BLOCK_K):
            h_kept = inside[:, None]
            w_kept = c_kept[None, :]
            if not EVEN:
                h_kept &= (n < N - start)[None, :]
                w_kept &= (n < N - start)[:, None]
            h_at = (h_row - (p_shift * Q + q_shift) * channels + start)[:, None] + n[None, :]
            w_tap = ((r0 + r * STEP_H) * S + s0 + s * STEP_W) * C
            w_at = (w_row + w_tap)[:, None] + c[None, :]
            h = tl.load(h_ptr + h_at, mask=h_kept, other=0.0)
            w = tl.load(w_ptr + start * w_stride + w_at, mask=w_kept, other=0.0)
            total = tl.dot(h, w, total, input_precision=PRECISION)
            if PAIR:
                slope_h = tl.load(slope_h_ptr + h_at, mask=h_kept, other=0.0)
                by_mask = tl.dot(slope_h, w, by_mask, input_precision=PRECISION)
    first = first_image.to(tl.int64) * (H * W_in * C * GROUPS) + group * C + block_c * BLOCK_N
    offsets = (((image * H + i) * W_in + j) * (C * GROUPS))[:, None] + c[None, :]
    kept_x = kept[:, None] & c_kept[None, :]
    if SPLIT:
        PARTS: tl.constexpr = 2 if PAIR else 1
        part = at_row(grad_x_ptr, split * PARTS * B, H * W_in * C * GROUPS) + first
        tl.store(part + offsets, total, mask=kept_x)
        if PAIR:
            tl.store(at_row(part, B, H * W_in * C * GROUPS) + offsets, by_mask, mask=kept_x)
    else:
        if MASKED:
            x = tl.load(x_ptr + first + offsets, mask=kept_x, other=0.0)
            if SHARED:
                by_mask = tl.load(properties.psp_persistence) * total
            total = at_inputs(total, by_mask, x, properties, SURROGATE)
        tl.store(grad_x_ptr + first + offsets, total.to(grad_x_ptr.dtype.element_ty), mask=kept_x)


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
    properties,
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
    PAIR: tl.constexpr,
    SHARED: tl.constexpr,
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
    """Gradient hᵀ·x + slope_hᵀ·[x > 0] of BLOCK_N weights of BLOCK_M output channels; BLOCK_K positions per step.

    Program (block, split, group of channels). The weights of a block share one tap, or with FEW_CHANNELS run over
    the joint index (r, s, c). P and Q are known at compile time: dividing by them is most of the address arithmetic.
    UNIT_C and UNIT_N divide C and N. PAIR: slope_h is there. SHARED: it is σ·h, and the gradient is hᵀ·(x + σ·[x > 0]).
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
    if SHARED:
        sigma = tl.load(properties.psp_persistence).to(x_ptr.dtype.element_ty)
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
            # Carried from step to step: computing them by divisions would be a sixth of the loop.
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
        if SHARED:
            x += tl.where(x > 0, sigma, 0.0).to(x.dtype)  # in 16 bits: two elements an instruction
        by_x = add_product(h, x, by_x, INPUTS_FIRST, PRECISION)
        if PAIR:
            slope_h = tl.load(at_row(slope_h_ptr, first_row, N * GROUPS) + h_at, mask=h_kept, other=0.0)
            if INPUTS_FIRST:
                by_x = add_product(slope_h, spike_mask(x), by_x, INPUTS_FIRST, PRECISION)
            else:
                by_mask = add_product(slope_h, spike_mask(x), by_mask, INPUTS_FIRST, PRECISION)
    total = by_x + by_mask if PAIR and not INPUTS_FIRST else by_x
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
    """out [size] = the sum of parts [splits, size] in their order; each weight has as many splits as its tap."""
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
