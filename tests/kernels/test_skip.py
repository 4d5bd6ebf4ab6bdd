"""Layers that delayed spikes reach, too, against neurons in float64; both backends where they can run."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels import oracle
from tests.kernels.common import TOLERANCE, activations, away_from_borders, weights
from tests.kernels.test_operators import KINDS, PERSISTENCES
from tests.kernels.test_surrogate import CONVOLUTION, contract
from ttfs_kernels import Neuron, dft_conv2d, dft_linear
from ttfs_kernels.rule import fire, silent_derivative, vanishing

BACKENDS = ("torch", "triton")
NAMES = ("x", "weight", "bias", "skip", "skip_weight")


def operands(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Of a fully connected layer or a strided, grouped, dilated convolution; leaves that ask for gradients."""
    shapes = ((9, 12), (10, 12), (9, 10)) if kind == "linear" else ((2, 4, 7, 6), (6, 2, 3, 2), (2, 6, 4, 4))
    x, weight, skip = activations(*shapes[0]), weights(*shapes[1]), activations(*shapes[2])
    values = x, weight, torch.randn(len(weight)) / 2, skip, torch.randn(len(weight))
    return {name: value.to(dtype).requires_grad_() for name, value in zip(NAMES, values, strict=True)}


def apply(kind: str, tensors: dict[str, Any], **options: Any) -> Tensor:
    return dft_linear(**tensors, **options) if kind == "linear" else dft_conv2d(**tensors, **CONVOLUTION, **options)


