"""Activations and all gradients of every backend's layers against the float64 oracle.

Sums are rounded, so a neuron within rounding of a firing border may take the neighbouring case of the rule, or have a
steep derivative. Such neurons are not compared, and get no gradient.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.common import NAMES, Kind, apply, convolutions, expected, leaves, linears, operands, serving
from tests.kernels.memory import fenced_memory
from ttfs_kernels import Neuron, rule, torch_layer
from ttfs_kernels.checks import Geometry
from ttfs_kernels.torch_layer import gradient_of_input

PRECISE = (torch.float64, torch.float32)


class Layer(NamedTuple):
    kind: Kind
    names: tuple[str, ...]  # of its operands
    neuron: Neuron
    layout: str


layers = st.builds(
    Layer,
    kind=linears() | convolutions(channels=(1, 3, 9), groups=(1, 1, 2)),
    names=st.sampled_from([NAMES, NAMES[:3], NAMES[:2], NAMES[:2] + NAMES[3:]]),
    neuron=st.builds(Neuron, *map(st.sampled_from, ([0.0, 0.25, 1.0], [None, 11.0, 0.5], [0, 0.7], [1, 0.3, 0]))),
    layout=st.sampled_from(["contiguous", "channels last", "scattered"]),
)


def laid_out(tensors: dict[str, torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    """The same values, otherwise in memory."""
    if layout == "scattered":
        tensors = {name: torch.stack([tensor] * 2, -1)[..., 0] for name, tensor in tensors.items()}
    if layout == "channels last":
        maps = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 4}
        tensors |= {name: map_.contiguous(memory_format=torch.channels_last) for name, map_ in maps.items()}
    return leaves(tensors)


def tolerance(dtype: torch.dtype, terms: int) -> dict[str, float]:
    """Tolerance for a sum of `terms` products that is rounded to a dtype."""
    eps = torch.finfo(dtype).eps
    if dtype != torch.float16:
        return dict.fromkeys(("rtol", "atol"), 1e-9 if dtype == torch.float64 else 2e-4)
    return {"rtol": 6e-3 if terms < 1024 else 1.2e-2, "atol": max(8 * eps, 10 * eps * math.sqrt(terms))}


@contextmanager
def few_programs() -> Iterator[None]:
    """Our kernels' passes over neurons take several steps, and memory is fenced."""
    from ttfs_kernels.triton import neurons

    with pytest.MonkeyPatch.context() as patch, fenced_memory():
        patch.setattr(neurons, "ELEMENTS", 128)
        patch.setattr(neurons, "ROW_PROGRAMS", 3)
        yield


def check(backend: str, layer: Layer, dtype: torch.dtype, device: torch.device) -> None:
    kind, names, neuron, layout = layer
    served = serving(backend, device)
    with nullcontext() if backend == "torch" else few_programs():
        tensors = laid_out(operands(kind, *names, dtype=dtype, device=served.device), layout)
        y = apply(kind, tensors, served, neuron=neuron)
        assert y.shape == kind.out
        margin = torch.from_numpy(expected(kind, tensors, torch.zeros_like(y), neuron).margin).to(y.device)
        grad = torch.where(margin < 0.02, 0.0, torch.randn(y.shape).to(y))
        found = expected(kind, tensors, grad, neuron)
        kept = margin > 1e-3
        wanted = torch.from_numpy(found.activations).to(y.device)
        terms = max(1, math.prod(kind.weight[1:]))
        torch.testing.assert_close(y.double()[kept], wanted[kept], **tolerance(dtype, terms))
        gradients = dict(zip(names, torch.autograd.grad(y, list(tensors.values()), grad), strict=True))
        for name, gradient in gradients.items():
            count = terms * kind.weight[0] if name == "x" else max(1, y.numel() // kind.weight[0])
            array = torch.from_numpy(found.gradients[name])
            torch.testing.assert_close(gradient.cpu().double(), array, **tolerance(dtype, count), msg=name)
        for result in (y, *gradients.values()):
            assert result.dtype == dtype
            maps = result.dim() == 4 and result.numel() > 0
            assert not maps or result.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=200)
@given(layer=layers, dtype=st.sampled_from(PRECISE), way=st.sampled_from(["convolution", "columns", "side by side"]))
def test_torch_matches_float64(device, layer, dtype, way):
    """Contractions are computed in each of their three ways, and the firing rule in many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_layer, "LARGEST_MAP", math.inf if way == "columns" else -1)
        patch.setattr(torch_layer, "WEIGHTS_PER_NEURON", dict.fromkeys(PRECISE, 0))
        patch.setattr(torch_layer, "SIDE_BY_SIDE", PRECISE if way == "side by side" else ())
        patch.setattr(torch_layer, "MANY_WEIGHTS", 0)
        patch.setattr(rule, "BLOCK_ELEMENTS", 32)
        check("torch", layer, dtype, device)


@settings(max_examples=100 if torch.cuda.is_available() else 25)
@given(layer=layers, dtype=st.sampled_from([torch.float32, torch.float16]))
def test_triton_matches_float64(device, layer, dtype):
    pytest.importorskip("triton")
    check("triton", layer, dtype, device)


def test_columns_sum_input_gradients_in_float32(monkeypatch):
    """25 products meet in each input; summed in bfloat16, the error would be 1.2 units in the last place, not 0.6."""
    geometry = Geometry((1, 1), (2, 2), (1, 1), 1)
    monkeypatch.setattr(torch_layer, "columns_are_faster", lambda *_: True)
    h, weight = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((4, 64, 4, 4), (64, 32, 5, 5)))
    h, weight = (maps.contiguous(memory_format=torch.channels_last) for maps in (h, weight))
    expected = torch.nn.grad.conv2d_input((4, 32, 4, 4), weight.double(), h.double(), padding=2)
    error = gradient_of_input(h, h[:, :32], weight, geometry).double() - expected
    assert error.norm() < 0.9 * 2**-8 * expected.norm()


def test_gradients_of_points_with_a_stride_are_taken_without_it(monkeypatch):
    """PyTorch would write beyond its memory."""
    strides = []
    backward = torch_layer._convolution_backward
    monkeypatch.setattr(torch_layer, "_convolution_backward", lambda *g: strides.append(g[3].stride) or backward(*g))
    h, x, weight = torch.rand(4, 5, 5, 3), torch.rand(4, 2, 8, 8), torch.rand(5, 2, 1, 1)
    h, x = (maps.contiguous(memory_format=torch.channels_last) for maps in (h, x))
    found = torch_layer.gradient_of_weight(h, x, weight, Geometry((2, 3), (1, 0), (1, 1), 1))
    expected = torch.nn.grad.conv2d_weight(x.double(), weight.shape, h.double(), (2, 3), (1, 0))
    torch.testing.assert_close(found, expected.float())
    assert strides == [(1, 1)]
