"""Layers with batch norm: PyTorch in float64 against the folded layer, all other backends and dtypes against PyTorch.

Operands are multiples of 1/8, so that potentials are the same in every dtype.
"""

import math
from contextlib import nullcontext
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.common import (
    CONV2D,
    HAS_TRITON,
    LINEAR,
    NAMES,
    Kind,
    Operands,
    apply,
    convolutions,
    leaves,
    linears,
    operands,
)
from tests.kernels.memory import fenced_memory
from ttfs_kernels import Neuron, Normalised
from ttfs_kernels.checks import Geometry

NEURONS = [
    Neuron(0.0),
    *(Neuron(sigma, derivative_clip=None) for sigma in (0.25, 1.0)),
    Neuron(1.0, derivative_clip=0.6, surrogate_width=0.5),
    *(Neuron(0.5, surrogate_width=0.3, split_gradient=q) for q in (0.25, 0.0)),
    Neuron(1.0, split_gradient=0.0),
]
OF_NEURONS = pytest.mark.parametrize("neuron", NEURONS, ids=str)
BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"] if HAS_TRITON else ["torch"])
EPSILON = 1e-5
kinds = linears() | convolutions((1, 2), (1, 3, 17), (1, 1, 2), slack=1)


def folded(kind: Kind, tensors: Operands, neuron: Neuron) -> Normalised:
    """The plain layer of g·w and β − g·μ, where g and μ follow from the potentials of this batch."""
    tensors = dict(tensors)
    x, weight, gamma, beta = (tensors.pop(name) for name in ("x", "weight", "gamma", "bias"))
    contract = F.linear if kind.geometry is None else lambda x, w: F.conv2d(x, w, None, *kind.geometry)
    spikes, width = (x > 0).to(x), neuron.surrogate_width
    if neuron.has_surrogate:
        near = x.clamp_max(width) - x.clamp_max(width).square() / (2 * width)  # its derivative is 1 - x/δ
        spikes = spikes + (near - near.detach())
    A = contract(x * (x > 0) if neuron.has_slope else x, weight)
    V = A + neuron.psp_persistence * contract(spikes, weight)
    V = V if kind.geometry is None else V.movedim(1, -1).flatten(0, 2)
    variance, mean = torch.var_mean(V, 0, correction=0)
    g = gamma * (variance + EPSILON).rsqrt()
    scaled = {"x": x, "weight": g.view(-1, *(1,) * (weight.dim() - 1)) * weight, "bias": beta - g * mean}
    y = apply(kind, scaled | tensors, neuron=neuron, backend="torch")
    return Normalised(y, mean, variance * len(V) / max(1, len(V) - 1))


def values(kind: Kind) -> int:
    """Values of a channel, over images and positions."""
    return math.prod((kind.out[0], *kind.out[2:]))


def given_to(kind: Kind, has_skip: bool = False, dtype: torch.dtype = torch.float32, device="cpu") -> Operands:
    """Maps and their weights in a dtype and channels-last, what is one a channel in at least float32."""
    tensors = operands(kind, "gamma", *NAMES[: 5 if has_skip else 3], exact=True, device=device)
    for name, tensor in tensors.items():
        tensor = tensor.to(dtype if tensor.dim() > 1 else torch.promote_types(dtype, torch.float32))
        tensors[name] = tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
    return leaves(tensors)


def outcome(found: Normalised, tensors: Operands) -> list[Tensor]:
    """Activations, statistics and all gradients; those of activations are halves, so that 16 bits hold them."""
    y = found.activations
    torch.manual_seed(0)
    grad = (torch.randint(-2, 3, y.shape) / 2).to(y)
    return [*found, *torch.autograd.grad(y, list(tensors.values()), grad)]


def check(kind: Kind, tensors: Operands, neuron: Neuron, backend: str) -> None:
    """Against PyTorch in float64."""
    precise = leaves({name: tensor.cpu().double() for name, tensor in tensors.items()})
    wanted = outcome(apply(kind, precise, neuron=neuron), precise)
    with fenced_memory() if backend == "triton" else nullcontext():
        found = outcome(apply(kind, tensors, neuron=neuron, backend=backend), tensors)
    assert found[0].dim() < 4 or found[0].is_contiguous(memory_format=torch.channels_last)
    eps = torch.finfo(found[0].dtype).eps
    loose = {"rtol": 8 * eps, "atol": 4 * eps} if eps > 1e-4 else {"rtol": 1e-4, "atol": 1e-4}
    for name, ours, theirs in zip(("x", "mean", "variance", *tensors), found, wanted, strict=True):
        assert ours.dtype == (tensors[name].dtype if name in tensors else torch.float32)
        scale = max(1.0, theirs.abs().max().item())
        tolerance = loose if name in tensors else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(ours.cpu().double() / scale, theirs / scale, **tolerance)


