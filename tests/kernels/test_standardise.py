"""Weight standardisation by PyTorch and by the kernel for all layers at once: float64, layouts, blocks, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ttfs_kernels
from tests.kernels.common import HAS_TRITON
from ttfs_kernels import fuse_passes, fused, standardise, standardise_weights

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = ((3, 5), (4, 7, 3, 3), (2, 1500), (5, 1, 3, 3), (4, 6, 1, 1), (4, 3, 1, 2), (1, 2))
Layers = tuple[list[Tensor], list[Tensor]]


@pytest.fixture(params=["torch", "triton"] if HAS_TRITON else ["torch"])
def on(request, device) -> torch.device:
    """Where one of both computes; conftest takes the choice back."""
    ttfs_kernels.backend(request.param)
    return device if request.param == "triton" else torch.device("cpu")


def by_definition(weight: Tensor, gain: Tensor) -> Tensor:
    flat = weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    norm = (centred.square().sum(1, keepdim=True) + standardise.EPSILON).sqrt()
    return (gain[:, None] * centred / norm).view(weight.shape)


def layers(shapes, device="cpu", dtype: torch.dtype = torch.float32, channels_last: bool = True) -> Layers:
    """Weights with a mean, and gains, that ask for gradients."""
    weights = [(torch.randn(shape) + 0.3).to(device, dtype) for shape in shapes]
    if channels_last:
        weights = [w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w for w in weights]
    gains = [torch.randn(shape[0]).to(device, dtype) for shape in shapes]
    return [w.requires_grad_() for w in weights], [gain.requires_grad_() for gain in gains]


def conditioning(weight: Tensor, gain: Tensor) -> float:
    """By how much rounding errors of gradients may grow: gain/‖w − mean‖ · ‖w‖/‖w − mean‖, at least 1."""
    flat = weight.flatten(1)
    norm = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    return max(1.0, (gain.abs() / norm * flat.norm(dim=1) / norm).max().item())


def check(weights: list[Tensor], gains: list[Tensor], dtype: torch.dtype | None = None) -> None:
    """Results and gradients against float64, by autograd through the definition; layouts as they were."""
    results = standardise_weights(weights, gains, dtype=dtype)
    grads = [torch.randn_like(result) for result in results]
    ours = torch.autograd.grad(results, [*weights, *gains], grads)
    for i, (weight, gain, result, grad) in enumerate(zip(weights, gains, results, grads, strict=True)):
        precise = [tensor.detach().double().requires_grad_() for tensor in (weight, gain)]
        expected = by_definition(*precise)
        theirs = torch.autograd.grad(expected, precise, grad.double())
        factor = conditioning(*precise)
        assert result.dtype == (dtype or weight.dtype)
        found = (result, expected, weight), (ours[i], theirs[0], weight), (ours[len(weights) + i], theirs[1], gain)
        for tensor, wanted, like in found:
            assert tensor.stride() == like.stride()
            assert tensor is result or tensor.dtype == like.dtype
            tolerance = TOLERANCE[tensor.dtype] * (1 if tensor is result else 5)
            torch.testing.assert_close(tensor.double(), wanted, rtol=tolerance, atol=tolerance * factor)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("of_results", [None, torch.float16, torch.bfloat16])
def test_all_layers_match_the_definition(on, channels_last, of_results):
    check(*layers(SHAPES, on, channels_last=channels_last), of_results)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_weights_match_the_definition(dtype):
    """Which the interpreter cannot multiply; float64 has no kernel, whoever asks."""
    for backend in ("torch", "triton", "auto"):
        ttfs_kernels.backend(backend)
        check(*layers(SHAPES, dtype=dtype))
        assert "_OneLayer" in str(standardise_weights(*layers(SHAPES, dtype=dtype))[0].grad_fn)


@settings(max_examples=30)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 9), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=7
    ),
    block=st.integers(1, 200),
    channels_last=st.booleans(),
)
def test_blocks_of_any_size(shapes, block, channels_last):
    """Values of one block; a block of less than a neuron is a neuron."""
    weights, gains = layers(shapes, channels_last=channels_last)
    expected = standardise_weights(weights, gains, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardise, "BLOCK_WEIGHTS", block)
        assert all(map(torch.equal, standardise_weights(weights, gains, dtype=torch.bfloat16), expected))
        check(weights, gains, torch.bfloat16)


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


@pytest.mark.parametrize("channels_last", [False, True])
def test_strides_do_not_matter(on, channels_last):
    weights, gains = layers(SHAPES, on, channels_last=channels_last)
    scattered = [torch.stack([w.detach()] * 2, -1)[..., 0].requires_grad_() for w in weights]
    every_second = [torch.stack([gain.detach()] * 2, -1)[:, 0].requires_grad_() for gain in gains]

    def results(weights, gains, grad_of):
        found = standardise_weights(weights, gains)
        return [*found, *torch.autograd.grad(found, [*weights, *gains], [grad_of(result) for result in found])]

    expected = results(weights, gains, torch.ones_like)
    ours = results(scattered, every_second, lambda r: torch.ones((), device=r.device).expand_as(r))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_each_may_be_frozen_or_have_no_gradient(on):
    weights, gains = layers(SHAPES[:3], on)

    def gradients(weights, gains, wanted):
        result = standardise_weights(weights, gains)[1]
        return torch.autograd.grad(result.square().sum() + result[0].sum(), wanted, allow_unused=True)

    complete = gradients(weights, gains, [*weights, *gains])
    assert [g is not None and bool(g.any()) for g in complete] == [False, True, False] * 2
    frozen = [tensor.detach() for tensor in weights], [tensor.detach() for tensor in gains]
    assert torch.equal(gradients(weights, frozen[1], weights[1:2])[0], complete[1])
    assert torch.equal(gradients(frozen[0], gains, gains[1:2])[0], complete[4])


def test_constant_neurons_give_zero_and_finite_gradients(on):
    weight = torch.full((2, 8), 0.25, device=on, requires_grad=True)
    for dtype in (torch.float32, torch.float16):
        (result,) = standardise_weights([weight], [torch.ones(2, device=on)], dtype=dtype)
        assert not result.any()
        assert torch.autograd.grad(result.sum(), weight)[0].isfinite().all()


def test_second_derivatives_are_refused(on):
    weights, gains = layers(SHAPES, on)
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
