"""Kernels of a fully connected layer, and of 1×1 convolutions: blockwise matrix products.

x is [M, K], weight [N, K], y, gain, h and slope_h [M, N]; all contiguous. `elementwise.py` says what h and slope_h are.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import (
    WEIGHTS_FIRST,
    accumulate,
    at_inputs,
    at_row,
    block_position,
    contract_rows,
    multiple,
    separate,
    spike_mask,
    store_spikes,
    zero_gradients,
    zero_potentials,
)


@triton.jit(do_not_specialize=["M"])
def linear_forward(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    gain_ptr,
    skip_ptr,
    skip_weight_ptr,
    M,
    N,
    K,
    properties,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    FIRES: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    WITH_GAIN: tl.constexpr,
    SURROGATE: tl.constexpr,
    UNIT_N: tl.constexpr,
    UNIT_K: tl.constexpr,
    PRECISION: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y and gain of BLOCK_M samples and BLOCK_N neurons. UNIT_N and UNIT_K divide N and K. skip is laid out as y.

    Without FIRES, A and W without σ in their place.
    """
    AXIS: tl.constexpr = 1 if FORM == WEIGHTS_FIRST else 0
    N = multiple(N, UNIT_N)
    K = multiple(K, UNIT_K)
    block_m, block_n = block_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    # Offsets count from the block's first sample and first neuron.
    first = block_m * BLOCK_M
    first_neuron = block_n * BLOCK_N
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = at_row(x_ptr, first, K) + tl.expand_dims(m * K, 1 - AXIS) + tl.expand_dims(k, AXIS)
    w_tile = at_row(w_ptr, first_neuron, K) + tl.expand_dims(n * K, AXIS) + tl.expand_dims(k, 1 - AXIS)
    A, W = zero_potentials(FORM, BLOCK_M, BLOCK_N)
    tl.assume(K > 0)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x_kept = tl.expand_dims(m < M - first, 1 - AXIS) & tl.expand_dims(inside, AXIS)
        w_kept = tl.expand_dims(n < N - first_neuron, AXIS) & tl.expand_dims(inside, 1 - AXIS)
        x = tl.load(x_tile, mask=x_kept, other=0.0)
        w = tl.load(w_tile, mask=w_kept, other=0.0)
        A, W = accumulate(x, w, A, W, FORM, WITH_SLOPE, PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    A, W = separate(A, W, FORM, BLOCK_M, BLOCK_N)
    if HAS_BIAS:
        bias_ptr += first_neuron
    if WITH_GAIN:
        gain_ptr = at_row(gain_ptr, first, N) + first_neuron
    if HAS_SKIP:
        skip_ptr = at_row(skip_ptr, first, N) + first_neuron
        skip_weight_ptr += first_neuron
    store_spikes(
        A,
        W,
        bias_ptr,
        at_row(y_ptr, first, N) + first_neuron,
        gain_ptr,
        m,
        n,
        M - first,
        N - first_neuron,
        0,
        N,
        properties,
        AXIS,
        HAS_BIAS,
        WITH_SLOPE,
        WITH_GAIN,
        SURROGATE,
        skip_ptr=skip_ptr,
        skip_weight_ptr=skip_weight_ptr,
        HAS_SKIP=HAS_SKIP,
        FIRES=FIRES,
    )


@triton.jit(do_not_specialize=["M", "steps_per_split"])
def linear_grad_x(
    h_ptr,
    slope_h_ptr,
    w_ptr,
    x_ptr,
    grad_x_ptr,
    M,
    N,
    K,
    steps_per_split,
    properties,
    MASKED: tl.constexpr,
    SURROGATE: tl.constexpr,
    SPLIT: tl.constexpr,
    UNIT_N: tl.constexpr,
    UNIT_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """grad_x = h·w of BLOCK_M samples and BLOCK_N inputs; BLOCK_K is a step over the neurons.

    MASKED: 0 where x is silent. SURROGATE: plus the gradient of the mask, slope_h·w, where a spike may come or go.
    SPLIT: program (block, split) takes some of the steps; what it finds goes to parts [splits, M, K] float32, with
    SURROGATE [splits, 2, M, K], for `sum_grad_x`. UNIT_N and UNIT_K divide N and K.
    """
    N = multiple(N, UNIT_N)
    K = multiple(K, UNIT_K)
    block_m, block_k = block_position(tl.program_id(0), M, K, BLOCK_M, BLOCK_N, GROUP)
    split = tl.program_id(1)
    # Offsets count from the block's first sample and first input.
    first = block_m * BLOCK_M
    first_input = block_k * BLOCK_N
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_N)
    n = tl.arange(0, BLOCK_K)
    first_neuron = split * steps_per_split * BLOCK_K if SPLIT else 0
    last_neuron = tl.minimum(first_neuron + steps_per_split * BLOCK_K, N) if SPLIT else N
    h_at = (m * N)[:, None] + (first_neuron + n)[None, :]
    h_ptr = at_row(h_ptr, first, N)
    if SURROGATE:
        slope_h_ptr = at_row(slope_h_ptr, first, N)
    w_tile = at_row(w_ptr, split * steps_per_split * BLOCK_K, K) + first_input + (n * K)[:, None] + k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_mask = tl.zeros((BLOCK_M, BLOCK_N) if SURROGATE else (1, 1), tl.float32)
    tl.assume(last_neuron > first_neuron)
    for start in range(first_neuron, last_neuron, BLOCK_K):
        inside = n < last_neuron - start
        h_kept = (m < M - first)[:, None] & inside[None, :]
        h = tl.load(h_ptr + h_at, mask=h_kept, other=0.0)
        w = tl.load(w_tile, mask=inside[:, None] & (k < K - first_input)[None, :], other=0.0)
        total = tl.dot(h, w, total, input_precision=PRECISION)
        if SURROGATE:
            slope_h = tl.load(slope_h_ptr + h_at, mask=h_kept, other=0.0)
            by_mask = tl.dot(slope_h, w, by_mask, input_precision=PRECISION)
        h_at += BLOCK_K
        w_tile += BLOCK_K * K
    offsets = (m * K)[:, None] + k[None, :]
    kept = (m < M - first)[:, None] & (k < K - first_input)[None, :]
    if SPLIT:
        PARTS: tl.constexpr = 2 if SURROGATE else 1
        tl.store(at_row(grad_x_ptr, split * PARTS * M + first, K) + first_input + offsets, total, mask=kept)
        if SURROGATE:
            by_mask_ptr = at_row(grad_x_ptr, (split * PARTS + 1) * M + first, K) + first_input
            tl.store(by_mask_ptr + offsets, by_mask, mask=kept)
    else:
        if MASKED:
            x = tl.load(at_row(x_ptr, first, K) + first_input + offsets, mask=kept, other=0.0)
            total = at_inputs(total, by_mask, x, properties, SURROGATE)
        grad_x_ptr = at_row(grad_x_ptr, first, K) + first_input
        tl.store(grad_x_ptr + offsets, total.to(grad_x_ptr.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["splits"])
def sum_grad_x(
    parts_ptr,
    x_ptr,
    grad_x_ptr,
    splits,
    size,
    properties,
    MASKED: tl.constexpr,
    SURROGATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The splits of `linear_grad_x`, added in their order: the same bits in every run."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = i < size
    total = tl.zeros((BLOCK,), tl.float32)
    by_mask = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(parts_ptr + i, mask=kept, other=0.0)
        parts_ptr += size
        if SURROGATE:
            by_mask += tl.load(parts_ptr + i, mask=kept, other=0.0)
            parts_ptr += size
    if MASKED:
        x = tl.load(x_ptr + i, mask=kept, other=0.0)
        total = at_inputs(total, by_mask, x, properties, SURROGATE)
    tl.store(grad_x_ptr + i, total.to(grad_x_ptr.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["M", "steps_per_split"])
def linear_grad_w(
    h_ptr,
    slope_h_ptr,
    x_ptr,
    out_ptr,
    M,
    N,
    K,
    steps_per_split,
    WITH_SLOPE: tl.constexpr,
    TWO_ACCUMULATORS: tl.constexpr,
    INPUTS_FIRST: tl.constexpr,
    UNIT_N: tl.constexpr,
    UNIT_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One split of grad_w = hᵀ·x + slope_hᵀ·[x > 0]: BLOCK_M neurons, BLOCK_N inputs, BLOCK_K samples a step.

    out is [splits, N, K]. UNIT_N and UNIT_K divide N and K.
    """
    AXIS: tl.constexpr = 1 if INPUTS_FIRST else 0
    N = multiple(N, UNIT_N)
    K = multiple(K, UNIT_K)
    block_n, block_k = block_position(tl.program_id(0), N, K, BLOCK_M, BLOCK_N, GROUP)
    # Offsets count from the step's first sample and the block's first neuron and input.
    first_neuron = block_n * BLOCK_M
    first_input = block_k * BLOCK_N
    n = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    first = split * steps_per_split
    last = tl.minimum(first + steps_per_split, tl.cdiv(M, BLOCK_K))
    h_at = tl.expand_dims(m * N, AXIS) + tl.expand_dims(n, 1 - AXIS)
    x_at = tl.expand_dims(m * K, 1 - AXIS) + tl.expand_dims(k, AXIS)
    n_kept = tl.expand_dims(n < N - first_neuron, 1 - AXIS)
    k_kept = tl.expand_dims(k < K - first_input, AXIS)
    by_x, by_mask = zero_gradients(INPUTS_FIRST, BLOCK_M, BLOCK_N)
    tl.assume(last > first)
    for step in range(first, last):
        row = step * BLOCK_K
        h_kept = tl.expand_dims(m < M - row, AXIS) & n_kept
        h = tl.load(at_row(h_ptr, row, N) + first_neuron + h_at, mask=h_kept, other=0.0)
        x_kept = tl.expand_dims(m < M - row, 1 - AXIS) & k_kept
        x = tl.load(at_row(x_ptr, row, K) + first_input + x_at, mask=x_kept, other=0.0)
        by_x = contract_rows(h, x, by_x, INPUTS_FIRST, PRECISION)
        if WITH_SLOPE:
            slope_h = tl.load(at_row(slope_h_ptr, row, N) + first_neuron + h_at, mask=h_kept, other=0.0)
            if TWO_ACCUMULATORS:
                by_mask = contract_rows(slope_h, spike_mask(x), by_mask, INPUTS_FIRST, PRECISION)
            else:
                by_x = contract_rows(slope_h, spike_mask(x), by_x, INPUTS_FIRST, PRECISION)
    total = by_x + by_mask if TWO_ACCUMULATORS else by_x
    out_ptr = at_row(out_ptr, split * N + first_neuron, K) + first_input
    out_at = tl.expand_dims(n * K, 1 - AXIS) + tl.expand_dims(k, AXIS)
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=n_kept & k_kept)
