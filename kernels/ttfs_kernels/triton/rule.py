"""Triton functions that kernels share: the firing rule, a step of its two contractions, positions and taps.

The rule repeats `ttfs_kernels.rule` operation by operation, so that both backends decide alike at the borders.
"""

import triton
import triton.language as tl


@triton.jit
def at_most(value, bound):
    """The smaller of both; NaN stays NaN, which `tl.minimum` would hide."""
    return tl.where(value > bound, bound, value)


@triton.jit
def bounded(A, W):
    """(1 − A, 1 + W), bounded below as the rule divides them: A ≥ 1 is decided here, however large A and W are."""
    smallest: tl.constexpr = 5.9604644775390625e-08  # distance from 1 to the next smaller float32
    missing = 1 - A
    speed = 1 + W
    return tl.where(missing < 0, 0.0, missing), tl.where(speed < smallest, smallest, speed)


@triton.jit
def fire(A, W):
    """Activation of a block of neurons (Eq. 7); float32, any shape. NaN stays NaN.

    A: membrane potential at the window's start. W: slope inside the window, times the PSP persistence.
    """
    missing, speed = bounded(A, W)
    return 1 - at_most(tl.div_rn(missing, speed), 1.0)


@triton.jit
def derivatives(A, W, properties, SURROGATE: tl.constexpr):
    """∂a/∂A and ∂a/∂W, as of `ttfs_kernels.rule.fire_with_derivatives`; NaN where A or W is.

    The only division is 1/(1 + W). A neuron is silent where 1 − A ≥ 1 + W, as `fire` decides: there alone their
    quotient rounds to 1 or more, but not always the product with the inverse. properties: `Neuron.numbers`.
    """
    missing, speed = bounded(A, W)
    gain = tl.div_rn(1.0, speed)
    crossing = at_most(missing * gain, 1.0)
    by_A = tl.where((crossing <= 0) | (missing >= speed), 0.0, gain)
    by_W = by_A * (crossing * properties.split_gradient + (1 - properties.split_gradient))
    if SURROGATE:
        bound: tl.constexpr = 2.0  # SURROGATE_BOUND of `ttfs_kernels.rule`
        near = (A + (1 + W) - (1 - properties.surrogate_width)) * properties.inverse_width
        near = tl.minimum(tl.maximum(near, 0.0), 1.0) * tl.minimum(gain, bound)
        near = tl.where(missing >= speed, near, 0.0)
        by_A += near
        by_W += near
    by_A = tl.where(crossing == crossing, at_most(by_A, properties.derivative_clip), crossing)
    return by_A, tl.where(crossing == crossing, at_most(by_W, properties.derivative_clip), crossing)


@triton.jit
def clamp_to_window(A):
    """Activation at σ = 0: A clamped to [0, 1]. NaN stays NaN."""
    A = tl.where(A < 0, 0.0, A)
    return tl.where(A > 1, 1.0, A)


@triton.jit
def spike_mask(x):
    """1 where an input spikes, else 0, in the dtype of x. This form compiles to four instructions for two elements."""
    return tl.where(x > 0, 1.0, 0.0).to(x.dtype)


@triton.jit
def at_inputs(by_activation, by_mask, x, properties, SURROGATE: tl.constexpr):
    """Gradient of inputs: `by_activation` where they spike, plus `by_mask` where a spike may appear or vanish.

    SURROGATE: `by_mask` has the factor 1 − x/δ where x < δ, as in `ttfs_kernels.rule.vanishing`; else it is not used.
    """
    total = tl.where(x <= 0, 0.0, by_activation)
    if SURROGATE:
        total += by_mask * tl.maximum(1 - x.to(tl.float32) * properties.inverse_width, 0.0)
    return total


@triton.jit
def add_product(w, x, total, INPUTS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """total += x·w with INPUTS_FIRST, else w·x with all three transposed."""
    if INPUTS_FIRST:
        total = tl.dot(x, w, total, input_precision=PRECISION)
    else:
        total = tl.dot(w, x, total, input_precision=PRECISION)
    return total


@triton.jit
def accumulate(x, w, A, W, INPUTS_FIRST: tl.constexpr, WITH_SLOPE: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the forward pass: A += w·x, W += w·[x > 0].

    x is [positions, depth] and w [depth, channels]; without INPUTS_FIRST both are transposed.
    """
    A = add_product(w, x, A, INPUTS_FIRST, PRECISION)  # first: the mask is made while this runs
    if WITH_SLOPE:
        W = add_product(w, spike_mask(x), W, INPUTS_FIRST, PRECISION)
    return A, W


@triton.jit
def block_position(pid, ROWS, COLUMNS, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a program's block: GROUP rows of blocks are walked column by column, to reuse the cache."""
    row_blocks = tl.cdiv(ROWS, BLOCK_ROWS)
    column_blocks = tl.cdiv(COLUMNS, BLOCK_COLUMNS)
    in_group = GROUP * column_blocks
    first = (pid // in_group) * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    return first + (pid % in_group) % height, (pid % in_group) // height


@triton.jit
def multiple(size, UNIT: tl.constexpr):
    """`size`, written so that the compiler knows that UNIT divides it: Triton itself detects only multiples of 16."""
    return size // UNIT * UNIT


@triton.jit
def load_channels(ptr, ROW: tl.constexpr, n, N):
    """Row ROW of [rows, N] at the channels n, as a row of a block."""
    return tl.load(ptr + ROW * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def at_row(ptr, row, stride):
    """Pointer to a row. Offsets from there fit into 32 bits, however large the tensor is."""
    return ptr + row.to(tl.int64) * stride


@triton.jit
def taps_inside(start, SIZE, TAPS, GAP: tl.constexpr):
    """(first, count, 1 if there are any, else 0) of the taps with 0 ≤ start + tap·GAP < SIZE.

    If there are taps but none is inside, the count is 1 all the same, so that no loop runs zero times.
    """
    first = (tl.maximum(-start, 0) + GAP - 1) // GAP
    end = tl.minimum((tl.maximum(SIZE - start, 0) + GAP - 1) // GAP, TAPS)
    some = tl.minimum(tl.maximum(end - first, 0), 1)
    return tl.maximum(tl.minimum(first, TAPS - 1), 0), tl.maximum(end - first, tl.minimum(TAPS, 1)), some
