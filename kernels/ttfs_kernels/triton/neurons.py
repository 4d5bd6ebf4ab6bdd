"""Kernels between the contractions, which go over a layer's neurons: statistics, firing, differentiation.

A layer without batch norm is one with scale 1, whose shift is its initial potential. Kernels read the potentials that
`forward` stored and never write them: what follows from them is computed in registers, forward and backward.

With batch norm, whose formulas `ttfs_kernels.rule` has, `statistics` is one float32 tensor [7, N], whose rows
are the constants below, of V = A + W, the potential at the window's end. A new value of σ compiles nothing.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels.neuron import Neuron, PlacedNeuron
from ttfs_kernels.triton import common
from ttfs_kernels.triton.common import Launcher, at_inputs, at_row, clamp_to_window, derivatives, fire, load_channels
from ttfs_kernels.triton.problem import LARGEST_UNIT

ELEMENTS = 1024  # elements in a block of the kernels here
TILE = 4096  # 32-bit elements that a program holds at once in a sum over splits
ROW_PROGRAMS = 256  # most programs that sum over rows: two a processor of a large GPU, and one tile adds their sums
FULL_GRID = 128  # programs below which a sum over splits takes smaller blocks: about the processors of a large GPU

COUNT = tl.constexpr(0)  # number of values per channel in the whole batch
MEAN = tl.constexpr(1)  # mean of V
SQUARES = tl.constexpr(2)  # Σ (V − mean)²
VARIANCE = tl.constexpr(3)  # unbiased variance
INVERSE = tl.constexpr(4)  # 1/√(s² + ε), of the biased variance s²
SCALE = tl.constexpr(5)  # g
SHIFT = tl.constexpr(6)  # β − g·mean
MOMENTS = tl.constexpr(3)  # the first rows, which can be merged from the same rows of parts of a batch
STATISTICS = 7  # all rows

MOST_PARTS = 256  # that a program merges: with 16 channels, 48 KiB
LANES = 64  # parts that it merges side by side


class Neurons(NamedTuple):
    """What kernels read of a layer's neurons, one argument of theirs; all but A may be None.

    Attributes:
        A, W: potentials Σ w·x and slopes Σ w·[x > 0], [..., N]; W is None at σ = 0.
        statistics: [7, N] float32, with batch norm.
        bias: [N] initial potentials, without batch norm.
        skip, skip_weight: delayed spikes in the shape of A, one per neuron, and weights [N] of their synapses.
    """

    A: Tensor
    W: Tensor | None
    statistics: Tensor | None
    bias: Tensor | None
    skip: Tensor | None
    skip_weight: Tensor | None


def persistence(neuron: Neuron, like: Tensor) -> Tensor:
    """σ as a float32 scalar on the device of `like`: kernels load it, so that a captured CUDA graph follows it."""
    if isinstance(neuron, PlacedNeuron):
        return neuron.sigma
    return torch.full((), neuron.psp_persistence, dtype=torch.float32, device=like.device)


def properties_of(neuron: Neuron, like: Tensor | None) -> tuple[Any, ...]:
    """The neuron's properties as an argument of kernels; without `like`, and at σ = 0, they do not read σ."""
    if like is None or not neuron.has_slope:
        return neuron.numbers
    return neuron.numbers._replace(psp_persistence=persistence(neuron, like))


def statistics_of(parts: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, group: ProcessGroup | None) -> Tensor:
    """Statistics [7, N] from the moments of a batch's parts; with a group, of its processes', merged in rank order."""
    statistics = _merged(parts, gamma, beta, epsilon)
    if group is None:
        return statistics
    moments = statistics[: MOMENTS.value]
    everyone = moments.new_empty(torch.distributed.get_world_size(group), *moments.shape)
    torch.distributed.all_gather(list(everyone), moments, group=group)
    return _merged(everyone, gamma, beta, epsilon)


