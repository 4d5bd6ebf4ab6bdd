"""Kernels of a fully connected layer, and of 1×1 convolutions: blockwise matrix products.

x is [M, K], weight [N, K], y, gain, h and late_h [M, N]; all contiguous. h and late_h are defined in `gradient.py`.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false
import triton
import triton.language as tl

from ttfs_kernels.triton_backend.rule import (
    WEIGHTS_FIRST,
    accumulate,
    at_inputs,
    block_position,
    contract_rows,
    separate,
    spike_mask,
    store_spikes,
    zero_gradients,
    zero_potentials,
)


@triton.jit
def linear_forward(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    gain_ptr,
    M,
    N,
    K,
    properties,
    HAS_BIAS: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    WITH_GAIN: tl.constexpr,
    SURROGATE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y and gain of BLOCK_M samples and BLOCK_N neurons."""
    AXIS: tl.constexpr = 1 if FORM == WEIGHTS_FIRST else 0
    block_m, block_n = block_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row = m.to(tl.int64) if WIDE else m
    x_tile = x_ptr + tl.expand_dims(row * K, 1 - AXIS) + tl.expand_dims(k, AXIS)
    neuron = n.to(tl.int64) if WIDE else n
    w_tile = w_ptr + tl.expand_dims(neuron * K, AXIS) + tl.expand_dims(k, 1 - AXIS)
    A, W = zero_potentials(FORM, BLOCK_M, BLOCK_N)
    tl.assume(K > 0)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x_kept = tl.expand_dims(m < M, 1 - AXIS) & tl.expand_dims(inside, AXIS)
        w_kept = tl.expand_dims(n < N, AXIS) & tl.expand_dims(inside, 1 - AXIS)
        x = tl.load(x_tile, mask=x_kept, other=0.0)
        w = tl.load(w_tile, mask=w_kept, other=0.0)
        A, W = accumulate(x, w, A, W, FORM, WITH_SLOPE, PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
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
        0,
        N,
        properties,
        AXIS,
        HAS_BIAS,
        WITH_SLOPE,
        WITH_GAIN,
        SURROGATE,
    )


@triton.jit
def linear_grad_x(
    h_ptr,
    late_h_ptr,
    w_ptr,
    x_ptr,
    grad_x_ptr,
    M,
    N,
    K,
    properties,
    MASKED: tl.constexpr,
    SURROGATE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """grad_x = h·w of BLOCK_M samples and BLOCK_N inputs; BLOCK_K is a step over the neurons.

    MASKED: 0 where x is silent. SURROGATE: plus the gradient of the mask, late_h·w, where a spike may come or go.
    """
    block_m, block_k = block_position(tl.program_id(0), M, K, BLOCK_M, BLOCK_N, GROUP)
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = block_k * BLOCK_N + tl.arange(0, BLOCK_N)
    n = tl.arange(0, BLOCK_K)
    row = m.to(tl.int64) if WIDE else m
    h_at = (row * N)[:, None] + n[None, :]
    neuron = n.to(tl.int64) if WIDE else n
    w_tile = w_ptr + (neuron * K)[:, None] + k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_mask = tl.zeros((BLOCK_M, BLOCK_N) if SURROGATE else (1, 1), tl.float32)
    tl.assume(N > 0)
    for start in range(0, N, BLOCK_K):
        inside = n < N - start
        h_kept = (m < M)[:, None] & inside[None, :]
        h = tl.load(h_ptr + h_at, mask=h_kept, other=0.0)
        w = tl.load(w_tile, mask=inside[:, None] & (k < K)[None, :], other=0.0)
        total = tl.dot(h, w, total, input_precision=PRECISION)
        if SURROGATE:
            late_h = tl.load(late_h_ptr + h_at, mask=h_kept, other=0.0)
            by_mask = tl.dot(late_h, w, by_mask, input_precision=PRECISION)
        h_at += BLOCK_K
        w_tile += BLOCK_K * K
    offsets = (row * K)[:, None] + k[None, :]
    kept = (m < M)[:, None] & (k < K)[None, :]
    if MASKED:
        x = tl.load(x_ptr + offsets, mask=kept, other=0.0)
        total = at_inputs(total, by_mask, x, properties, SURROGATE)
    tl.store(grad_x_ptr + offsets, total.to(grad_x_ptr.dtype.element_ty), mask=kept)


@triton.jit
def linear_grad_w(
    h_ptr,
    late_h_ptr,
    x_ptr,
    out_ptr,
    M,
    N,
    K,
    rows_per_split,
    WITH_SLOPE: tl.constexpr,
    TWO_ACCUMULATORS: tl.constexpr,
    INPUTS_FIRST: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One split of grad_w = hᵀ·x + late_hᵀ·[x > 0]: BLOCK_M neurons, BLOCK_N inputs, BLOCK_K samples a step.

    out is [splits, N, K]; split i sums the samples from i·rows_per_split on.
    """
    AXIS: tl.constexpr = 1 if INPUTS_FIRST else 0
    block_n, block_k = block_position(tl.program_id(0), N, K, BLOCK_M, BLOCK_N, GROUP)
    n = block_n * BLOCK_M + tl.arange(0, BLOCK_M)
    k = block_k * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, M)
    by_x, by_mask = zero_gradients(INPUTS_FIRST, BLOCK_M, BLOCK_N)
    tl.assume(last > first)
    for start in range(first, last, BLOCK_K):
        m = start + tl.arange(0, BLOCK_K)
        row = m.to(tl.int64) if WIDE else m
        h_at = tl.expand_dims(row * N, AXIS) + tl.expand_dims(n, 1 - AXIS)
        h_kept = tl.expand_dims(m < last, AXIS) & tl.expand_dims(n < N, 1 - AXIS)
        x_at = tl.expand_dims(row * K, 1 - AXIS) + tl.expand_dims(k, AXIS)
        x_kept = tl.expand_dims(m < last, 1 - AXIS) & tl.expand_dims(k < K, AXIS)
        h = tl.load(h_ptr + h_at, mask=h_kept, other=0.0)
        x = tl.load(x_ptr + x_at, mask=x_kept, other=0.0)
        by_x = contract_rows(h, x, by_x, INPUTS_FIRST, PRECISION)
        if WITH_SLOPE:
            late_h = tl.load(late_h_ptr + h_at, mask=h_kept, other=0.0)
            if TWO_ACCUMULATORS:
                by_mask = contract_rows(late_h, spike_mask(x), by_mask, INPUTS_FIRST, PRECISION)
            else:
                by_x = contract_rows(late_h, spike_mask(x), by_x, INPUTS_FIRST, PRECISION)
    total = by_x + by_mask if TWO_ACCUMULATORS else by_x
    neuron = (split * N + n).to(tl.int64)
    out_at = tl.expand_dims(neuron * K, 1 - AXIS) + tl.expand_dims(k, AXIS)
    kept = tl.expand_dims(n < N, 1 - AXIS) & tl.expand_dims(k < K, AXIS)
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=kept)
