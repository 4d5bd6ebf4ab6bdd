"""The firing rule as Triton runs it is the one in PyTorch, bit for bit; and how programs share blocks."""

import itertools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_rule import neighbours
from tests.kernels.triton.common import DTYPES, examples
from ttfs_kernels.rule import fire
from ttfs_kernels.triton_backend import rule

SPECIAL = (0.0, -0.0, 0.5, -0.3, 2.0, 1e-40, -1e-40, 1e30, -1e30, float("inf"), float("-inf"), float("nan"))


@triton.jit
def fire_elements(A_ptr, W_ptr, y_ptr, gain_ptr, clamped_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    A = tl.load(A_ptr + i, mask=i < size, other=0.0)
    y, gain = rule.fire(A, tl.load(W_ptr + i, mask=i < size, other=0.0))
    tl.store(y_ptr + i, y, mask=i < size)
    tl.store(gain_ptr + i, gain, mask=i < size)
    tl.store(clamped_ptr + i, rule.clamp_to_window(A), mask=i < size)


@triton.jit
def spike_elements(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, rule.spike_mask(tl.load(x_ptr + i)))


@triton.jit
def walk_blocks(out_ptr, ROWS, COLUMNS, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    pid = tl.program_id(0)
    row, column = rule.block_position(pid, ROWS, COLUMNS, BLOCK_ROWS, BLOCK_COLUMNS, GROUP)
    tl.store(out_ptr + 2 * pid, row)
    tl.store(out_ptr + 2 * pid + 1, column)


def assert_same_rule(A: Tensor, W: Tensor, device: torch.device) -> None:
    y, gain, clamped = (torch.full_like(A, -1, device=device) for _ in range(3))
    grid = (triton.cdiv(A.numel(), 1024),)
    with np.errstate(all="ignore"):  # NumPy, which interprets, would warn of inf / inf
        fire_elements[grid](A.to(device), W.to(device), y, gain, clamped, A.numel(), BLOCK=1024, enable_fp_fusion=False)
    for ours, theirs in zip((y.cpu(), gain.cpu()), fire(A, W), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        different = (ours.view(torch.int32) != theirs.view(torch.int32)) & ~theirs.isnan()
        assert not different.any(), (A[different], W[different])
    torch.testing.assert_close(clamped.cpu(), A.clamp(0, 1), rtol=0, atol=0, equal_nan=True)


def test_fire_equals_pytorch_at_its_borders(device):
    """A = 1, A + W = 0 and W = -1, each met exactly and missed by a few units in the last place."""
    potentials = [v for centre in (1.0, 0.75, 0.3, 1e-3, 0.0, -0.4, -2.0) for v in neighbours(centre, np.float32)]
    pairs = [
        (A, W)
        for A in (*potentials, *SPECIAL)
        for W in (*neighbours(-A, np.float32), *neighbours(-1.0, np.float32), *SPECIAL)
    ]
    assert_same_rule(*torch.tensor(pairs).t().contiguous(), device)


@given(pairs=st.lists(st.tuples(*2 * [st.floats(width=32)]), min_size=1, max_size=100))
def test_fire_equals_pytorch_anywhere(device, pairs):
    assert_same_rule(*torch.tensor(pairs).t().contiguous(), device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_spike_mask_is_one_where_inputs_spike(device, dtype):
    """The smallest positive number spikes too; NaN does not."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor([0.0, -0.0, smallest, 1.0, float("nan"), -1.0, 0.5, 65000.0], dtype=dtype, device=device)
    mask = torch.full_like(x, -1)
    spike_elements[(1,)](x, mask, BLOCK=8)
    assert torch.equal(mask, (x > 0).to(dtype))


@examples(25)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), block=st.sampled_from([16, 32]), group=st.integers(1, 8))
def test_programs_take_each_block_once(device, rows, columns, block, group):
    shape = triton.cdiv(rows, 16), triton.cdiv(columns, block)
    count = shape[0] * shape[1]
    out = torch.full((count, 2), -1, dtype=torch.int32, device=device)
    walk_blocks[(count,)](out, rows, columns, BLOCK_ROWS=16, BLOCK_COLUMNS=block, GROUP=group)
    assert sorted(map(tuple, out.tolist())) == sorted(itertools.product(*map(range, shape)))
