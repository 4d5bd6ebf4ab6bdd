"""The firing rule in Triton equals the firing rule in PyTorch, bit for bit but for ∂a/∂W."""

import itertools
import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_rule import border_pairs
from ttfs_kernels import Neuron
from ttfs_kernels.rule import EXACT, fire_with_derivatives
from ttfs_kernels.triton import common

NEURONS = EXACT, Neuron(1.0, derivative_clip=3.0, surrogate_width=0.3, split_gradient=0.4)


@triton.jit
def fire_elements(A_ptr, W_ptr, results_ptr, size, properties, SURROGATE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    A = tl.load(A_ptr + i, mask=i < size, other=0.0)
    W = tl.load(W_ptr + i, mask=i < size, other=0.0)
    by_A, by_W = common.derivatives(A, W, properties, SURROGATE)
    tl.store(results_ptr + i, common.fire(A, W), mask=i < size)
    tl.store(results_ptr + size + i, by_A, mask=i < size)
    tl.store(results_ptr + 2 * size + i, by_W, mask=i < size)
    tl.store(results_ptr + 3 * size + i, common.clamp_to_window(A), mask=i < size)
    tl.store(results_ptr + 4 * size + i, common.spike_mask(A), mask=i < size)


def assert_same_rule(A: Tensor, W: Tensor, neuron: Neuron, device: torch.device) -> None:
    results = torch.full((5, A.numel()), -1.0, device=device)
    arguments = A.to(device), W.to(device), results, A.numel(), neuron.numbers, neuron.has_surrogate
    with np.errstate(all="ignore"):  # NumPy, which interprets, would warn of inf / inf
        fire_elements[(triton.cdiv(A.numel(), 1024),)](*arguments, BLOCK=1024, enable_fp_fusion=False)
    y, by_A, by_W, clamped, spikes = results.cpu()
    expected = fire_with_derivatives(A, W, neuron)
    for ours, theirs in zip((y, by_A), expected, strict=False):
        assert torch.equal(ours.isnan(), theirs.isnan())
        different = (ours.view(torch.int32) != theirs.view(torch.int32)) & ~theirs.isnan()
        assert not different.any(), (A[different], W[different])
    # 1 − a is a product by the inverse here, to spare a division.
    torch.testing.assert_close(by_W, expected[2], rtol=2**-21, atol=1e-30, equal_nan=True)
    torch.testing.assert_close(clamped, A.clamp(0, 1), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(spikes, (A > 0).to(A))  # the smallest positive number spikes too, NaN does not


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_rule_equals_pytorch_at_its_borders(device, neuron):
    special = *(sign * value for sign in (1, -1) for value in (0.0, 0.5, 0.3, 2.0, 1e-40, 1e30, math.inf)), math.nan
    pairs = [*border_pairs(np.float32), *itertools.product(special, special)]
    assert_same_rule(*torch.tensor(pairs).t().contiguous(), neuron, device)
    assert_same_rule(*torch.randn(2, 50_000), neuron, device)


@given(pairs=st.lists(st.tuples(*2 * [st.floats(width=32)]), min_size=1, max_size=100), neuron=st.sampled_from(NEURONS))
def test_rule_equals_pytorch_anywhere(device, pairs, neuron):
    assert_same_rule(*torch.tensor(pairs).t().contiguous(), neuron, device)
