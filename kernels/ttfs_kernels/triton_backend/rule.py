"""What kernels share, as blocks of Triton: the firing rule, a step of its two contractions, positions and taps.

The rule is that of `ttfs_kernels.rule`, operation by operation, so that both backends decide alike at the borders.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
import triton
import triton.language as tl

# Forms of the forward contraction: which operand the weights are, and where the spike mask lives.
ACTIVATIONS_FIRST = tl.constexpr(0)  # activations as first operand, mask in registers
WEIGHTS_FIRST = tl.constexpr(1)  # weights as first operand, potentials transposed: channels by positions
STACKED = tl.constexpr(2)  # [activations; mask] stacked along the positions as first operand, one dot


@triton.jit
def at_most(value, bound):
    """The smaller of both; NaN stays NaN, which `tl.minimum` would hide."""
    return tl.where(value > bound, bound, value)


@triton.jit
def fire(A, W, properties=None, SURROGATE: tl.constexpr = False):
    """Activation and gain = ∂a/∂A of a block of neurons (Eq. 7, 9); float32, any shape. NaN stays NaN, in both.

    A: membrane potential at the window's start. W: slope inside the window, times the PSP persistence. SURROGATE: the
    gain of a silent neuron is `silent_derivative` of `ttfs_kernels.rule`, otherwise 0. properties: `Neuron.numbers`.
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
    """Activation of two-phase neurons (σ = 0): A clamped to [0, 1]. NaN stays NaN."""
    A = tl.where(A < 0, 0.0, A)
    return tl.where(A > 1, 1.0, A)


@triton.jit
def spike_mask(x):
    """1 where an input spikes, else 0, in the dtype of x. This form compiles to four instructions for two elements."""
    return tl.where(x > 0, 1.0, 0.0).to(x.dtype)


@triton.jit
def at_inputs(by_activation, by_mask, x, properties, SURROGATE: tl.constexpr):
    """Gradient of inputs: of their activations where they spike, of their mask where a spike may come or go.

    SURROGATE: the mask counts by 1 − x/δ where x < δ, as in `vanishing` of `ttfs_kernels.rule`; otherwise not at all.
    """
    total = tl.where(x <= 0, 0.0, by_activation)
    if SURROGATE:
        total += by_mask * tl.maximum(1 - tl.div_rn(x.to(tl.float32), properties.surrogate_width), 0.0)
    return total


@triton.jit
def fits(value, dtype: tl.constexpr):
    """`value` bounded by the largest float16 if that is how it will be stored: a gain may exceed it."""
    if dtype == tl.float16:
        value = at_most(value, 65504.0)
    return value.to(dtype)


