"""The composition a user would write agrees with the operators, up to what it does not do."""

import pytest
import torch

from tests.kernels.common import LINEAR, NAMES, PERSISTENCES, UNEVEN, apply, operands
from ttfs_kernels import Neuron
from ttfs_kernels.reference import compose_conv2d, compose_linear


@pytest.mark.parametrize("kind", [LINEAR, UNEVEN], ids=["linear", "conv2d"])
@pytest.mark.parametrize("has_bias", [False, True])
@PERSISTENCES
def test_composition_agrees_with_operator(kind, has_bias, psp_persistence):
    """x gradients at silent inputs excepted: there, autograd returns w·gain; ours are 0 (Eq. 10) for σ > 0."""
    tensors = operands(kind, *NAMES[: 3 if has_bias else 2], dtype=torch.float64)
    compose, geometry = (compose_linear, {}) if kind == LINEAR else (compose_conv2d, kind.geometry._asdict())
    ours = apply(kind, tensors, neuron=Neuron(psp_persistence, None))
    theirs = compose(**tensors, **geometry, psp_persistence=psp_persistence)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    (grad_x, *own), (their_grad_x, *others) = (
        torch.autograd.grad(y, list(tensors.values()), grad) for y in (ours, theirs)
    )
    torch.testing.assert_close(own, others)
    silent = tensors["x"] == 0
    assert their_grad_x[silent].abs().max() > 0
    expected = torch.where(silent, 0.0, their_grad_x) if psp_persistence else their_grad_x
    torch.testing.assert_close(grad_x, expected)
