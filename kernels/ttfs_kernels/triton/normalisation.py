"""Statistics of a batch for batch norm; `ttfs_kernels.torch_layer` has the formulas.

`statistics` is one float32 tensor [7, N], a row for each of the constants below, of V = A + W, the potential at the
window's end. A new value of σ compiles nothing.
"""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false
import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels.triton import blocks

COUNT = tl.constexpr(0)  # number of values per channel in the whole batch
MEAN = tl.constexpr(1)  # mean of V
SQUARES = tl.constexpr(2)  # Σ (V − mean)²
VARIANCE = tl.constexpr(3)  # unbiased variance
INVERSE = tl.constexpr(4)  # 1/√(s² + ε), of the biased variance s²
SCALE = tl.constexpr(5)  # g
SHIFT = tl.constexpr(6)  # β − g·mean
MOMENTS = tl.constexpr(3)  # the first rows, which can be merged from the same rows of parts of a batch
STATISTICS = 7  # all rows

BLOCK_BYTES = 4096  # of potentials in a block


def statistics_of(
    A: Tensor,
    W: Tensor | None,
    sigma: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    group: ProcessGroup | None,
) -> Tensor:
    """Statistics [7, N] of the potentials A and W [..., N]; with a group, of its processes', merged in rank order."""
    channels = A.shape[-1]
    rows = A.numel() // channels
    grid, share, sizes = blocks.over_rows(rows, channels, BLOCK_BYTES // A.element_size(), few=True)
    parts = A.new_empty((grid[0], MOMENTS.value, channels), dtype=torch.float32)
    if rows:
        blocks.launch(moments, grid, A, W, sigma, parts, rows, channels, share, **sizes)
    statistics = _merged(parts, gamma, beta, epsilon)
    if group is None:
        return statistics
    own = statistics[: MOMENTS.value]
    everyone = own.new_empty(torch.distributed.get_world_size(group), *own.shape)
    torch.distributed.all_gather(list(everyone), own, group=group)
    return _merged(everyone, gamma, beta, epsilon)


def _merged(parts: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """All statistics, merged from the moments of the batch's parts [parts, 3, N]."""
    channels = parts.shape[2]
    statistics = parts.new_empty((STATISTICS, channels))
    arguments = parts, gamma, beta, statistics, len(parts), channels, epsilon
    blocks.launch(merge, (math.ceil(channels / 16),), *arguments, BLOCK_M=64, BLOCK_N=16)
    return statistics


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def moments(
    A_ptr,
    W_ptr,
    sigma_ptr,
    parts_ptr,
    M,
    N,
    rows_per_program,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Count, mean and summed squares of V over each program's rows: parts [programs along M, 3, N] float32.

    Every lane sums squares around its own mean (Welford 1962), so no digits are lost if the mean is far from 0.
    """
    program = tl.program_id(0)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    lane = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mean = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    seen = 0.0
    for start in range(first, last, BLOCK_M):
        m = start + lane
        kept = (m < last)[:, None] & (n < N)[None, :]
        at = m.to(tl.int64)[:, None] * N + n[None, :]
        V = tl.load(A_ptr + at, mask=kept, other=0.0).to(tl.float32)
        if W_ptr is not None:
            V += tl.load(sigma_ptr) * tl.load(W_ptr + at, mask=kept, other=0.0).to(tl.float32)
        seen += 1.0
        before = V - mean
        mean += tl.where(kept, before * (1 / seen), 0.0)
        squares += tl.where(kept, before * (V - mean), 0.0)
    rows = tl.maximum(last - first - lane + BLOCK_M - 1, 0) // BLOCK_M
    store_moments(parts_ptr + program.to(tl.int64) * MOMENTS * N + n, rows[:, None], mean, squares, n, N)


@triton.jit
def store_moments(to, count, mean, squares, n, N):
    """Merge count, mean and summed squares of all lanes (Chan, Golub and LeVeque 1979), store and return them."""
    count = tl.zeros_like(mean) + count
    whole = tl.sum(count, axis=0)
    centre = tl.sum(count * mean, axis=0) / tl.maximum(whole, 1.0)
    apart = mean - centre[None, :]
    total = tl.sum(squares + count * apart * apart, axis=0)
    tl.store(to + COUNT * N, whole, mask=n < N)
    tl.store(to + MEAN * N, centre, mask=n < N)
    tl.store(to + SQUARES * N, total, mask=n < N)
    return whole, centre, total


@triton.jit(do_not_specialize=["parts"])
def merge(
    parts_ptr,
    gamma_ptr,
    beta_ptr,
    statistics_ptr,
    parts,
    N,
    epsilon,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """All statistics of a batch from the moments of its parts [parts, 3, N], merged in an order that never changes."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    counts = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    mean = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, parts, BLOCK_M):
        part = start + tl.arange(0, BLOCK_M)
        at = parts_ptr + part.to(tl.int64)[:, None] * (MOMENTS * N) + n[None, :]
        kept = (part < parts)[:, None] & (n < N)[None, :]
        count = tl.load(at + COUNT * N, mask=kept, other=0.0)
        apart = tl.load(at + MEAN * N, mask=kept, other=0.0) - mean
        counts += count
        share = count / tl.maximum(counts, 1.0)
        mean += share * apart
        squares += tl.load(at + SQUARES * N, mask=kept, other=0.0) + (counts - count) * share * apart * apart
    to = statistics_ptr + n
    count, mean, square = store_moments(to, counts, mean, squares, n, N)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(square / tl.maximum(count, 1.0) + epsilon))
    scale = tl.load(gamma_ptr + n, mask=n < N, other=0.0).to(tl.float32) * inverse
    shift = tl.load(beta_ptr + n, mask=n < N, other=0.0).to(tl.float32) - scale * mean
    tl.store(to + VARIANCE * N, square / tl.maximum(count - 1, 1.0), mask=n < N)
    tl.store(to + INVERSE * N, inverse, mask=n < N)
    tl.store(to + SCALE * N, scale, mask=n < N)
    tl.store(to + SHIFT * N, shift, mask=n < N)
