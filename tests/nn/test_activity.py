"""Spikes as something to be trained for: exact numbers, and the surrogate's gradient, against float64."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from tests.nn.common import activations
from ttfs_triton.train.target import count_spikes


@settings(max_examples=30)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    ),
    width=st.sampled_from([0.25, 0.5, 1.0]),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    sign=st.sampled_from([3.0, -3.0]),
    seed=st.integers(0, 99),
)
def test_number_and_gradient_match_float64(shape, width, weighted, dtype, sign, seed):
    generator = torch.Generator().manual_seed(seed)
    values = activations(*shape, seed=seed).to(dtype)
    if len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    weight = torch.randint(0, 40, shape[2:], generator=generator).float() if weighted and len(shape) == 4 else None
    leaf = values.clone().requires_grad_()
    reached = (torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) < 0.5).to(dtype)
    found = count_spikes(leaf, weight, reached, width=width)
    (sign * found).backward()
    places = torch.ones(shape[2:], dtype=torch.float64) if weight is None else weight.double()
    assert found.dtype == torch.float32
    assert found.item() == ((values > 0).double() * places).sum().item()
    expected = sign * places * (1 - values.double() / width).clamp(min=0)
    expected = expected if sign > 0 else expected * reached
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(leaf.grad.double(), expected.expand(shape), rtol=tolerance, atol=tolerance)


def test_number_on_a_device(device):
    values = activations(3, 4, 5, 5, seed=1).float().to(device).requires_grad_()
    weight = torch.arange(25.0, device=device).view(5, 5)
    found = count_spikes(values, weight)
    found.backward()
    assert found.item() == ((values > 0) * weight).sum().item()
    assert count_spikes(torch.tensor([[0.5, float("nan"), 0.0]], device=device)).item() == 1
    torch.testing.assert_close(values.grad, weight * (1 - values.detach()))
