"""Passes fused by PyTorch's compiler equal eager PyTorch, bit for bit where nothing is rounded between operations."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from tests.kernels.common import CONV2D, LINEAR, NAMES, UNEVEN, Kind, apply, leaves, operands, results
from ttfs_kernels import Neuron, fuse_passes, rule

NEURON = Neuron(0.5, derivative_clip=3.0, surrogate_width=0.3, split_gradient=0.4)
WITH_NORM = (*NAMES, "gamma")


@pytest.fixture(autouse=True)
def fuse_small_layers_too(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(rule, "SMALLEST", 0)
    yield
    fuse_passes(False)


def both_passes(fuse: bool, kind: Kind, dtype: torch.dtype, neuron: Neuron = NEURON, names=NAMES) -> list[Tensor]:
    """Activations and all gradients of a layer with a bias and a skip; the same operands in every call."""
    fuse_passes(fuse)
    torch.manual_seed(0)
    tensors = {name: t.to(dtype if t.dim() > 1 else torch.float32) for name, t in operands(kind, *names).items()}
    values = results(kind, leaves(tensors), neuron=neuron, backend="torch")
    assert rule._fusing is fuse  # nothing fell back
    return values


# Sums over neurons, and a skip's product, are added up in another order. The first of each sort compiles for seconds.
CASES = [
    pytest.param(kind, names, neuron, dtype, tolerance, marks=[] if quick else pytest.mark.slow)
    for kind, names in ((LINEAR, NAMES), (CONV2D, NAMES), (UNEVEN._replace(x=(3, 4, 7, 6)), WITH_NORM))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2))
    for neuron in (NEURON, Neuron(1.0), *([Neuron(0.0)] if names == NAMES else []))
    for quick in [(neuron, dtype) in ((NEURON, torch.float32), (Neuron(0.0), torch.bfloat16))]
]


@pytest.mark.parametrize(("kind", "names", "neuron", "dtype", "tolerance"), CASES)
def test_layers_are_those_of_the_eager_passes(kind, names, neuron, dtype, tolerance):
    """Another persistence or batch compiles nothing anew."""
    others = replace(neuron, psp_persistence=neuron.psp_persistence / 2), kind._replace(x=(5, *kind.x[1:]))
    for again, (chosen, shapes) in enumerate(((neuron, kind), others)):
        with torch._dynamo.config.patch(error_on_recompile=bool(again)):
            eager, compiled = (both_passes(fuse, shapes, dtype, chosen, names) for fuse in (False, True))
        assert len(eager) == len(compiled) == 6 + 3 * ("gamma" in names)
        for expected, ours in zip(eager, compiled, strict=True):
            assert ours.dtype == expected.dtype
            assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_rule_and_its_gradient_are_equal_to_the_bit_in_every_case():
    fuse_passes()
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, 1 - 2**-24, 0.0, -0.0, -1.0, -0.29, 0.5])
    grid = torch.cartesian_prod(special, torch.cat([special, torch.randn(8)]))
    potentials = grid.t().reshape(2, 1, -1, 1).repeat(1, 1, 1, 2).contiguous()
    operands = potentials, None, None, None, rule.persistence(NEURON, potentials)
    found = rule.compiled(rule.firing, NEURON, True)(*operands)
    torch.testing.assert_close(found, rule.firing(NEURON, True, *operands), rtol=0, atol=0, equal_nan=True)
    # At σ = 0 the derivative is 1 inside the window.
    x, grad = (column.view(-1, 1) for column in torch.cartesian_prod(special[[0, 3, 4, 5, 9]], special).t())
    found, total = rule.compiled(rule.clamp_and_bias_gradients)(grad, x)
    expected = torch.where((x > 0) & (x < 1), grad, 0).where(~x.isnan(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert total.isnan().all()


def test_without_a_compiler_passes_stay_as_they_are(monkeypatch, caplog):
    expected = both_passes(False, LINEAR, torch.float32)

    def fail(*_):
        raise TorchDynamoException("no C++ compiler\nand a trace")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    monkeypatch.setattr(rule, "compiled", rule.compiled.__wrapped__)  # without its cache
    fuse_passes()
    with caplog.at_level(logging.WARNING, "ttfs_kernels.rule"):
        assert apply(LINEAR, operands(LINEAR), neuron=NEURON, backend="torch").shape == LINEAR.out
    assert [record.getMessage() for record in caplog.records] == [
        "passes are not fused: PyTorch's compiler failed (no C++ compiler)"
    ]
    torch.testing.assert_close(both_passes(rule._fusing, LINEAR, torch.float32), expected, rtol=0, atol=0)
