"""Positions of a map and the taps that meet it, for the convolution kernels; `work.py` counts the same in Python."""

# Triton's language is not Python's:
# pyright: reportAssignmentType=false
import triton
import triton.language as tl


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
