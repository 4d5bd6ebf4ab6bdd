"""Forward pass of a convolution as implicit GEMM: receptive fields are addressed, never written out.

A fully connected layer is a 1×1 convolution of 1×1 maps, here and in the gradients.

x is [B, H, W, C_total] (channels last), weight [N_total, R, S, C], C inputs a group; the potentials A = Σ w·x and
W = Σ w·[x > 0] are [B, P, Q, N_total], without initial potentials and σ, which `neurons` adds.
A block is BLOCK_M output positions (m runs over B·P·Q) times BLOCK_N channels of one group; the depth is R·S·C.
BY_POSITION: a block is one position (p, q) of BLOCK_M images instead, and leaves out the taps outside the map.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import persistence
from ttfs_kernels.triton import blocks
from ttfs_kernels.triton.blocks import Config
from ttfs_kernels.triton.neurons import MOMENTS, store_moments
from ttfs_kernels.triton.problem import Problem
from ttfs_kernels.triton.rule import accumulate, at_row, block_position, clamp_to_window, fire, multiple, taps_inside


def contract(
    problem: Problem, x: Tensor, weight: Tensor, config: Config, dtype: torch.dtype, measured: Neuron | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Potentials (A, W) of a layer in a dtype, [B, P, Q, N], and moments; W is None at σ = 0.

    Moments are those of A + σ·W over each block of positions, [blocks, 3, N], with the σ of a neuron `measured`.
    """
    A, parts, sigma = x.new_empty(problem.out_shape, dtype=dtype), None, None
    W = torch.empty_like(A) if problem.with_slope else None
    if measured is not None:
        row_blocks = blocks.programs("forward", problem.flat, config) // math.ceil(
            problem.group_outputs / config.block_n
        )
        parts = x.new_empty((row_blocks, MOMENTS.value, problem.out_channels), dtype=torch.float32)
        sigma = persistence(measured, x) if problem.with_slope else None
    _launch(problem, x, weight, config, A, W, parts, None, None, sigma)
    return A, W, parts


def contract_and_fire(
    problem: Problem, x: Tensor, weight: Tensor, config: Config, bias: Tensor | None, neuron: Neuron
) -> Tensor:
    """Activations [B, P, Q, N] where no gradient is wanted: no potentials are stored."""
    y = x.new_empty(problem.out_shape)
    sigma = persistence(neuron, x) if problem.with_slope else None
    _launch(problem, x, weight, config, None, None, None, y, bias, sigma)
    return y


def _launch(problem: Problem, x: Tensor, weight: Tensor, config: Config, *results: Tensor | None) -> None:
    grid, sizes, constants = _plan(problem, config)
    if grid[0]:
        blocks.launch(conv2d_forward, grid, x, weight, *results, *sizes, **constants)


@lru_cache(maxsize=1024)
def _plan(problem: Problem, config: Config) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and constants of the launch."""
    problem = problem.flat
    blocks.check_offsets("forward", problem, config)
    constants = config.options | {
        "G": problem.moves,
        "FEW_CHANNELS": problem.joint_steps,
        "BY_POSITION": blocks.skips(problem, config),
        "EVEN": problem.group_inputs % config.block_k == 0,
        "INPUTS_FIRST": config.inputs_first,
        "GROUP": config.group,
    }
    return (blocks.programs("forward", problem, config), problem.groups), problem.sizes, constants


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
