"""A convolution, and its weight's gradient, as implicit GEMM: receptive fields are addressed, never written out.

A fully connected layer is a 1×1 convolution of 1×1 maps, here and in the gradients.

x is [B, H, W, C_total] (channels last), weight [N_total, R, S, C], C inputs a group; the potentials A = Σ w·x and
W = Σ w·[x > 0] are [B, P, Q, N_total], without initial potentials and σ, which `neurons` adds.
A block is BLOCK_M output positions (m runs over B·P·Q) times BLOCK_N channels of one group; the depth is R·S·C.
BY_POSITION: a block is one position (p, q) of BLOCK_M images instead, and leaves out the taps outside the map.
"""

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton import common
from ttfs_kernels.triton.blocks import Config, plan
from ttfs_kernels.triton.common import (
    Launcher,
    accumulate,
    add_product,
    at_row,
    block_position,
    clamp_to_window,
    fire,
    multiple,
    spike_mask,
    taps_inside,
)
from ttfs_kernels.triton.neurons import MOMENTS, persistence, store_moments, sum_parts
from ttfs_kernels.triton.problem import Problem


def contract(
    problem: Problem, x: Tensor, weight: Tensor, config: Config, dtype: torch.dtype, measured: Neuron | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Potentials (A, W) of a layer in a dtype, [B, P, Q, N], and moments; W is None at σ = 0.

    Moments are those of A + σ·W by block of positions, [blocks, 3, N], with the σ of the neuron `measured`.
    """
    launcher = _launcher("forward", problem, config)
    A, parts, sigma = x.new_empty(problem.out_shape, dtype=dtype), None, None
    W = torch.empty_like(A) if problem.with_slope else None
    if measured is not None:
        row_blocks = launcher.grid[0] // math.ceil(problem.group_outputs / config.block_n)
        parts = x.new_empty((row_blocks, MOMENTS.value, problem.out_channels), dtype=torch.float32)
        sigma = persistence(measured, x) if problem.with_slope else None
    common.launch(launcher, x, weight, A, W, parts, None, None, sigma)
    return A, W, parts


def contract_and_fire(
    problem: Problem, x: Tensor, weight: Tensor, config: Config, bias: Tensor | None, neuron: Neuron
) -> Tensor:
    """Activations [B, P, Q, N] where no gradient is wanted: no potentials are stored."""
    y = x.new_empty(problem.out_shape)
    sigma = persistence(neuron, x) if problem.with_slope else None
    common.launch(_launcher("forward", problem, config), x, weight, None, None, None, y, bias, sigma)
    return y


def gradient_of_weight(problem: Problem, pair: Tensor, x: Tensor, config: Config, neuron: Neuron) -> Tensor:
    """Gradient [N, R, S, C] of the weight.

    `pair` [1 or 2, B, P, Q, N] holds the gradients of A and, where they differ, of W.
    """
    out = x.new_empty((problem.out_channels, *problem.kernel, problem.group_inputs), dtype=pair.dtype)
    if problem.rows == 0:
        return out.zero_()
    launcher = _launcher("grad_w", problem, config)
    splits = launcher.grid[1]
    parts = out if splits == 1 else out.new_empty((splits, out.numel()), dtype=torch.float32)
    slope_h = pair[1] if len(pair) == 2 else None
    sigma = persistence(neuron, x) if problem.shared else None
    common.launch(launcher, pair[0], slope_h, x, parts, sigma)
    return out if splits == 1 else sum_parts(parts, out)


@lru_cache(maxsize=1024)
def _launcher(which: str, problem: Problem, config: Config) -> Launcher:
    return Launcher(conv2d_forward if which == "forward" else conv2d_grad_w, *plan(which, problem, config))


@triton.jit(do_not_specialize=["B"])
def conv2d_forward(
    x_ptr,
    w_ptr,
    A_ptr,
    W_ptr,
    parts_ptr,
    y_ptr,
    bias_ptr,
    sigma_ptr,
    B,
    H,
    W_in,
    C,
    P,
    Q,
    N,
    G: tl.constexpr,
    FEW_CHANNELS: tl.constexpr,
    BY_POSITION: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    INPUTS_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute both potentials of one block; program (block, group of channels).

    With parts_ptr, also the moments of A + σ·W, as stored, over the block: parts [blocks of positions, 3, channels].
    With y_ptr, the neurons fire instead: no gradient is wanted, and potentials stay in registers.
    FEW_CHANNELS: a step runs over the joint index (r, s, c), so that few channels do not leave it mostly empty.
    EVEN: BLOCK_K divides C.
    """
    WITH_SLOPE: tl.constexpr = W_ptr is not None or sigma_ptr is not None
    AXIS: tl.constexpr = 0 if INPUTS_FIRST else 1
    C = multiple(C, G.UNIT_C)
    N = multiple(N, G.UNIT_N)
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
        p = ((block_m // image_blocks) // Q + G.PAD_H) % P
        q = ((block_m // image_blocks) % Q + G.PAD_W) % Q
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
    h0 = p * G.STRIDE_H - G.PAD_H
    w0 = q * G.STRIDE_W - G.PAD_W
    channels = C * G.GROUPS
    x_ptr = at_row(x_ptr, first_image, H * W_in * channels) + group * C
    x_row = ((image * H + h0) * W_in + w0) * channels
    first_channel = group * N + block_n * BLOCK_N
    w_ptr = at_row(w_ptr, first_channel, G.R * G.S * C)
    w_row = n * (G.R * G.S * C)
    n_kept = n < N - block_n * BLOCK_N
    A = tl.zeros((BLOCK_M, BLOCK_N) if INPUTS_FIRST else (BLOCK_N, BLOCK_M), tl.float32)
    W = A
    if FEW_CHANNELS:
        depth = G.R * G.S * C
        tl.assume(depth > 0)
        for start in range(0, depth, BLOCK_K):
            joint = start + k
            tap = joint // C
            r = (tap // G.S) * G.DILATION_H
            s = (tap % G.S) * G.DILATION_W
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
        r_taps = G.R
        s_taps = G.S
        kept_x = kept
        if BY_POSITION:
            r_first, r_taps, some_h = taps_inside(h0, H, G.R, G.DILATION_H)
            s_first, s_taps, some_w = taps_inside(w0, W_in, G.S, G.DILATION_W)
            kept_x = lanes < (B - first_image) * (some_h * some_w)
        tl.assume(r_taps * s_taps > 0)
        tl.assume(C > 0)
        for step in tl.range(r_taps * s_taps, flatten=True):
            tap_h = r_first + step // s_taps
            tap_w = s_first + step % s_taps
            tap = tap_h * G.S + tap_w
            r = tap_h * G.DILATION_H
            s = tap_w * G.DILATION_W
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
    m_kept = row < M
    kept = tl.expand_dims(m_kept, 1 - AXIS) & tl.expand_dims(n_kept, AXIS)
    first = first_row.to(tl.int64) * (N * G.GROUPS) + first_channel
    at = tl.expand_dims(row * (N * G.GROUPS), 1 - AXIS) + tl.expand_dims(n, AXIS)
    if y_ptr is not None:
        if bias_ptr is not None:
            A += tl.expand_dims(tl.load(bias_ptr + first_channel + n, mask=n_kept, other=0.0).to(tl.float32), AXIS)
        y = clamp_to_window(A)
        if sigma_ptr is not None:
            y = fire(A, tl.load(sigma_ptr) * W)
        tl.store(y_ptr + first + at, y.to(y_ptr.dtype.element_ty), mask=kept)
    else:
        A = A.to(A_ptr.dtype.element_ty)
        tl.store(A_ptr + first + at, A, mask=kept)
        if WITH_SLOPE:
            W = W.to(W_ptr.dtype.element_ty)
            tl.store(W_ptr + first + at, W, mask=kept)
        if parts_ptr is not None:
            V = A.to(tl.float32)
            if WITH_SLOPE:
                V += tl.load(sigma_ptr) * W.to(tl.float32)
            count = tl.sum(m_kept.to(tl.float32), axis=0)
            mean = tl.sum(tl.where(kept, V, 0.0), axis=AXIS) / count
            apart = tl.where(kept, V - tl.expand_dims(mean, AXIS), 0.0)
            to = at_row(parts_ptr, block_m * MOMENTS, N * G.GROUPS) + first_channel + n
            store_moments(to, count, mean, tl.sum(apart * apart, axis=AXIS), N * G.GROUPS, n_kept)


@triton.jit(do_not_specialize=["B", "steps_per_split"])
def conv2d_grad_w(
    h_ptr,
    slope_h_ptr,
    x_ptr,
    out_ptr,
    sigma_ptr,
    B,
    H,
    W_in,
    C,
    P: tl.constexpr,
    Q: tl.constexpr,
    N,
    steps_per_split,
    G: tl.constexpr,
    FEW_CHANNELS: tl.constexpr,
    INPUTS_FIRST: tl.constexpr,
    BY_POSITION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradient hᵀ·x + slope_hᵀ·[x > 0] of BLOCK_N weights of BLOCK_M output channels; BLOCK_K positions per step.

    Program (block, split, group of channels). The weights of a block share one tap, or with FEW_CHANNELS run over
    the joint index (r, s, c). P and Q are known at compile time: dividing by them is most of the address arithmetic.
    With sigma_ptr, slope_h is σ·h, and the gradient is hᵀ·(x + σ·[x > 0]).
    """
    AXIS: tl.constexpr = 1 if INPUTS_FIRST else 0
    PAIR: tl.constexpr = slope_h_ptr is not None
    C = multiple(C, G.UNIT_C)
    N = multiple(N, G.UNIT_N)
    M = B * P * Q
    depth = G.R * G.S * C
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
    r = (tap // G.S) * G.DILATION_H - G.PAD_H
    s = (tap % G.S) * G.DILATION_W - G.PAD_W
    image_blocks = tl.cdiv(B, BLOCK_K)
    if BY_POSITION:
        p_first, p_count = positions_inside(r, H, P, G.STRIDE_H)
        q_first, q_count = positions_inside(s, W_in, Q, G.STRIDE_W)
        # A tap that is never inside takes one step that reads nothing: its gradient is 0.
        images = tl.where(p_count * q_count > 0, B, 0)
        p_count = tl.maximum(p_count, 1)
        q_count = tl.maximum(q_count, 1)
    steps = p_count * q_count * image_blocks if BY_POSITION else tl.cdiv(M, BLOCK_K)
    first = split * steps_per_split
    last = tl.minimum(first + steps_per_split, steps)  # not above `first` if the tap has fewer splits: zeros are stored
    if sigma_ptr is not None:
        sigma = tl.load(sigma_ptr).to(x_ptr.dtype.element_ty)
    by_x = tl.zeros((BLOCK_N, BLOCK_M) if INPUTS_FIRST else (BLOCK_M, BLOCK_N), tl.float32)
    by_mask = by_x
    if BY_POSITION:
        next_p = p_first + (first // image_blocks) // q_count
        next_q = q_first + (first // image_blocks) % q_count
        next_image = (first % image_blocks) * BLOCK_K
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
        h_at = tl.expand_dims(row * (N * G.GROUPS) + group * N, AXIS) + tl.expand_dims(n, 1 - AXIS)
        h_kept = tl.expand_dims(kept, AXIS) & tl.expand_dims(n < N, 1 - AXIS)
        h = tl.load(at_row(h_ptr, first_row, N * G.GROUPS) + h_at, mask=h_kept, other=0.0)
        x_kept = tl.expand_dims(kept, 1 - AXIS) & tl.expand_dims(weight_kept, AXIS)
        if FEW_CHANNELS:
            i = tl.expand_dims(p * G.STRIDE_H, 1 - AXIS) + tl.expand_dims(r, AXIS)
            j = tl.expand_dims(q * G.STRIDE_W, 1 - AXIS) + tl.expand_dims(s, AXIS)
            x_kept &= (i >= 0) & (i < H) & (j >= 0) & (j < W_in)
            position = (tl.expand_dims(image * H, 1 - AXIS) + i) * W_in + j
            x_at = position * (C * G.GROUPS) + tl.expand_dims(group * C + c, AXIS)
        else:
            i = p * G.STRIDE_H + r
            j = q * G.STRIDE_W + s
            if not BY_POSITION:
                x_kept &= tl.expand_dims((i >= 0) & (i < H) & (j >= 0) & (j < W_in), 1 - AXIS)
            x_row = ((image * H + i) * W_in + j) * (C * G.GROUPS) + group * C
            x_at = tl.expand_dims(x_row, 1 - AXIS) + tl.expand_dims(c, AXIS)
        x = tl.load(at_row(x_ptr, first_image, H * W_in * C * G.GROUPS) + x_at, mask=x_kept, other=0.0)
        if sigma_ptr is not None:
            x += tl.where(x > 0, sigma, 0.0).to(x.dtype)  # in 16 bits: two elements an instruction
        by_x = add_product(h, x, by_x, INPUTS_FIRST, PRECISION)
        if PAIR:
            slope_h = tl.load(at_row(slope_h_ptr, first_row, N * G.GROUPS) + h_at, mask=h_kept, other=0.0)
            if INPUTS_FIRST:
                by_x = add_product(slope_h, spike_mask(x), by_x, INPUTS_FIRST, PRECISION)
            else:
                by_mask = add_product(slope_h, spike_mask(x), by_mask, INPUTS_FIRST, PRECISION)
    total = by_x + by_mask if PAIR and not INPUTS_FIRST else by_x
    channel = (split * (N * G.GROUPS) + group * N + n).to(tl.int64)
    out_at = tl.expand_dims(channel * depth, 1 - AXIS) + tl.expand_dims(joint, AXIS)
    kept = tl.expand_dims(n < N, 1 - AXIS) & tl.expand_dims(weight_kept, AXIS)
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def positions_inside(start, SIZE, POSITIONS: tl.constexpr, STRIDE: tl.constexpr):
    """(first, count) of the positions with 0 ≤ start + position·STRIDE < SIZE."""
    first = (tl.maximum(-start, 0) + STRIDE - 1) // STRIDE
    end = tl.minimum((tl.maximum(SIZE - start, 0) + STRIDE - 1) // STRIDE, POSITIONS)
    return first, tl.maximum(end - first, 0)