def _merged(parts: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """All statistics, merged from moments [parts, 3, N] by programs whose number and order follow from that of parts.

    The 8,192 parts of a large layer take two launches: a single program would read them alone for long.
    """
    channels = parts.shape[2]
    while True:
        programs = max(1, math.ceil(len(parts) / MOST_PARTS))
        last = programs == 1
        out = parts.new_empty((STATISTICS, channels) if last else (programs, MOMENTS.value, channels))
        launcher = _merge_launcher(len(parts), programs, channels)
        common.launch(launcher, parts, out, gamma if last else None, beta, epsilon)
        if last:
            return out
        parts = out


@lru_cache(maxsize=1024)
def _merge_launcher(parts: int, programs: int, channels: int) -> Launcher:
    sizes = {"parts": parts, "N": channels, "SHARE": MOST_PARTS, "BLOCK_M": LANES, "BLOCK_N": 16}
    return Launcher(merge, (programs, math.ceil(channels / 16)), sizes)


def fire_neurons(neurons: Neurons, neuron: Neuron, dtype: torch.dtype) -> Tensor:
    """Activations of the neurons, in the shape of A."""
    y = neurons.A.new_empty(neurons.A.shape, dtype=dtype)
    launcher = _launcher(y.numel() // y.shape[-1], y.shape[-1], ELEMENTS, few=False)
    common.launch(launcher, neurons, y, properties_of(neuron, y))
    return y


def differentiate(
    neurons: Neurons, neuron: Neuron, grad: Tensor, gradients: int, totals: Tensor | None = None, sums: int = 0
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(pair, sums, grad_skip): what the backward pass needs of the neurons; None what is not asked for.

    Args:
        neurons, neuron: the layer.
        grad: gradient of the activations, in the shape of A.
        gradients: 2 for the gradients of A and of Σ w·[x > 0], [2, ...], dtype of `grad`; 1 for that of A; 0 for none.
        totals: dβ and dγ [2, N] over all processes, which the gradients need with batch norm.
        sums: number of sums over the neurons of a channel, float32 [sums, N]: dβ (the gradient of the initial
            potential), with batch norm dγ, and with a skip the gradient of its weight. Then the skip has a gradient.
    """
    rows, channels = math.prod(map(int, grad.shape[:-1])), int(grad.shape[-1])  # a compiler's may be symbols
    launcher = _launcher(rows, channels, ELEMENTS, sums > 0, neuron.has_surrogate)
    parts = grad.new_empty((launcher.grid[0], sums, channels), dtype=torch.float32) if sums else None
    grad_skip = torch.empty_like(neurons.skip) if sums and neurons.skip is not None else None
    pair = grad.new_empty((gradients, *grad.shape)) if gradients else None
    h, slope_h = (pair[i] if pair is not None and i < gradients else None for i in (0, 1))
    common.launch(launcher, neurons, grad, totals, parts, grad_skip, h, slope_h, properties_of(neuron, grad))
    return pair, None if parts is None else sum_parts(parts, parts.new_empty(parts.shape[1:])), grad_skip


@lru_cache(maxsize=1024)
def _launcher(rows: int, channels: int, elements: int, few: bool, surrogate: bool | None = None) -> Launcher:
    """Launcher of `differentiate_rows`, or without `surrogate` of `fire_rows`; a few programs sum over many rows."""
    block_n = min(128, 1 << max(4, (channels - 1).bit_length()))
    block_m = elements // block_n
    share = max(1, math.ceil(rows / (block_m * ROW_PROGRAMS))) * block_m if few else block_m
    grid = math.ceil(rows / share), math.ceil(channels / block_n)
    sizes = {"M": rows, "N": channels, "UNIT": math.gcd(channels, LARGEST_UNIT), "BLOCK_M": block_m, "BLOCK_N": block_n}
    if surrogate is None:
        return Launcher(fire_rows, grid, sizes)
    return Launcher(differentiate_rows, grid, sizes | {"rows_per_program": share, "SURROGATE": surrogate})


def sum_parts(parts: Tensor, out: Tensor) -> Tensor:
    """The sum over splits [splits, ...], in blocks small enough to fill the processors; shapes alone give the order."""
    common.launch(_sum_launcher(parts.shape[0], out.numel()), parts, out)
    return out


@lru_cache(maxsize=1024)
def _sum_launcher(splits: int, size: int) -> Launcher:
    block = ELEMENTS
    while block > 16 and math.ceil(size / block) < FULL_GRID:
        block //= 2
    # ROWS must not depend on the number of splits, which differs by batch size: every ROWS compiles another kernel.
    sizes = {"splits": splits, "size": size, "ROWS": max(1, TILE // block), "BLOCK": block}
    return Launcher(sum_splits, (math.ceil(size / block),), sizes)


@triton.jit
def load_potentials(neurons, row, at, kept, n, N, properties):
    """(A, W, A', W', skip) in float32: potentials, those by which neurons fire, and delayed spikes.

    `at` are offsets from the start of `row`. W includes σ, and is 0 at σ = 0. A' = g·A + β − g·μ or A + b, W' = g·W or
    W, with delayed spikes added.
    """
    A = tl.load(at_row(neurons.A, row, N) + at, mask=kept, other=0.0).to(tl.float32)
    W = tl.zeros_like(A)
    if neurons.W is not None:
        W = tl.load(at_row(neurons.W, row, N) + at, mask=kept, other=0.0).to(tl.float32)
        W *= tl.load(properties.psp_persistence)
    potential = A
    slope = W
    if neurons.statistics is not None:
        scale = load_channels(neurons.statistics, SCALE, n, N)
        potential = A * scale + load_channels(neurons.statistics, SHIFT, n, N)
        slope = W * scale
    if neurons.bias is not None:
        potential += load_channels(neurons.bias, 0, n, N)
    skip = tl.zeros_like(A)
    if neurons.skip is not None:
        skip = tl.load(at_row(neurons.skip, row, N) + at, mask=kept, other=0.0).to(tl.float32)
        skip_weight = load_channels(neurons.skip_weight, 0, n, N)
        potential += skip_weight * skip
        if neurons.W is not None:
            slope += tl.load(properties.psp_persistence) * tl.where(skip > 0, skip_weight, 0.0)
    return A, W, potential, slope, skip


@triton.jit(do_not_specialize=["M"])
def fire_rows(neurons, y_ptr, properties, M, N, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Activations y [M, N] by the firing rule."""
    N = common.multiple(N, UNIT)
    row = tl.program_id(0) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    kept = (row + m < M)[:, None] & (n < N)[None, :]
    at = m[:, None] * N + n[None, :]
    _, _, potential, slope, _ = load_potentials(neurons, row, at, kept, n, N, properties)
    y = clamp_to_window(potential)
    if neurons.W is not None:
        y = fire(potential, slope)
    tl.store(at_row(y_ptr, row, N) + at, y.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def differentiate_rows(
    neurons,
    grad_ptr,
    totals_ptr,
    parts_ptr,
    grad_skip_ptr,
    h_ptr,
    slope_h_ptr,
    properties,
    M,
    N,
    rows_per_program,
    SURROGATE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients of the potentials (Eq. 9, 10; both derivatives clipped), and the programs' sums over their rows.

    dA' and dW' are the gradients of A' and W' of `load_potentials`. With batch norm, h = g·(dA' − shared) and
    slope_h = σ·g·(dW' − shared), with shared = (dβ + (V − mean)·dγ/√(s² + ε)) / count; otherwise h = dA' and
    slope_h = σ·dW'. Sums, parts [programs along M, 1 to 3, N] float32: see `differentiate`.
    """
    N = common.multiple(N, UNIT)
    program = tl.program_id(0)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    by_shift = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_scale = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    by_weight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    m = tl.arange(0, BLOCK_M)
    at = m[:, None] * N + n[None, :]
    for row in range(first, last, BLOCK_M):
        kept = (row + m < last)[:, None] & (n < N)[None, :]
        A, W, potential, slope, skip = load_potentials(neurons, row, at, kept, n, N, properties)
        grad = tl.load(at_row(grad_ptr, row, N) + at, mask=kept, other=0.0).to(tl.float32)
        if neurons.W is not None:
            by_A, by_W = derivatives(potential, slope, properties, SURROGATE)
            by_A *= grad
            by_W *= grad
        else:
            by_A = tl.where((potential <= 0) | (potential >= 1), 0.0, grad)
            by_A = tl.where(potential == potential, by_A, potential)
            by_W = tl.zeros_like(by_A)
        if parts_ptr is not None:
            by_shift += by_A
            if neurons.statistics is not None:
                by_scale += by_A * (A - load_channels(neurons.statistics, MEAN, n, N)) + by_W * W
            if neurons.skip is not None:
                skip_weight = load_channels(neurons.skip_weight, 0, n, N)
                by_weight += by_A * skip
                by_spike = by_A * skip_weight
                if neurons.W is not None:
                    by_mask = tl.load(properties.psp_persistence) * by_W
                    by_weight += tl.where(skip > 0, by_mask, 0.0)
                    by_spike = at_inputs(by_spike, by_mask * skip_weight, skip, properties, SURROGATE)
                tl.store(at_row(grad_skip_ptr, row, N) + at, by_spike.to(grad_skip_ptr.dtype.element_ty), mask=kept)
        if h_ptr is not None:
            if neurons.statistics is not None:
                share = 1 / tl.maximum(load_channels(neurons.statistics, COUNT, n, N), 1.0)  # 0 outside the channels
                spread = load_channels(totals_ptr, 1, n, N) * load_channels(neurons.statistics, INVERSE, n, N) * share
                offset = A - load_channels(neurons.statistics, MEAN, n, N) + W
                shared = load_channels(totals_ptr, 0, n, N) * share + offset * spread
                scale = load_channels(neurons.statistics, SCALE, n, N)
                by_A = scale * (by_A - shared)
                by_W = scale * (by_W - shared)
            tl.store(at_row(h_ptr, row, N) + at, by_A.to(h_ptr.dtype.element_ty), mask=kept)
            if slope_h_ptr is not None:
                slope_h = tl.load(properties.psp_persistence) * by_W
                tl.store(at_row(slope_h_ptr, row, N) + at, slope_h.to(slope_h_ptr.dtype.element_ty), mask=kept)
    if parts_ptr is not None:
        SUMS: tl.constexpr = 1 + (neurons.statistics is not None) + (neurons.skip is not None)
        to = parts_ptr + program.to(tl.int64) * SUMS * N + n
        tl.store(to, tl.sum(by_shift, axis=0), mask=n < N)
        if neurons.statistics is not None:
            inverse = tl.load(neurons.statistics + INVERSE * N + n, mask=n < N, other=0.0)
            tl.store(to + N, tl.sum(by_scale, axis=0) * inverse, mask=n < N)
        if neurons.skip is not None:
            tl.store(to + (SUMS - 1) * N, tl.sum(by_weight, axis=0), mask=n < N)


@triton.jit(do_not_specialize=["splits"])
def sum_splits(parts_ptr, out_ptr, splits, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out = the sum of parts [splits, size] over the splits, ROWS of them at a time, in an order that never changes."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, splits, ROWS):
        row = start + tl.arange(0, ROWS)
        kept = (row < splits)[:, None] & (i < size)[None, :]
        total += tl.load(parts_ptr + row.to(tl.int64)[:, None] * size + i[None, :], mask=kept, other=0.0)
    tl.store(out_ptr + i, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty), mask=i < size)


@triton.jit
def store_moments(to, count, mean, squares, stride, kept):
    """Store count, mean and summed squares of channels, in rows `stride` apart."""
    tl.store(to + COUNT * stride, tl.zeros_like(mean) + count, mask=kept)
    tl.store(to + MEAN * stride, mean, mask=kept)
    tl.store(to + SQUARES * stride, squares, mask=kept)


@triton.jit(do_not_specialize=["parts"])
def merge(
    parts_ptr,
    out_ptr,
    gamma_ptr,
    beta_ptr,
    epsilon,
    parts,
    N,
    SHARE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Merge SHARE of the parts [parts, 3, N] into one, in an order that never changes (Chan, Golub, LeVeque 1979).

    Every lane merges around its own mean, so no digits are lost if the mean is far from 0. With gamma_ptr, which needs
    a single program for a channel, all statistics of the batch follow.
    """
    first = tl.program_id(0) * SHARE
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    counts = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    mean = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = tl.minimum(first + SHARE, parts)
    for start in range(first, last, BLOCK_M):
        part = start + tl.arange(0, BLOCK_M)
        at = parts_ptr + part.to(tl.int64)[:, None] * (MOMENTS * N) + n[None, :]
        kept = (part < last)[:, None] & (n < N)[None, :]
        count = tl.load(at + COUNT * N, mask=kept, other=0.0)
        apart = tl.load(at + MEAN * N, mask=kept, other=0.0) - mean
        counts += count
        share = count / tl.maximum(counts, 1.0)
        mean += share * apart
        squares += tl.load(at + SQUARES * N, mask=kept, other=0.0) + (counts - count) * share * apart * apart
    count = tl.sum(counts, axis=0)
    centre = tl.sum(counts * mean, axis=0) / tl.maximum(count, 1.0)
    apart = mean - centre[None, :]
    square = tl.sum(squares + counts * apart * apart, axis=0)
    to = out_ptr + tl.program_id(0) * MOMENTS * N + n
    store_moments(to, count, centre, square, N, n < N)
    if gamma_ptr is not None:
        inverse = tl.div_rn(1.0, tl.sqrt_rn(square / tl.maximum(count, 1.0) + epsilon))
        scale = tl.load(gamma_ptr + n, mask=n < N, other=0.0).to(tl.float32) * inverse
        shift = tl.load(beta_ptr + n, mask=n < N, other=0.0).to(tl.float32) - scale * centre
        tl.store(to + VARIANCE * N, square / tl.maximum(count - 1, 1.0), mask=n < N)
        tl.store(to + INVERSE * N, inverse, mask=n < N)
        tl.store(to + SCALE * N, scale, mask=n < N)
        tl.store(to + SHIFT * N, shift, mask=n < N)
