"""Histograms of spike times against NumPy's, and at borders."""

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from ttfs_triton.hardware.counts.layer_counter import spike_histogram


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 70), st.sampled_from([1, 2, 7, 50, 126, 127, 300]), st.integers(0, 99))
def test_histogram_matches_numpy(samples, neurons, bins, seed):
    torch.manual_seed(seed)
    x = torch.rand(samples, neurons) * (torch.rand(samples, neurons) > 0.4)
    x[x > 0.9] = 1.0
    distance = x.double() * bins
    x[((distance - distance.round()).abs() < 1e-4) & (x < 1)] = 0.0  # float32 may put those on either side
    found = spike_histogram(x, bins)
    expected, _ = np.histogram(x[x > 0].double().numpy(), bins, (0, 1))
    assert found.tolist() == expected[::-1].tolist()
    assert found.sum() == (x > 0).sum()


def test_spike_at_a_border_belongs_to_the_earlier_bin():
    # Times 0, 1/4, 1/2, 3/4 start bins; the time before each is nearer than float32 tells.
    found = spike_histogram(torch.tensor([[1.0, 0.75, 0.5, 0.25]]), 4)
    assert found.tolist() == [2, 1, 1, 0]


def test_smallest_activation_is_a_spike_and_nan_is_none():
    x = torch.tensor([[0.0, torch.finfo(torch.float32).tiny, torch.nan]])
    assert spike_histogram(x, 5).tolist() == [0, 0, 0, 0, 1]


def test_low_precision_is_binned_in_float32():
    # 49.02, and 49 in bfloat16, which is one bin later.
    x = torch.tensor([[0.98046875]], dtype=torch.bfloat16)
    assert spike_histogram(x, 50).tolist()[0] == 1
