"""`dft_linear` against neurons in float64: forward pass and all gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels import oracle
from tests.kernels.common import activations, assert_matches_oracle, away_from_borders, weights
from ttfs_kernels import Neuron, dft_linear

sizes = st.sampled_from([1, 3, 17])


@settings(max_examples=60)
@given(
    batch=st.sampled_from([0, 1, 2, 5]),
    in_features=sizes,
    out_features=sizes,
    dtype=st.sampled_from([torch.float64, torch.float32]),
    has_bias=st.booleans(),
    psp_persistence=st.sampled_from([0.0, 0.25, 1.0]),
    derivative_clip=st.sampled_from([None, 11.0, 0.5]),
)
def test_linear_matches_float64(batch, in_features, out_features, dtype, has_bias, psp_persistence, derivative_clip):
    x = activations(batch, in_features, dtype=dtype).requires_grad_()
    weight = weights(out_features, in_features, dtype=dtype).requires_grad_()
    bias = (torch.randn(out_features, dtype=dtype) / 2).requires_grad_() if has_bias else None
    y = dft_linear(x, weight, bias, neuron=Neuron(psp_persistence, derivative_clip))
    arrays = [None if t is None else t.detach().double().numpy() for t in (x, weight, bias)]

    def expect(grad):
        return oracle.layer(
            oracle.linear_neurons(tuple(x.shape), tuple(weight.shape)),
            *arrays,
            grad.double().numpy(),
            psp_persistence=psp_persistence,
            derivative_clip=math.inf if derivative_clip is None or psp_persistence == 0 else derivative_clip,
        )

    grad = torch.randn_like(y)
    if dtype == torch.float32:
        grad = away_from_borders(grad, expect(grad))
    assert_matches_oracle(y, (x, weight, bias), grad, expect(grad))


@pytest.mark.parametrize("psp_persistence", [0.25, 1.0])
def test_linear_gradcheck(psp_persistence):
    x = activations(4, 6, dtype=torch.float64, silent=0.0).clamp(0.1, 0.9).requires_grad_()
    weight = weights(5, 6, dtype=torch.float64).requires_grad_()
    expected = oracle.layer(
        oracle.linear_neurons((4, 6), (5, 6)),
        x.detach().numpy(),
        weight.detach().numpy(),
        None,
        torch.zeros(4, 5).double().numpy(),
        psp_persistence=psp_persistence,
    )
    kept = torch.from_numpy(expected.margin) > 1e-3
    assert kept.float().mean() > 0.9

    def layer(x, weight):
        return dft_linear(x, weight, neuron=Neuron(psp_persistence, None))[kept]

    assert torch.autograd.gradcheck(layer, (x, weight))


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6), (0, 6), (2, 0, 6)])
def test_linear_keeps_leading_dimensions(shape):
    x, weight = activations(*shape).requires_grad_(), weights(5, 6).requires_grad_()
    y = dft_linear(x, weight)
    assert y.shape == (*shape[:-1], 5)
    grad_x, grad_weight = torch.autograd.grad(y.sum(), (x, weight))
    rows = x.detach().reshape(-1, 6).requires_grad_()
    flat = torch.autograd.grad(dft_linear(rows, weight).sum(), (rows, weight))
    assert torch.equal(grad_x.reshape(-1, 6), flat[0])
    assert torch.equal(grad_weight, flat[1])