@triton.jit
def zero_potentials(FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Accumulators (A, W) of a block of BLOCK_M positions and BLOCK_N channels, in the shape that FORM wants."""
    if FORM == WEIGHTS_FIRST:
        A = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        W = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    elif FORM == STACKED:
        A = tl.zeros((2 * BLOCK_M, BLOCK_N), tl.float32)
        W = tl.zeros((1, 1), tl.float32)
    else:
        A = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        W = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    return A, W


@triton.jit
def accumulate(x, w, A, W, FORM: tl.constexpr, WITH_SLOPE: tl.constexpr, PRECISION: tl.constexpr):
    """One step: A += w·x, W += w·[x > 0].

    x is [positions, depth] and w [depth, channels]; for WEIGHTS_FIRST w is [channels, depth], x [depth, positions].
    """
    if FORM == WEIGHTS_FIRST:
        A = tl.dot(w, x, A, input_precision=PRECISION)  # first: the mask is made while this runs
        if WITH_SLOPE:
            W = tl.dot(w, spike_mask(x), W, input_precision=PRECISION)
    elif FORM == STACKED:
        rows: tl.constexpr = 2 * x.shape[0]
        stacked = tl.join(x, spike_mask(x)).permute(2, 0, 1).reshape(rows, x.shape[1])
        A = tl.dot(stacked, w, A, input_precision=PRECISION)
    else:
        A = tl.dot(x, w, A, input_precision=PRECISION)
        if WITH_SLOPE:
            W = tl.dot(spike_mask(x), w, W, input_precision=PRECISION)
    return A, W


@triton.jit
def separate(A, W, FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(A, W), both [positions, channels] or, for WEIGHTS_FIRST, [channels, positions]."""
    if FORM == STACKED:
        A, W = tl.split(A.reshape(2, BLOCK_M, BLOCK_N).permute(1, 2, 0))
    return A, W


@triton.jit
def zero_gradients(INPUTS_FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Two accumulators of grad_w: [channels, weights], transposed for INPUTS_FIRST."""
    if INPUTS_FIRST:
        by_x = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        by_mask = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        by_x = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        by_mask = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    return by_x, by_mask


@triton.jit
def contract_rows(h, x, total, INPUTS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """total += h·x over the positions between: h [channels, positions], x [positions, weights], or both transposed."""
    if INPUTS_FIRST:
        total = tl.dot(x, h, total, input_precision=PRECISION)
    else:
        total = tl.dot(h, x, total, input_precision=PRECISION)
    return total


@triton.jit
def earliest(y, gain, AXIS: tl.constexpr, AREA: tl.constexpr):
    """(y, gain, place) of the earliest spike of each window: AREA neighbours along axis AXIS of two dimensions.

    As `torch.nn.functional.max_pool2d` chooses: of equals the first, of NaN the last. y: float32, 0 or more, rounded
    as it will be stored. place: int32, which of the neighbours it was.
    """
    if AXIS == 0:
        windows: tl.constexpr = (y.shape[0] // AREA, AREA, y.shape[1])
    else:
        windows: tl.constexpr = (y.shape[0], y.shape[1] // AREA, AREA)
    y, gain = y.reshape(windows), gain.reshape(windows)
    place = tl.arange(0, AREA)
    if AXIS == 0:
        place = place[None, :, None]
    else:
        place = place[None, None, :]
    # One maximum finds value and place: the bits of floating point numbers from 0 on are ordered as they are.
    bits = tl.where(y > 0, y.to(tl.int32, bitcast=True), 0)
    bits = tl.where(y == y, bits, 0x7FC00000)
    rank = tl.where(y == y, AREA - 1 - place, place)
    key = tl.max(bits.to(tl.int64) * AREA + rank, axis=AXIS + 1)
    y = (key // AREA).to(tl.int32).to(tl.float32, bitcast=True)
    rank = (key % AREA).to(tl.int32)
    winner = tl.where(y == y, AREA - 1 - rank, rank)
    gain = tl.sum(tl.where(place == tl.expand_dims(winner, AXIS + 1), gain, 0.0), axis=AXIS + 1)
    return y, gain, winner


@triton.jit
def store_spikes(
    A,
    W,
    bias_ptr,
    y_ptr,
    gain_ptr,
    m,
    n,
    M,
    N,
    first_channel,
    row_stride,
    properties,
    AXIS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    WITH_GAIN: tl.constexpr,
    SURROGATE: tl.constexpr,
    winner_ptr=None,
    WITH_WINNER: tl.constexpr = False,
    AREA: tl.constexpr = 1,
    skip_ptr=None,
    skip_weight_ptr=None,
    HAS_SKIP: tl.constexpr = False,
    FIRES: tl.constexpr = True,
):
    """Epilogue of both forward kernels: initial potential, delayed spikes, firing rule, stores.

    Without FIRES A is stored in place of y and, WITH_GAIN, W without σ in place of the gain.

    m: positions, along axis AXIS of A. n: channels of the group, along the other axis; `first_channel` is the
    group's first. `row_stride`: channels of all groups. AREA > 1: of AREA neighbouring positions only the earliest
    spike is stored, its gain, and which it was; m are the rows to store, one of AREA. HAS_SKIP (AREA is 1): each neuron
    has a synapse for a spike of `skip`, laid out as y.
    """
    if HAS_BIAS:
        bias = tl.load(bias_ptr + first_channel + n, mask=n < N, other=0.0).to(tl.float32)
        A += tl.expand_dims(bias, AXIS)
    kept = tl.expand_dims(m < M, 1 - AXIS) & tl.expand_dims(n < N, AXIS)
    offsets = tl.expand_dims(m * row_stride, 1 - AXIS) + tl.expand_dims(first_channel + n, AXIS)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if HAS_SKIP:
        skip = tl.load(skip_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
        skip_weight = tl.load(skip_weight_ptr + first_channel + n, mask=n < N, other=0.0).to(tl.float32)
        skip_weight = tl.expand_dims(skip_weight, AXIS)
        A += skip_weight * skip
        if WITH_SLOPE:
            W += tl.where(skip > 0, skip_weight, 0.0)
    if not FIRES:
        y = A
        gain = W
    elif WITH_SLOPE:
        y, gain = fire(A, properties.psp_persistence * W, properties, SURROGATE and WITH_GAIN)
    else:
        y = clamp_to_window(A)
        gain = y
    if AREA > 1:
        y, gain, winner = earliest(y.to(dtype).to(tl.float32), gain, AXIS, AREA)
        if WITH_WINNER:
            tl.store(winner_ptr + offsets, winner.to(tl.uint8), mask=kept)
    if WITH_SLOPE and WITH_GAIN:
        gain = fits(gain, dtype) if FIRES else gain.to(dtype)
        tl.store(gain_ptr + offsets, gain, mask=kept)
    tl.store(y_ptr + offsets, y.to(dtype), mask=kept)


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
    """`size`, which UNIT divides, so that the compiler knows it: Triton itself sees only multiples of 16."""
    return size // UNIT * UNIT


@triton.jit
def at_row(ptr, row, stride):
    """Pointer to a row. Offsets from there fit into 32 bits, however large the tensor is."""
    return ptr + row.to(tl.int64) * stride


@triton.jit
def taps_inside(start, SIZE, TAPS, GAP: tl.constexpr):
    """(first, count, 1 or 0: whether there are any) of the taps with 0 ≤ start + tap·GAP < SIZE.

    Where none of several is inside, one counts all the same, so that no loop runs zero times.
    """
    first = (tl.maximum(-start, 0) + GAP - 1) // GAP
    end = tl.minimum((tl.maximum(SIZE - start, 0) + GAP - 1) // GAP, TAPS)
    some = tl.minimum(tl.maximum(end - first, 0), 1)
    return tl.maximum(tl.minimum(first, TAPS - 1), 0), tl.maximum(end - first, tl.minimum(TAPS, 1)), some


@triton.jit
def positions_inside(start, SIZE, POSITIONS: tl.constexpr, STRIDE: tl.constexpr):
    """(first, count) of the positions with 0 ≤ start + position·STRIDE < SIZE."""
    first = (tl.maximum(-start, 0) + STRIDE - 1) // STRIDE
    end = tl.minimum((tl.maximum(SIZE - start, 0) + STRIDE - 1) // STRIDE, POSITIONS)
    return first, tl.maximum(end - first, 0)
