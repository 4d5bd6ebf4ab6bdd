"""Gradient of a convolution's input as implicit GEMM, masked by the input's spikes."""

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton import common
from ttfs_kernels.triton.blocks import Config, plan
from ttfs_kernels.triton.common import Launcher, at_inputs, at_row, block_position, multiple, taps_inside
from ttfs_kernels.triton.neurons import properties_of
from ttfs_kernels.triton.problem import Problem


def gradient_of_input(
    problem: Problem, pair: Tensor, x: Tensor, weight: Tensor, config: Config, neuron: Neuron
) -> Tensor:
    """Gradient of the activations x, zero at silent inputs if σ > 0; with a surrogate, the mask's is added.

    `pair` [1 or 2, B, P, Q, N] holds the gradients of A and, where they differ, of W.
    """
    out = x.new_empty(x.shape, dtype=pair.dtype)
    slope_h = pair[1] if problem.surrogate and len(pair) == 2 else None
    properties = properties_of(neuron, x if problem.surrogate and slope_h is None else None)
    common.launch(_launcher(problem, config), pair[0], slope_h, weight, x, out, properties)
    return out


@lru_cache(maxsize=1024)
def _launcher(problem: Problem, config: Config) -> Launcher:
    return Launcher(conv2d_grad_x, *plan("grad_x", problem, config))


@triton.jit
def first_tap(position, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr):
    """Smallest tap by which an output position on the stride's grid meets a padded input position; TAPS if none."""
    found = TAPS
    for candidate in tl.static_range(STRIDE if STRIDE < TAPS else TAPS):
        meets = (position - candidate * DILATION) % STRIDE == 0
        found = tl.where(meets & (found == TAPS), candidate, found)
    return found