def on_a_backend(backend: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same operands where a backend runs."""
    if backend == "triton":
        pytest.importorskip("triton")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    return {name: tensor.detach().to(device).requires_grad_() for name, tensor in tensors.items()}


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["linear", "conv2d"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    psp_persistence=st.sampled_from([0.0, 0.25, 1.0]),
    derivative_clip=st.sampled_from([None, 0.5]),
    channels_last=st.booleans(),
)
def test_skip_matches_float64(kind, dtype, psp_persistence, derivative_clip, channels_last):
    tensors = operands(kind, dtype)
    if kind == "conv2d" and channels_last:
        for name in ("x", "weight", "skip"):
            tensors[name] = tensors[name].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = apply(kind, tensors, neuron=Neuron(psp_persistence, derivative_clip))
    x, weight, bias, skip, skip_weight = (t.detach().double().numpy() for t in tensors.values())
    if kind == "linear":
        neurons = lambda: oracle.linear_neurons(x.shape, weight.shape)  # noqa: E731
    else:
        neurons = lambda: oracle.conv2d_neurons(x.shape, weight.shape, *CONVOLUTION.values())  # noqa: E731

    def expect(grad: Tensor) -> oracle.Expected:
        return oracle.layer(
            neurons(),
            x,
            weight,
            bias,
            grad.double().numpy(),
            psp_persistence=psp_persistence,
            derivative_clip=math.inf if derivative_clip is None or psp_persistence == 0 else derivative_clip,
            skip=skip,
            skip_weight=skip_weight,
        )

    grad = torch.randn_like(y)
    grad = away_from_borders(grad, expect(grad)) if dtype == torch.float32 else grad
    expected = expect(grad)
    near = torch.from_numpy(expected.margin) < 1e-3
    wanted = torch.from_numpy(expected.activations)
    torch.testing.assert_close(y.double()[~near], wanted[~near], rtol=0, atol=5 * TOLERANCE[dtype])
    gradients = torch.autograd.grad(y, list(tensors.values()), grad)
    for name, gradient in zip(NAMES, gradients, strict=True):
        array = torch.from_numpy(getattr(expected, f"grad_{name}"))
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), array, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], msg=name)


@KINDS
@pytest.mark.parametrize("psp_persistence", [0.25, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_surrogate_gradients_are_those_of_the_formulas(kind, psp_persistence, backend):
    neuron = Neuron(psp_persistence, 1.25, 0.7)
    tensors = on_a_backend(backend, operands(kind))
    y = apply(kind, tensors, neuron=neuron, backend=backend)
    upstream = torch.randn_like(y)
    gradients = torch.autograd.grad(y, list(tensors.values()), upstream)
    x, weight, bias, skip, skip_weight = (t.detach().double() for t in tensors.values())
    mask, skip_mask = (x > 0).double(), (skip > 0).double()
    leaves = [x, weight, bias, skip, skip_weight, mask, skip_mask]
    for leaf in leaves:
        leaf.requires_grad_()
    channels = (-1, *(1,) * (y.dim() - 2))
    v = skip_weight.view(channels)
    A = contract(x, weight) + bias.view(channels) + v * skip
    W = psp_persistence * (contract(mask, weight) + v * skip_mask)
    with torch.no_grad():
        _, gain = fire(A, W)
        near = silent_derivative(A, W, neuron)
        by_A, by_W = (gain + near).clamp_max(1.25), ((1 - fire(A, W)[0]) * gain + near).clamp_max(1.25)
    total = (upstream * (by_A * A + by_W * W)).sum()
    by_x, by_weight, by_bias, by_skip, by_v, by_mask, by_skip_mask = torch.autograd.grad(total, leaves)
    by_x = torch.where(x > 0, by_x, 0) + vanishing(x, neuron) * by_mask
    by_skip = torch.where(skip > 0, by_skip, 0) + vanishing(skip, neuron) * by_skip_mask
    for ours, theirs in zip(gradients, (by_x, by_weight, by_bias, by_skip, by_v), strict=True):
        torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-4, atol=1e-4)


@KINDS
@PERSISTENCES
def test_gradients_come_in_any_combination(kind, psp_persistence):
    tensors, neuron = operands(kind), Neuron(psp_persistence, surrogate_width=0.5)
    complete = torch.autograd.grad(apply(kind, tensors, neuron=neuron).sum(), list(tensors.values()))
    for chosen in ((3,), (4,), (0, 4), (1, 2, 3)):
        parts = {name: t.detach().requires_grad_(i in chosen) for i, (name, t) in enumerate(tensors.items())}
        y = apply(kind, parts, neuron=neuron)
        for i, gradient in zip(chosen, torch.autograd.grad(y.sum(), [parts[NAMES[i]] for i in chosen]), strict=True):
            assert torch.equal(gradient, complete[i])


def test_a_skip_alone_is_the_identity_where_weight_and_initial_potential_say_so():
    """At σ = 0 with v = 1; at σ < 1 with v = 1/(1 − σ) and b = −σ·v."""
    skip, silent = activations(64, 3, dtype=torch.float64), torch.zeros(64, 5, dtype=torch.float64)
    for sigma in (0.0, 0.25, 0.5):
        v = torch.full((3,), 1 / (1 - sigma), dtype=torch.float64)
        weight = weights(3, 5, dtype=torch.float64)
        y = dft_linear(silent, weight, -sigma * v, skip=skip, skip_weight=v, neuron=Neuron(sigma))
        torch.testing.assert_close(y, skip)


def test_leading_dimensions_of_a_skip_go_along():
    tensors = operands("linear")
    folded = {name: t.view(3, 3, -1) if name in ("x", "skip") else t for name, t in tensors.items()}
    assert torch.equal(apply("linear", folded).flatten(0, 1), apply("linear", tensors))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"skip": None}, ValueError, "dft_conv2d: skip must come with skip_weight; got none"),
        ({"skip_weight": None}, ValueError, "dft_conv2d: skip_weight must come with skip; got none"),
        ({"skip": torch.rand(2, 6, 4, 5)}, ValueError, r"skip must have the shape of the output, \[2, 6, 4, 4\]"),
        ({"skip_weight": torch.rand(5)}, ValueError, r"skip_weight must have shape \[6\]"),
        ({"skip": torch.rand(2, 6, 4, 4).double()}, TypeError, "skip must have the dtype of x, torch.float32"),
        ({"skip": torch.ones(2, 6, 4, 4).int()}, TypeError, "skip must be float16, bfloat16, float32 or float64"),
        ({"pool": 2}, NotImplementedError, "pool must be 1 with a skip; got 2"),
    ],
)
def test_wrong_skips_are_refused(changes, error, match):
    tensors: dict[str, Any] = operands("conv2d") | changes
    with pytest.raises(error, match=match):
        apply("conv2d", tensors)
