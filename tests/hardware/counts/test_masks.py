"""Sums eight neurons at a time against sums one by one."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ttfs_triton.hardware.counts.masks import WORDS, SpikeMasks, add_bytes


def activations(samples, neurons, seed):
    """Silent, late, early and saturated neurons, and the smallest activation there is."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.rand(samples, neurons, generator=generator)
    some[some < 0.3] = 0.0
    some[some > 0.8] = 1.0
    some[some == some.median()] = torch.finfo(torch.float32).tiny
    return some


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 600), st.integers(1, 60), st.integers(1, WORDS), st.integers(0, 99), st.sampled_from(["f32", "bf16"])
)
def test_sums_match_those_one_by_one(samples, neurons, size, seed, kind):
    x = activations(samples, neurons, seed).to(torch.float32 if kind == "f32" else torch.bfloat16)
    spikes = torch.full((neurons,), 7)
    masks = SpikeMasks(size, spikes)
    assert len(masks) == size
    fired, saturated = torch.empty(2, samples, masks.groups, dtype=torch.int64)
    for rows in torch.arange(samples).split(size):
        if len(rows):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            masks.add(x[part], fired[part], saturated[part])
    masks.flush()
    masks.flush()  # nothing is left
    assert torch.equal(spikes - 7, (x > 0).sum(0))
    assert torch.equal(add_bytes(fired).sum(1), (x > 0).sum(1))
    assert torch.equal(add_bytes(saturated).sum(1), (x == 1).sum(1))


@pytest.mark.parametrize("neurons", [8 * WORDS, 8 * WORDS + 1, 12_544, 65_536])
def test_large_layers_do_not_run_over(neurons):
    spikes = torch.zeros(neurons, dtype=torch.int64)
    masks = SpikeMasks(WORDS, spikes)
    fired, saturated = torch.empty(2, WORDS, masks.groups, dtype=torch.int64)
    for _ in range(2):
        masks.add(torch.ones(WORDS, neurons), fired, saturated)
    masks.flush()
    assert (spikes == 2 * WORDS).all()
    assert (add_bytes(fired).sum(1) == neurons).all()
    assert (add_bytes(saturated).sum(1) == neurons).all()


def test_nan_fires_and_is_not_saturated():
    spikes = torch.zeros(2, dtype=torch.int64)
    masks = SpikeMasks(1, spikes)
    fired, saturated = torch.empty(2, 1, masks.groups, dtype=torch.int64)
    masks.add(torch.tensor([[torch.nan, 0.5]]), fired, saturated)
    masks.flush()
    assert (spikes.tolist(), add_bytes(fired).item(), add_bytes(saturated).item()) == ([1, 1], 2, 0)


def test_bytes_of_all_sizes_add_up():
    words = torch.tensor([[0] * 8, [255] * 8, [1, 2, 3, 4, 5, 6, 7, 8], [0, 255, 0, 255, 0, 0, 0, 128]])
    assert add_bytes(words.to(torch.uint8).view(torch.int64)).flatten().tolist() == words.sum(1).tolist()
