"""Passes by a library call give what our kernels give."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.common import (
    BLOCKS,
    CONV2D,
    DTYPES,
    LINEAR,
    chip_for,
    each,
    exact_layer,
    expected_forward,
    expected_grad_w,
    expected_grad_x,
    run,
)
from ttfs_kernels import Neuron
from ttfs_kernels.triton_backend import library, passes
from ttfs_kernels.triton_backend.formulation import Form


def assert_exact(ours: Tensor, expected: Tensor, device: torch.device) -> None:
    """Equal; on a GPU, whose library may round in between (Winograd), near, but for a few neurons at a border."""
    if device.type == "cpu":
        assert torch.equal(ours, expected)
    else:
        assert ours.shape == expected.shape
        tolerance = 8 * torch.finfo(ours.dtype).eps
        different = ~torch.isclose(ours, expected, rtol=tolerance, atol=tolerance)
        assert different.sum() <= 0.03 * different.numel()


@each(LINEAR | CONV2D)
@pytest.mark.parametrize("persistence", [1.0, 0.25, 0.0])
def test_library_forward_is_exact(device, problem, dtype, blocks, persistence):
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=persistence != 0)
    layer = exact_layer(problem, device)
    for bias in (None, layer.bias):
        y, gain = run(
            lambda b=bias: library.forward(problem, layer.x, layer.weight, b, Neuron(persistence), True), layer
        )
        expected_y, expected_gain = expected_forward(layer, persistence, bias is not None)
        assert_exact(y, expected_y, device)
        if problem.with_slope:
            assert_exact(gain, expected_gain, device)
        else:
            assert gain is None
    assert library.forward(problem, layer.x, layer.weight, None, Neuron(persistence), False)[1] is None


@each(LINEAR | CONV2D)
@pytest.mark.parametrize("with_slope", [True, False])
def test_library_gradients_are_exact(device, problem, dtype, blocks, with_slope):
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=with_slope)
    layer = exact_layer(problem, device)
    pair = torch.stack([layer.h, layer.slope_h] if with_slope else [layer.h])
    (grad_x,) = run(lambda: library.grad_x(problem, pair, layer.x, layer.weight), layer)
    assert_exact(grad_x, expected_grad_x(layer), device)
    (grad_w,) = run(lambda: library.grad_w(problem, pair, layer.x, layer.weight), layer)
    assert_exact(grad_w, expected_grad_w(layer), device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["wide", "uneven_channels"])
def test_library_forward_is_near_ours(device, name, dtype):
    """Potentials that are not exact: the library rounds 16-bit ones before the rule, and σ with the mask."""
    problem = dataclasses.replace((LINEAR | CONV2D)[name], dtype=dtype)
    layer = exact_layer(problem, device)
    weight = (layer.weight + torch.randn_like(layer.weight) / 8).to(dtype)
    form = Form.WEIGHTS_FIRST
    config = dataclasses.replace(BLOCKS[0], form=form)
    ours, our_gain = passes.forward(
        problem, layer.x, weight, layer.bias, Neuron(0.3), True, config, "ieee", chip_for(device, form)
    ).run()
    theirs, their_gain = library.forward(problem, layer.x, weight, layer.bias, Neuron(0.3), True)
    clear = (our_gain < 5) & (their_gain < 5)
    assert clear.float().mean() > 0.8
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours[clear], theirs[clear], rtol=0, atol=50 * eps)
