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

MOST_PARTS = 256  # that a program merges: with 16 channels, 48 KiB
LANES = 64  # parts that it merges side by side


def statistics_of(parts: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, group: ProcessGroup | None) -> Tensor:
    """Statistics [7, N] from the moments of a batch's parts; with a group, of its processes', merged in rank order."""
    statistics = _merged(parts, gamma, beta, epsilon)
    if group is None:
        return statistics
    own = statistics[: MOMENTS.value]
    everyone = own.new_empty(torch.distributed.get_world_size(group), *own.shape)
    torch.distributed.all_gather(list(everyone), own, group=group)
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
        arguments = parts, out, gamma if last else None, beta, len(parts), channels, epsilon
        grid = programs, math.ceil(channels / 16)
        blocks.launch(merge, grid, *arguments, SHARE=MOST_PARTS, BLOCK_M=LANES, BLOCK_N=16)
        if last:
            return out
        parts = out


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
    parts,
    N,
    epsilon,
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
