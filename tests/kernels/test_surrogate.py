"""The surrogate derivative: what is added to the exact gradient where spikes appear and vanish."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import Neuron, dft_conv2d, dft_linear
from ttfs_kernels.rule import fire, silent_derivative, vanishing

CONVOLUTION = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}


def contract(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, *CONVOLUTION.values()) if x.dim() == 4 else F.linear(x, weight)


def apply(x: Tensor, weight: Tensor, bias: Tensor, **options) -> Tensor:
    if x.dim() == 4:
        return dft_conv2d(x, weight, bias, **CONVOLUTION, **options)
    return dft_linear(x, weight, bias, **options)


def tensors(kind: str, dtype: torch.dtype) -> list[Tensor]:
    """x, weight, bias; some inputs silent, many neurons just short of a spike."""
    shapes = ((9, 12), (10, 12)) if kind == "linear" else ((2, 4, 7, 6), (6, 2, 3, 2))
    x = (torch.rand(*shapes[0]) - 0.3).clamp_min(0)
    weight, bias = torch.randn(*shapes[1]) / 3, torch.randn(shapes[1][0]) / 4 - 0.2
    return [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]


def expected(x: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor, sigma: float, clip: float, width: float):
    """Gradients of x, weight and bias from the rule's formulas, in float64."""
    x, weight, bias, upstream = (tensor.detach().double() for tensor in (x, weight, bias, upstream))
    mask = (x > 0).double()
    for leaf in (x, mask, weight, bias):
        leaf.requires_grad_()
    A = contract(x, weight) + (bias[:, None, None] if x.dim() == 4 else bias)
    W = sigma * contract(mask, weight)
    with torch.no_grad():
        y, gain = fire(A, W)
        near = silent_derivative(A, W, Neuron(surrogate_width=width))
        by_A, by_W = (gain + near).clamp_max(clip), ((1 - y) * gain + near).clamp_max(clip)
    total = (upstream * (by_A * A + by_W * W)).sum()
    by_x, by_mask, *others = torch.autograd.grad(total, (x, mask, weight, bias))
    return [torch.where(x > 0, by_x, 0) + vanishing(x, Neuron(surrogate_width=width)) * by_mask, *others]


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("sigma", [1.0, 0.25])
@pytest.mark.parametrize(("clip", "width"), [(11.0, 0.5), (1.25, 1.0), (None, 0.3)])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_are_those_of_the_formulas(kind, sigma, clip, width, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    x, weight, bias = (t.to(device).detach().requires_grad_() for t in tensors(kind, torch.float32))
    y = apply(x, weight, bias, neuron=Neuron(sigma, clip, width), backend=backend)
    # The surrogate changes what is learned, not what is computed.
    assert torch.equal(y, apply(x, weight, bias, neuron=Neuron(sigma, clip), backend=backend))
    upstream = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, weight, bias), upstream)
    formulas = expected(x, weight, bias, upstream, sigma, clip or float("inf"), width)
    for ours, theirs in zip(gradients, formulas, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_silent_derivative_by_hand():
    A = torch.tensor([-0.2, -0.6, 0.2, 0.4, 1.5, -0.1, 0.9], dtype=torch.float64)
    W = torch.tensor([0.1, 0.1, 0.1, -0.8, -3.0, -0.3, -3.0], dtype=torch.float64)
    # short by 0.1 · at δ · fires · short by 0.4, gain bounded · saturated · short by 0.4 · falls away
    values = [0.8 / 1.1, 0.0, 0.0, 0.2 * 2, 0.0, 0.2 / 0.7, 0.0]
    torch.testing.assert_close(
        silent_derivative(A, W, Neuron(surrogate_width=0.5)), torch.tensor(values, dtype=torch.float64)
    )


def test_vanishing_by_hand():
    shares = vanishing(torch.tensor([0.0, 0.1, 0.5, 0.9]), Neuron(surrogate_width=0.5))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.8, 0.0, 0.0]))


@pytest.mark.parametrize("function", [dft_linear, dft_conv2d])
def test_a_silent_layer_learns_only_with_a_surrogate(function):
    x = torch.rand(4, 3) if function is dft_linear else torch.rand(4, 3, 5, 5)
    weight = torch.zeros(2, 3, *x.shape[2:][:1], *x.shape[2:][:1], requires_grad=True)
    bias = torch.tensor([-0.1, -0.9])
    for width, learns in ((0.0, [False, False]), (0.5, [True, False])):
        y = function(x, weight, bias, neuron=Neuron(surrogate_width=width))
        (gradient,) = torch.autograd.grad(y.sum(), weight)
        assert not y.any()
        assert [bool(channel.any()) for channel in gradient] == learns


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_two_phase_neurons_have_no_surrogate(kind):
    x, weight, bias = tensors(kind, torch.float32)
    gradients = []
    for width in (0.0, 0.5):
        y = apply(x, weight, bias, neuron=Neuron(0.0, surrogate_width=width))
        gradients.append(torch.autograd.grad(y.sum(), (x, weight, bias)))
    for exact, surrogate in zip(*gradients, strict=True):
        assert torch.equal(exact, surrogate)
