"""Layers past the dispatcher: the same results, and the operators for everybody who would see one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.test_operators import KINDS, PERSISTENCES, apply, arguments
from ttfs_kernels import Neuron, dft_conv2d, dft_linear, direct, ops
from ttfs_kernels.direct import is_plain


class Named(Tensor):
    """A subclass that PyTorch's functions ask."""


class Recorder(TorchDispatchMode):
    """Names of our operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ttfs":
            self.names.append(func._opname)
        return func(*args, **kwargs or {})


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    direct.forget()
    yield
    direct.forget()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of the layers that were found, and not remembered."""
    kinds: list[str] = []
    for kind in ("linear", "conv2d"):
        real = getattr(ops, f"_{kind}_formula")

        def find(*args, kind: str = kind, real: Callable[..., direct.Formula] = real) -> direct.Formula:
            kinds.append(kind)
            return real(*args)

        monkeypatch.setattr(ops, f"_{kind}_formula", find)
    return kinds


def results(kind: str, tensors: tuple[Tensor, ...], **options) -> list[Tensor]:
    y = apply(kind, *tensors, **options)
    return [y, *torch.autograd.grad(y, tensors, torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))]


@KINDS
@PERSISTENCES
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("surrogate_width", [0.0, 0.5])
def test_equals_the_operators(kind, psp_persistence, autocast, surrogate_width):
    tensors = arguments(kind)
    options = {"neuron": Neuron(psp_persistence, surrogate_width=surrogate_width)}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = [results(kind, tensors, **options) for _ in range(2)]
        with Recorder() as recorder:
            theirs = results(kind, tensors, **options)
    assert recorder.names == [f"dft_{kind}", f"dft_{kind}_backward"]
    for repeated in ours:
        for our_result, their_result in zip(repeated, theirs, strict=True):
            assert torch.equal(our_result, their_result)
            assert our_result.stride() == their_result.stride()
            assert our_result.dtype == their_result.dtype


def test_who_would_see_an_operator():
    x = torch.rand(2, 3)
    assert is_plain(x, x.requires_grad_(), None)
    with torch.inference_mode():
        assert is_plain(torch.rand(2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_plain(x)
    assert not is_plain(x, torch.empty(3, device="meta"))
    assert not is_plain(torch._neg_view(x))
    assert not is_plain(x.detach().as_subclass(Named))
    assert not is_plain(x.detach().to_sparse())
    with Recorder():
        assert not is_plain(x)
    with profile(activities=[ProfilerActivity.CPU]):
        assert not is_plain(x)
    with torch.device("cpu"):  # a mode that PyTorch's functions ask
        assert not is_plain(x)
    seen = []
    torch.func.vmap(lambda row: seen.append(is_plain(row)) or row)(x)
    torch.func.grad(lambda x: seen.append(is_plain(x)) or x.sum())(x)
    torch.func.functionalize(lambda x: seen.append(is_plain(x)) or x)(x)
    assert seen == [False] * 3


@KINDS
def test_lazy_negation_is_resolved(kind):
    x, weight, bias = arguments(kind)
    negated = torch._neg_view(-x.detach())
    assert torch.equal(apply(kind, negated, weight, bias), apply(kind, x, weight, bias))


@KINDS
@pytest.mark.parametrize("psp_persistence", [0.0, 1.0])
def test_gradients_come_in_batches(kind, psp_persistence):
    """`vmap` over the backward pass, which only operators know."""
    tensors = arguments(kind)
    y = apply(kind, *tensors, neuron=Neuron(psp_persistence))
    grads = torch.randn(3, *y.shape)
    batched = torch.autograd.grad(y, tensors, grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        for ours, theirs in zip(batched, torch.autograd.grad(y, tensors, grad, retain_graph=True), strict=True):
            torch.testing.assert_close(ours[i], theirs)


@KINDS
def test_a_profile_names_the_operators_of_a_backward_pass_alone(kind):
    x, weight, bias = arguments(kind)
    y = apply(kind, x, weight, bias)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        y.sum().backward()
    assert f"ttfs::dft_{kind}_backward" in {event.name for event in recorded.events() or ()}


@KINDS
def test_saved_tensors_can_be_moved_away(kind):
    tensors = arguments(kind)
    expected = results(kind, tensors)
    packed: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: packed.append(tensor) or tensor.clone(), lambda tensor: tensor):
        moved = results(kind, tensors)
    assert packed
    assert all(torch.equal(*pair) for pair in zip(moved, expected, strict=True))


@KINDS
def test_operands_written_to_before_the_backward_pass_are_noticed(kind):
    x, weight, bias = arguments(kind)
    y = apply(kind, x, weight, bias, neuron=Neuron(0.0))
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_layers_are_found_once_for_operands_that_are_alike(found):
    def calls(**changes) -> int:
        values = {"x": torch.rand(2, 4, 6, 6), "weight": torch.rand(6, 4, 3, 3), "bias": torch.rand(6)} | changes
        found.clear()
        dft_conv2d(**values)
        return len(found)

    assert [calls(), calls()] == [1, 0]
    others = (
        {"x": torch.rand(3, 4, 6, 6)},
        {"x": torch.rand(2, 4, 6, 6).requires_grad_()},
        {"weight": torch.rand(6, 4, 1, 3)},
        {"bias": None},
        {"bias": torch.rand(6, dtype=torch.float64)},
        {"x": torch.rand(2, 4, 6, 6).double(), "weight": torch.rand(6, 4, 3, 3).double()},
        {"stride": 2},
        {"padding": (0, 1)},
        {"dilation": [2, 1]},
        {"groups": 2, "weight": torch.rand(6, 2, 3, 3)},
        {"pool": 2},
        {"neuron": Neuron(0.5)},
    )
    for other in others:
        assert [calls(**other), calls(**other)] == [1, 0], other
    with torch.autocast("cpu", torch.bfloat16):
        assert [calls(), calls()] == [1, 0]
    torch.backends.cuda.matmul.fp32_precision, before = "tf32", torch.backends.cuda.matmul.fp32_precision
    try:
        assert [calls(), calls()] == [1, 0]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    direct.forget()
    assert calls() == 1


def test_what_was_refused_once_is_refused_again(found):
    """And what is refused is refused after an equal value of another type was not."""
    x, weight = torch.rand(2, 4, 6, 6), torch.rand(6, 4, 3, 3)
    dft_conv2d(x, weight, stride=1, groups=1, pool=1)
    for name in ("stride", "groups", "pool"):
        options: dict[str, Any] = {name: 1.0}
        with pytest.raises(ValueError, match=f"dft_conv2d: {name} must be .*; got 1.0"):
            dft_conv2d(x, weight, **options)
    for _ in range(2):
        with pytest.raises(ValueError, match="dft_linear: x must be"):
            dft_linear(torch.rand(2, 3), torch.rand(4, 5))
    assert found == ["conv2d", "linear", "linear"]


def test_the_number_of_remembered_layers_is_bounded(monkeypatch):
    monkeypatch.setattr(direct, "LIMIT", 2)
    for rows in (1, 2, 3):
        dft_linear(torch.rand(rows, 3), torch.rand(2, 3))
    assert len(direct._layers) == 1
