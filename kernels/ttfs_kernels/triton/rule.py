"""Triton functions that kernels share: the firing rule, a step of its two contractions, positions and taps.

The rule repeats `ttfs_kernels.rule` operation by operation, so that both backends decide alike at the borders.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
import triton
import triton.language as tl


@triton.jit
def at_most(value, bound):
    """The smaller of both; NaN stays NaN, which `tl.minimum` would hide."""
    return tl.where(value > bound, bound, value)


@triton.jit
def fire(A, W, properties=None, SURROGATE: tl.constexpr = False):
    """Activation and gain = ∂a/∂A of a block of neurons (Eq. 7, 9); float32, any shape. NaN stays NaN, in both.

    A: membrane potential at the window's start. W: slope inside the window, times the PSP persistence. SURROGATE: a
    silent neuron has the gain of `ttfs_kernels.rule.fire_with_derivatives`, else 0. properties: `Neuron.numbers`.
    """
    smallest: tl.constexpr = 5.9604644775390625e-08  # distance from 1 to the next smaller float32
    speed = 1 + W
    if SURROGATE:
        width = properties.surrogate_width
        near = tl.minimum(tl.maximum(tl.div_rn(A + speed - (1 - width), width), 0.0), 1.0)
    speed = tl.where(speed < smallest, smallest, speed)
    missing = 1 - A
    missing = tl.where(missing < 0, 0.0, missing)  # A ≥ 1 is decided here, however large A and W are
    crossing = at_most(tl.div_rn(missing, speed), 1.0)
    gain = tl.div_rn(1.0, speed)
    if SURROGATE:
        bound: tl.constexpr = 2.0  # SURROGATE_BOUND of `ttfs_kernels.rule`
        silent = tl.where(crossing >= 1, near * tl.minimum(gain, bound), 0.0)
    else:
        silent = 0.0
    gain = tl.where((crossing <= 0) | (crossing >= 1), silent, gain)
    return 1 - crossing, tl.where(crossing == crossing, gain, crossing)


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
        total += by_mask * tl.maximum(1 - tl.div_rn(x.to(tl.float32), properties.surrogate_width), 0.0)
    return total


@triton.jit
def zero_pair(TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Two accumulators, [ROWS, COLUMNS] or transposed."""
    if TRANSPOSED:
        first = tl.zeros((COLUMNS, ROWS), tl.float32)
        second = tl.zeros((COLUMNS, ROWS), tl.float32)
    else:
        first = tl.zeros((ROWS, COLUMNS), tl.float32)
        second = tl.zeros((ROWS, COLUMNS), tl.float32)
    return first, second


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
