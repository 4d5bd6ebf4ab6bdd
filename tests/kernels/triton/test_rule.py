"""The firing rule in Triton equals the firing rule in PyTorch, bit for bit."""

import itertools
import math

import numpy as np
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_rule import border_pairs
from ttfs_kernels.rule import fire
from ttfs_kernels.triton import rule


@triton.jit
def fire_elements(A_ptr, W_ptr, y_ptr, gain_ptr, clamped_ptr, spike_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    A = tl.load(A_ptr + i, mask=i < size, other=0.0)
    y, gain = rule.fire(A, tl.load(W_ptr + i, mask=i < size, other=0.0))
    tl.store(y_ptr + i, y, mask=i < size)
    tl.store(gain_ptr + i, gain, mask=i < size)
    tl.store(clamped_ptr + i, rule.clamp_to_window(A), mask=i < size)
    tl.store(spike_ptr + i, rule.spike_mask(A), mask=i < size)


def assert_same_rule(A: Tensor, W: Tensor, device: torch.device) -> None:
    y, gain, clamped, spikes = (torch.full_like(A, -1, device=device) for _ in range(4))
    results = y, gain, clamped, spikes
    grid = (triton.cdiv(A.numel(), 1024),)
    with np.errstate(all="ignore"):  # NumPy, which interprets, would warn of inf / inf
        fire_elements[grid](A.to(device), W.to(device), *results, A.numel(), BLOCK=1024, enable_fp_fusion=False)
    for ours, theirs in zip((y.cpu(), gain.cpu()), fire(A, W), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        different = (ours.view(torch.int32) != theirs.view(torch.int32)) & ~theirs.isnan()
        assert not different.any(), (A[different], W[different])
    torch.testing.assert_close(clamped.cpu(), A.clamp(0, 1), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(spikes.cpu(), (A > 0).to(A))  # the smallest positive number spikes too, NaN does not


def test_fire_equals_pytorch_at_its_borders(device):
    special = *(sign * value for sign in (1, -1) for value in (0.0, 0.5, 0.3, 2.0, 1e-40, 1e30, math.inf)), math.nan
    pairs = [*border_pairs(np.float32), *itertools.product(special, special)]
    assert_same_rule(*torch.tensor(pairs).t().contiguous(), device)
    assert_same_rule(*torch.randn(2, 50_000), device)


@given(pairs=st.lists(st.tuples(*2 * [st.floats(width=32)]), min_size=1, max_size=100))
def test_fire_equals_pytorch_anywhere(device, pairs):
    assert_same_rule(*torch.tensor(pairs).t().contiguous(), device)
