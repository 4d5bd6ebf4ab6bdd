"""Random layers, and the comparison of an operator with the float64 oracle."""

import torch
from torch import Tensor

from tests.kernels.oracle import Expected

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


def activations(*shape: int, dtype: torch.dtype = torch.float32, silent: float = 0.4, saturated: float = 0.1) -> Tensor:
    """Some silent, some saturated, the others uniform in [0, 1]."""
    kind = torch.rand(shape)
    return torch.where(kind < silent, 0.0, torch.where(kind < silent + saturated, 1.0, torch.rand(shape))).to(dtype)


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of a size that makes some neurons saturate, some cross inside the window and some stay silent."""
    fan_in = max(1, torch.Size(shape[1:]).numel())
    return (1.2 * torch.randn(shape) / fan_in**0.5).to(dtype)


def away_from_borders(grad: Tensor, expected: Expected) -> Tensor:
    """`grad`, but zero for neurons so near a border that rounding may change their case or their steep derivative."""
    return torch.where(torch.from_numpy(expected.margin) < 0.02, 0.0, grad.double()).to(grad.dtype)


def assert_matches_oracle(y: Tensor, inputs: tuple[Tensor, Tensor, Tensor | None], grad: Tensor, expected: Expected):
    """Activations and the gradients of x, weight and bias; float64 to rounding, float32 within 2e-4."""
    tolerance = TOLERANCE[y.dtype]
    wanted = [tensor for tensor in inputs if tensor is not None]
    gradients = torch.autograd.grad(y, wanted, grad)
    near = torch.from_numpy(expected.margin) < 1e-3
    expected_y = torch.from_numpy(expected.activations)
    torch.testing.assert_close(y.double()[~near], expected_y[~near], rtol=0, atol=5 * tolerance)
    arrays = (expected.grad_x, expected.grad_weight, expected.grad_bias)
    for tensor, gradient, array in zip(wanted, gradients, arrays, strict=False):
        assert gradient.dtype == tensor.dtype
        torch.testing.assert_close(gradient.double(), torch.from_numpy(array), rtol=tolerance, atol=tolerance)