@triton.jit(do_not_specialize=["B"])
def conv2d_grad_x(
    h_ptr,
    slope_h_ptr,
    w_ptr,
    x_ptr,
    grad_x_ptr,
    properties,
    B,
    H,
    W_in,
    C,
    P,
    Q,
    N,
    G: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MASKED: tl.constexpr,
    SURROGATE: tl.constexpr,
    BY_POSITION: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradient at BLOCK_M inputs of one residue class and BLOCK_N input channels; BLOCK_K output channels per step.

    Program (block, class, group of channels). STEP = stride / gcd(stride, dilation). EVEN: BLOCK_K divides N. MASKED:
    the gradient is 0 at silent inputs. SURROGATE: plus the gradient of the mask, slope_h·w, where a spike may appear or
    vanish; without slope_h, it is σ·h.
    """
    PAIR: tl.constexpr = slope_h_ptr is not None
    C = multiple(C, G.UNIT_C)
    N = multiple(N, G.UNIT_N)
    class_h = tl.program_id(1) // G.STRIDE_W
    class_w = tl.program_id(1) % G.STRIDE_W
    rows = (H - class_h + G.STRIDE_H - 1) // G.STRIDE_H
    columns = (W_in - class_w + G.STRIDE_W - 1) // G.STRIDE_W
    image_blocks = tl.cdiv(B, BLOCK_M)
    images = image_blocks * BLOCK_M if BY_POSITION else B
    M = images * rows * columns
    # The grid covers the largest class, which is class 0.
    largest = images * ((H + G.STRIDE_H - 1) // G.STRIDE_H) * ((W_in + G.STRIDE_W - 1) // G.STRIDE_W)
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
        i = class_h + (((block_m // image_blocks) // columns + G.PAD_H) % rows) * G.STRIDE_H
        j = class_w + (((block_m // image_blocks) + G.PAD_W) % columns) * G.STRIDE_W
        first_image = (block_m % image_blocks) * BLOCK_M
        image = lanes
        kept = lanes < B - first_image
    else:
        m = block_m * BLOCK_M + lanes
        i = class_h + ((m // columns) % rows) * G.STRIDE_H
        j = class_w + (m % columns) * G.STRIDE_W
        first_image = (block_m * BLOCK_M) // (rows * columns)
        image = m // (rows * columns) - first_image
        kept = m < M
    r0 = first_tap(class_h + G.PAD_H, G.R, G.STRIDE_H, G.DILATION_H)
    s0 = first_tap(class_w + G.PAD_W, G.S, G.STRIDE_W, G.DILATION_W)
    taps_h = (G.R - r0 + STEP_H - 1) // STEP_H
    taps_w = (G.S - s0 + STEP_W - 1) // STEP_W
    # Output position that the first tap meets; exact, and may be negative only where i + PAD < r0·DILATION.
    p0 = (i + G.PAD_H - r0 * G.DILATION_H) // G.STRIDE_H
    q0 = (j + G.PAD_W - s0 * G.DILATION_W) // G.STRIDE_W
    P_SHIFT: tl.constexpr = STEP_H * G.DILATION_H // G.STRIDE_H
    Q_SHIFT: tl.constexpr = STEP_W * G.DILATION_W // G.STRIDE_W
    kept_h = kept
    r_first = 0
    s_first = 0
    if BY_POSITION:
        # Output positions are p0 − tap·P_SHIFT: counted from the map's other end, they grow with the tap.
        r_first, taps_h, some_h = taps_inside(P - 1 - p0, P, taps_h, P_SHIFT)
        s_first, taps_w, some_w = taps_inside(Q - 1 - q0, Q, taps_w, Q_SHIFT)
        kept_h = lanes < (B - first_image) * (some_h * some_w)
    channels = N * G.GROUPS
    h_ptr = at_row(h_ptr, first_image, P * Q * channels) + group * N
    if PAIR:
        slope_h_ptr = at_row(slope_h_ptr, first_image, P * Q * channels) + group * N
    h_row = ((image * P + p0) * Q + q0) * channels
    w_ptr = at_row(w_ptr, group * N, G.R * G.S * C) + block_c * BLOCK_N
    w_row = n * (G.R * G.S * C)
    w_stride = tl.full((), G.R * G.S * C, tl.int64)  # steps go through all neurons: 32 bits might not be enough
    c_kept = c < C - block_c * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_mask = tl.zeros((BLOCK_M, BLOCK_N) if PAIR else (1, 1), tl.float32)
    if G.STRIDE_H * G.STRIDE_W == 1:
        tl.assume(taps_h * taps_w > 0)
    tl.assume(N > 0)
    for tap in tl.range(taps_h * taps_w, flatten=True):
        r = r_first + tap // taps_w
        s = s_first + tap % taps_w
        p_shift = r * P_SHIFT
        q_shift = s * Q_SHIFT
        inside = kept_h
        if not BY_POSITION:
            inside &= (p0 >= p_shift) & (p0 - p_shift < P) & (q0 >= q_shift) & (q0 - q_shift < Q)
        for start in range(0, N, BLOCK_K):
            h_kept = inside[:, None]
            w_kept = c_kept[None, :]
            if not EVEN:
                h_kept &= (n < N - start)[None, :]
                w_kept &= (n < N - start)[:, None]
            h_at = (h_row - (p_shift * Q + q_shift) * channels + start)[:, None] + n[None, :]
            w_tap = ((r0 + r * STEP_H) * G.S + s0 + s * STEP_W) * C
            w_at = (w_row + w_tap)[:, None] + c[None, :]
            h = tl.load(h_ptr + h_at, mask=h_kept, other=0.0)
            w = tl.load(w_ptr + start * w_stride + w_at, mask=w_kept, other=0.0)
            total = tl.dot(h, w, total, input_precision=PRECISION)
            if PAIR:
                slope_h = tl.load(slope_h_ptr + h_at, mask=h_kept, other=0.0)
                by_mask = tl.dot(slope_h, w, by_mask, input_precision=PRECISION)
    first = first_image.to(tl.int64) * (H * W_in * C * G.GROUPS) + group * C + block_c * BLOCK_N
    offsets = (((image * H + i) * W_in + j) * (C * G.GROUPS))[:, None] + c[None, :]
    kept_x = kept[:, None] & c_kept[None, :]
    if MASKED:
        x = tl.load(x_ptr + first + offsets, mask=kept_x, other=0.0)
        if SURROGATE and not PAIR:
            by_mask = tl.load(properties.psp_persistence) * total
        total = at_inputs(total, by_mask, x, properties, SURROGATE)
    tl.store(grad_x_ptr + first + offsets, total.to(grad_x_ptr.dtype.element_ty), mask=kept_x)
