"""The composition a user would write agrees with the operators, up to what it does not do."""

import pytest
import torch

from tests.kernels.common import activations, weights
from ttfs_kernels import Neuron, dft_conv2d, dft_linear
from ttfs_kernels.reference import compose_conv2d, compose_linear


def layers(kind):
    if kind == "linear":
        return (dft_linear, compose_linear, (5, 7), (6, 7), {})
    return (dft_conv2d, compose_conv2d, (2, 4, 6, 5), (6, 2, 3, 3), {"padding": 1, "stride": 2, "groups": 2})


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("psp_persistence", [0.0, 0.25, 1.0])
def test_composition_agrees_with_operator(kind, has_bias, psp_persistence):
    """x gradients at silent inputs excepted: there, autograd returns w·gain; ours are 0 (Eq. 10) for σ > 0."""
    operator, composition, x_shape, weight_shape, options = layers(kind)
    x = activations(*x_shape, dtype=torch.float64).requires_grad_()
    weight = weights(*weight_shape, dtype=torch.float64).requires_grad_()
    bias = (torch.randn(6, dtype=torch.float64) / 2).requires_grad_() if has_bias else None
    wanted = (x, weight) if bias is None else (x, weight, bias)
    ours = operator(x, weight, bias, neuron=Neuron(psp_persistence, None), **options)
    theirs = composition(x, weight, bias, psp_persistence=psp_persistence, **options)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    grad_x, *parameters = torch.autograd.grad(ours, wanted, grad)
    their_grad_x, *their_parameters = torch.autograd.grad(theirs, wanted, grad)
    torch.testing.assert_close(parameters, their_parameters)
    silent = x == 0
    torch.testing.assert_close(grad_x[~silent], their_grad_x[~silent])
    assert their_grad_x[silent].abs().max() > 0
    if psp_persistence == 0:
        torch.testing.assert_close(grad_x[silent], their_grad_x[silent])
    else:
        assert not grad_x[silent].any()
