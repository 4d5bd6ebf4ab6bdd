"""Gradient of a convolution's weight as implicit GEMM, its reduction split among programs."""

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
from ttfs_kernels.triton.neurons import sum_parts
from ttfs_kernels.triton.problem import Problem
from ttfs_kernels.triton.rule import add_product, at_row, multiple, spike_mask


def gradient_of_weight(problem: Problem, pair: Tensor, x: Tensor, config: Config, neuron: Neuron) -> Tensor:
    """Gradient [N, R, S, C] of the weight; `pair` [1 or 2, B, P, Q, N] as in `gradient_of_input`."""
    out = x.new_empty((problem.out_channels, *problem.kernel, problem.group_inputs), dtype=pair.dtype)
    if problem.rows == 0:
        return out.zero_()
    grid, sizes, length, constants = _plan(problem, config)
    parts = out if grid[1] == 1 else out.new_empty((grid[1], out.numel()), dtype=torch.float32)
    slope_h = pair[1] if problem.contractions("grad_w") == 2 else None
    sigma = persistence(neuron, x) if problem.shared else None
    blocks.launch(conv2d_grad_w, grid, pair[0], slope_h, x, parts, *sizes, sigma, length, **constants)
    return out if grid[1] == 1 else sum_parts(parts, out)


@lru_cache(maxsize=1024)
def _plan(problem: Problem, config: Config) -> tuple[tuple[int, int, int], tuple[int, ...], int, dict[str, Any]]:
    """Grid, sizes, steps of a split, and constants of the launch."""
    problem = problem.flat
    blocks.check_offsets("grad_w", problem, config)
    steps, number = blocks.tap_steps(problem, config), blocks.programs("grad_w", problem, config)
    at_once = blocks.slots(problem, config)
    splits, length = blocks.split(steps, number * problem.groups, at_once, config.splits, config.block_k)
    constants = config.options | {
        "G": problem.moves,
        "FEW_CHANNELS": problem.joint_steps,
        "INPUTS_FIRST": config.inputs_first,
        "BY_POSITION": blocks.skips(problem, config),
    }
    return (number * len(steps), splits, problem.groups), problem.sizes, length, constants


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
    P: tl.constexpr,
    Q: tl.constexpr,
    N,
    sigma_ptr,
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
