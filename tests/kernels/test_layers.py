"""Layers of every backend against neurons in float64, one after the other: activations and all gradients.

Sums are rounded, so a neuron within rounding of a firing border may take the case beside its own, or a steep
derivative: such neurons are not compared, and get no gradient.
"""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.common import KINDS, NAMES, Kind, apply, expected, leaves, operands, serving
from ttfs_kernels import Neuron, contraction
from ttfs_kernels.contraction import Geometry

PRECISE = (torch.float64, torch.float32)
DTYPES = {"triton": (torch.float32, torch.float16), "library": (torch.float32,)}


class Layer(NamedTuple):
    kind: Kind
    names: tuple[str, ...]  # of its operands
    neuron: Neuron
    channels_last: bool


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Any layer, small."""
    if draw(st.integers(0, 3)) == 0:
        inputs = draw(st.sampled_from([1, 3, 17, 65]))
        kind = Kind((draw(st.sampled_from([0, 1, 3, 17])), inputs), (draw(st.sampled_from([1, 3, 17])), inputs))
    else:
        groups = draw(st.sampled_from([1, 1, 1, 3, 17]))
        inputs, outputs = (draw(st.sampled_from([c for c in (1, 3, 17) if c % groups == 0])) for _ in range(2))
        choices = (1, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2)
        kernel, stride, padding, dilation = (draw(st.tuples(*2 * [st.sampled_from(sizes)])) for sizes in choices)
        least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
        x = (draw(st.sampled_from([0, 1, 2])), inputs, *(draw(st.integers(size, size + 3)) for size in least))
        geometry = Geometry(stride, padding, dilation, groups)
        kind = Kind(x, (outputs, inputs // groups, *kernel), geometry)
    properties = [0.0, 0.25, 1.0], [None, 11.0, 0.5], [0, 0.7]
    neuron = Neuron(*(draw(st.sampled_from(values)) for values in properties))
    names = draw(st.sampled_from([NAMES, NAMES[:3], NAMES[:2]]))
    return Layer(kind, names, neuron, draw(st.booleans()))


def tolerance(dtype: torch.dtype, terms: int) -> dict[str, float]:
    """Of a sum of `terms` products that is rounded to a dtype."""
    eps = torch.finfo(dtype).eps
    if dtype != torch.float16:
        return dict.fromkeys(("rtol", "atol"), 1e-9 if dtype == torch.float64 else 2e-4)
    return {"rtol": 6e-3 if terms < 1024 else 1.2e-2, "atol": max(8 * eps, 10 * eps * math.sqrt(terms))}


def check(backend: str, layer: Layer, dtype: torch.dtype, device: torch.device) -> None:
    kind, names, neuron, channels_last = layer
    with serving(backend, device) as served:
        tensors = operands(kind, *names, dtype=dtype, device=served.device)
        if channels_last and kind.geometry is not None:
            maps = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 4}
            tensors |= {name: map_.contiguous(memory_format=torch.channels_last) for name, map_ in maps.items()}
        tensors = leaves(tensors)
        y = apply(kind, tensors, served, neuron=neuron)
        assert y.shape == kind.out
        assert kind.geometry is None or y.is_contiguous(memory_format=torch.channels_last)
        grad = torch.randn(y.shape).to(y)
        margin = torch.from_numpy(expected(kind, tensors, grad, neuron).margin).to(y.device)
        grad = torch.where(margin < 0.02, 0.0, grad)
        found = expected(kind, tensors, grad, neuron)
        kept = margin > 1e-3
        wanted = torch.from_numpy(found.activations).to(y.device)
        terms = max(1, math.prod(kind.weight[1:]))
        torch.testing.assert_close(y.double()[kept], wanted[kept], **tolerance(dtype, terms))
        for name, gradient in zip(names, torch.autograd.grad(y, list(tensors.values()), grad), strict=True):
            count = terms * kind.weight[0] if name == "x" else max(1, y.numel() // kind.weight[0])
            array = torch.from_numpy(found.gradients[name])
            assert gradient.dtype == dtype
            torch.testing.assert_close(gradient.cpu().double(), array, **tolerance(dtype, count), msg=name)


@settings(max_examples=200)
@given(layer=layers(), dtype=st.sampled_from(PRECISE), columns=st.booleans())
def test_torch_matches_float64(device, layer, dtype, columns):
    """By convolutions and by products over columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contraction, "LARGEST_MAP", math.inf if columns else -1)
        patch.setattr(contraction, "WEIGHTS_PER_NEURON", dict.fromkeys(PRECISE, 0))
        check("torch", layer, dtype, device)


@settings(max_examples=100 if torch.cuda.is_available() else 35)
@given(layer=layers(), backend=st.sampled_from(["triton", "triton", "library"]), data=st.data())
def test_triton_matches_float64(device, layer, backend, data):
    pytest.importorskip("triton")
    check(backend, layer, data.draw(st.sampled_from(DTYPES[backend])), device)


@KINDS
@pytest.mark.parametrize("psp_persistence", [0.25, 1.0])
def test_gradients_are_finite_differences(kind, psp_persistence):
    """Of exact derivatives. Inputs are far enough from 0: a finite difference must not make a silent input fire."""
    tensors = operands(kind, *NAMES, dtype=torch.float64, silent=0.0)
    tensors = leaves({n: t.clamp(0.1, 0.9) if n in ("x", "skip") else t for n, t in tensors.items()})
    neuron = Neuron(psp_persistence, None)
    kept = torch.from_numpy(expected(kind, tensors, torch.zeros(kind.out), neuron).margin) > 1e-3
    assert kept.float().mean() > 0.9

    def layer(*values):
        return apply(kind, dict(zip(NAMES, values, strict=True)), neuron=neuron)[kept]

    assert torch.autograd.gradcheck(layer, tuple(tensors.values()))