@OF_NEURONS
@settings(max_examples=25)
@given(kind=kinds, has_skip=st.booleans())
def test_layers_are_those_that_they_fold_into(neuron, kind, has_skip):
    assume(values(kind) > 1)
    tensors = given_to(kind, has_skip, torch.float64)
    wanted, found = (outcome(layer(kind, tensors, neuron=neuron), tensors) for layer in (folded, apply))
    torch.testing.assert_close(found, wanted)


@settings(max_examples=45 if torch.cuda.is_available() else 15)
@given(
    kind=kinds,
    neuron=st.sampled_from(NEURONS),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    has_skip=st.booleans(),
    programs=st.sampled_from([3, 256]),
)
def test_our_kernels_are_the_layers_of_pytorch(device, kind, neuron, dtype, has_skip, programs):
    """Few programs take several steps each, of which the last is not full."""
    neurons = pytest.importorskip("ttfs_kernels.triton.neurons")
    assume(values(kind) > 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neurons, "ROW_PROGRAMS", programs)
        check(kind, given_to(kind, has_skip, dtype, device), neuron, "triton")


@BACKENDS
@OF_NEURONS
def test_constant_channels_divide_by_nothing(device, backend, neuron):
    tensors = given_to(LINEAR, device=device)
    for x in (torch.rand(1, 7).expand(4, 7), torch.zeros(4, 7)):
        here = tensors | {"x": x.to(device).requires_grad_()}
        found = outcome(apply(LINEAR, here, neuron=neuron, backend=backend), here)
        assert all(value.isfinite().all() for value in found)


@BACKENDS
def test_one_value_a_channel_is_refused(device, backend):
    """As `torch.nn.BatchNorm2d` refuses it."""
    pixel = Kind((1, 3, 1, 1), (6, 3, 1, 1), Geometry((1, 1), (0, 0), (1, 1), 1))
    for kind, images in product((LINEAR, pixel), (0, 1)):
        kind = kind._replace(x=(images, *kind.x[1:]))
        with pytest.raises(
            ValueError, match=f"two values or more to normalise over; got {images}, of x .* more images"
        ):
            apply(kind, given_to(kind, device=device), backend=backend)


@BACKENDS
def test_statistics_keep_their_digits_far_from_zero(device, backend, monkeypatch):
    """Potentials lie a thousand deviations from 0, in float32. PyTorch needs an estimate of the mean near them.

    Our kernels merge the moments of 64 blocks in three stages.
    """
    if backend == "triton":
        monkeypatch.setattr("ttfs_kernels.triton.neurons.MOST_PARTS", 5)
    x, one = 1000 + torch.randn(4096, 1, dtype=torch.float64), torch.ones(1, 1, device=device)
    tensors = {"x": x.float().to(device), "weight": one, "gamma": one[0], "bias": one[0] - 1}
    estimate = 999.0 if backend == "torch" else 0.0
    found = apply(LINEAR, tensors, neuron=Neuron(0.0), backend=backend, estimate=estimate)
    torch.testing.assert_close(found.variance.cpu().double(), x.float().double().var(0), rtol=1e-4, atol=0)


def test_under_autocast_contractions_have_its_type_and_statistics_float32():
    tensors = given_to(CONV2D)
    with torch.autocast("cpu", torch.bfloat16):
        found = apply(CONV2D, tensors)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.float32, torch.float32]
    assert {tensor.dtype for tensor in outcome(found, tensors)[3:]} == {torch.float32}


def test_wrong_operands_are_refused():
    """A kernel would read beyond them; `test_checks.py` has the errors that plain layers raise, too."""
    for name, message in (("bias", "bias must have shape"), ("gamma", r"normalisation.weight must have shape \[6\]")):
        with pytest.raises(ValueError, match=f"normalised_linear: {message}"):
            apply(LINEAR, given_to(LINEAR) | {name: torch.rand(1)})
