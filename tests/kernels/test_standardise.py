"""Weight standardisation against its definition in float64: layouts, blocks, dtypes, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ttfs_kernels import fuse_passes, fused, standardise, standardise_weights

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = ((3, 5), (4, 7, 3, 3), (2, 1500), (5, 1, 3, 3), (4, 6, 1, 1), (4, 3, 1, 2), (1, 2))
LAYOUTS = ("contiguous", "channels last", "scattered")
Layers = tuple[list[Tensor], list[Tensor]]
shapes_of_layers = st.lists(
    st.tuples(st.integers(1, 9), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=7
)


def layers(shapes, device="cpu", dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Layers:
    """Weights with a mean, and gains, that ask for gradients."""
    weights = [(torch.randn(shape) + 0.3).to(device, dtype) for shape in shapes]
    gains = [torch.randn(shape[0]).to(device, dtype) for shape in shapes]
    if layout == "channels last":
        weights = [w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w for w in weights]
    if layout == "scattered":
        weights, gains = ([torch.stack([t] * 2, -1)[..., 0] for t in tensors] for tensors in (weights, gains))
    return [w.requires_grad_() for w in weights], [gain.requires_grad_() for gain in gains]


def by_definition(weight: Tensor, gain: Tensor) -> Tensor:
    flat = weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    norm = (centred.square().sum(1, keepdim=True) + standardise.EPSILON).sqrt()
    return (gain[:, None] * centred / norm).view(weight.shape)


def conditioning(weight: Tensor, gain: Tensor) -> float:
    """By how much rounding errors of gradients may grow: gain/‖w − mean‖ · ‖w‖/‖w − mean‖, at least 1."""
    flat = weight.flatten(1)
    norm = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    return max(1.0, (gain.abs() / norm * flat.norm(dim=1) / norm).max().item())


def check(weights: list[Tensor], gains: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Results, which are returned, and gradients against float64, by autograd through the definition."""
    results = standardise_weights(weights, gains, dtype=dtype)
    # Of every second layer the gradient is that of one neuron, expanded.
    grads = [torch.randn_like(r[0]).expand_as(r) if i % 2 else torch.randn_like(r) for i, r in enumerate(results)]
    ours = torch.autograd.grad(results, [*weights, *gains], grads)
    for i, (weight, gain, result, grad) in enumerate(zip(weights, gains, results, grads, strict=True)):
        precise = [tensor.detach().double().requires_grad_() for tensor in (weight, gain)]
        wanted = by_definition(*precise)
        wanted = [wanted, *torch.autograd.grad(wanted, precise, grad.double())]
        factor, kinds = conditioning(*precise), (dtype or weight.dtype, weight.dtype, gain.dtype)
        kept = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if kept else torch.contiguous_format
        for tensor, expected, kind in zip((result, ours[i], ours[len(weights) + i]), wanted, kinds, strict=True):
            tolerance = TOLERANCE[kind] * (1 if tensor is result else 5)
            assert tensor.dtype == kind
            assert tensor.dim() == 1 or tensor.is_contiguous(memory_format=layout)
            torch.testing.assert_close(tensor.double(), expected, rtol=tolerance, atol=tolerance * factor)
    return results


@settings(max_examples=40)
@given(
    shapes=shapes_of_layers | st.just(SHAPES),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    of_results=st.sampled_from([None, torch.float16, torch.bfloat16]),
    block=st.integers(1, 200),
)
def test_layers_match_the_definition(device, shapes, layout, dtype, of_results, block):
    """In blocks of any size, of which one of less than a neuron is a neuron; results do not depend on blocks."""
    given_ = layers(shapes, device, dtype, layout)
    whole = standardise_weights(*given_, dtype=of_results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardise, "BLOCK_WEIGHTS", block)
        assert all(map(torch.equal, check(*given_, of_results), whole))


@pytest.mark.parametrize("shape", [(40, 60), (6, 7, 3, 3)])
@pytest.mark.parametrize("of_results", [torch.float64, torch.float32, torch.bfloat16])
def test_compiled_gradients_match_the_definition(shape, of_results, monkeypatch):
    monkeypatch.setattr(fused, "SMALLEST", 0)
    fuse_passes()
    try:
        check(*layers([shape], dtype=torch.promote_types(of_results, torch.float32)), of_results)
        assert fused.is_fused(torch.zeros(1))  # nothing fell back
    finally:
        fuse_passes(False)


def test_each_may_be_frozen_or_have_no_gradient(device):
    weights, gains = layers(SHAPES[:3], device)

    def gradients(weights, gains, wanted):
        return torch.autograd.grad(standardise_weights(weights, gains)[1].exp().sum(), wanted, allow_unused=True)

    complete = gradients(weights, gains, [*weights, *gains])
    assert [g is not None and bool(g.any()) for g in complete] == [False, True, False] * 2
    frozen = [tensor.detach() for tensor in weights], [tensor.detach() for tensor in gains]
    assert torch.equal(gradients(weights, frozen[1], weights[1:2])[0], complete[1])
    assert torch.equal(gradients(frozen[0], gains, gains[1:2])[0], complete[4])


def test_constant_neurons_give_zero_and_finite_gradients(device):
    weight = torch.full((2, 8), 0.25, device=device, requires_grad=True)
    for dtype in (torch.float32, torch.float16):
        (result,) = standardise_weights([weight], [torch.ones(2, device=device)], dtype=dtype)
        assert not result.any()
        assert torch.autograd.grad(result.sum(), weight)[0].isfinite().all()


def test_second_derivatives_are_refused(device):
    weights, gains = layers(SHAPES, device)
    with pytest.raises(RuntimeError, match="standardise_weights: create_graph must be False; got True"):
        torch.autograd.grad(standardise_weights(weights, gains)[0].square().sum(), weights[0], create_graph=True)
    with pytest.raises(RuntimeError, match="standardise_weights: derivatives must be taken in reverse mode"):
        torch.func.jvp(lambda gain: standardise_weights(weights[:1], [gain]), (gains[0],), (gains[0],))
    assert standardise_weights([], []) == []


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_in_one_graph():
    weights, gains = layers(SHAPES)

    def results(function):
        found = function(weights, gains, dtype=torch.bfloat16)
        return *found, *torch.autograd.grad([f.float().square().sum() for f in found], [*weights, *gains])

    compiled = torch.compile(standardise_weights, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(results(compiled), results(standardise_weights), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
