"""Mixed precision on the CPU: 16-bit activations, float32 weight gradients, values close to float32."""

import pytest
import torch

from tests.kernels.test_operators import KINDS, PERSISTENCES, apply, arguments
from ttfs_kernels import Neuron

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@KINDS
@PERSISTENCES
@DTYPES
def test_autocast_returns_its_dtype_and_float32_gradients(kind, psp_persistence, dtype):
    x, weight, bias = arguments(kind)
    with torch.autocast("cpu", dtype):
        y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))
    assert y.dtype == dtype
    expected = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=8 * eps)
    gradients = torch.autograd.grad(y.float().sum(), (x, weight, bias))
    for gradient, precise in zip(gradients, torch.autograd.grad(expected.sum(), (x, weight, bias)), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - precise).norm() < 16 * eps * precise.norm()


@KINDS
@PERSISTENCES
@DTYPES
def test_16_bit_tensors_without_autocast(kind, psp_persistence, dtype):
    tensors = arguments(kind)
    x, weight, bias = (t.detach().to(dtype).requires_grad_() for t in tensors if t is not None)
    y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))
    assert y.dtype == dtype
    for gradient in torch.autograd.grad(y.sum(), (x, weight, bias)):
        assert gradient.dtype == dtype


@KINDS
@PERSISTENCES
def test_backward_inside_autocast_keeps_the_dtypes_of_forward(kind, psp_persistence):
    x, weight, bias = arguments(kind)
    y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))
    expected = torch.autograd.grad(y.sum(), (x, weight, bias), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(torch.autograd.grad(y.sum(), (x, weight, bias)), expected, strict=True):
            assert torch.equal(ours, theirs)
