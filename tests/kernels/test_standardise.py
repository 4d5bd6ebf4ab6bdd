"""Weight standardisation without Triton: against float64 in every layout and dtype, in blocks, with its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ttfs_kernels import fuse_passes, fused, standardise, standardise_weights

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = ((3, 5), (4, 7, 3, 3), (2, 1500), (5, 1, 3, 3), (4, 6, 1, 1), (1, 2))


def by_definition(weight: Tensor, gain: Tensor) -> Tensor:
    flat = weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (gain[:, None] * centred / centred.norm(dim=1, keepdim=True)).view(weight.shape)


def layer(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = True):
    """Weights with a mean, and gains, that ask for gradients."""
    weight = (torch.randn(shape) + 0.3).to(dtype)
    if channels_last and len(shape) == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return weight.requires_grad_(), torch.randn(shape[0]).to(dtype).requires_grad_()


def conditioning(weight: Tensor, gain: Tensor) -> float:
    """By how much rounding errors of gradients may grow: gain/‖w − mean‖ · ‖w‖/‖w − mean‖, at least 1."""
    flat = weight.flatten(1)
    norm = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    return max(1.0, (gain.abs() / norm * flat.norm(dim=1) / norm).max().item())


def check(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> None:
    """Result and gradients against float64, by autograd through the definition; layouts as they were."""
    (result,) = standardise_weights([weight], [gain], dtype=dtype)
    grad = torch.randn_like(result)
    ours = torch.autograd.grad(result, (weight, gain), grad)
    precise = [tensor.detach().double().requires_grad_() for tensor in (weight, gain)]
    expected = by_definition(*precise)
    theirs = torch.autograd.grad(expected, precise, grad.double())
    assert result.dtype == dtype
    assert result.stride() == weight.stride()
    tolerance, factor = TOLERANCE[dtype], conditioning(*precise)
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance * factor)
    for tensor, gradient, wanted in zip((weight, gain), ours, theirs, strict=True):
        assert gradient.dtype == tensor.dtype
        assert gradient.stride() == tensor.stride()
        tolerance = 5 * TOLERANCE[tensor.dtype]
        torch.testing.assert_close(gradient.double(), wanted, rtol=tolerance, atol=tolerance * factor)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("of_weights", "of_results"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_matches_the_definition(shape, channels_last, of_weights, of_results):
    check(*layer(shape, of_weights, channels_last), of_results)


@settings(max_examples=30)
@given(
    neurons=st.integers(1, 9),
    fan_in=st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    block=st.integers(1, 200),
    channels_last=st.booleans(),
)
def test_blocks_of_any_size(neurons, fan_in, block, channels_last):
    """Values of one block; a block of less than a neuron is a neuron."""
    weight, gain = layer((neurons, *fan_in), channels_last=channels_last)
    expected = standardise_weights([weight], [gain], dtype=torch.bfloat16)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardise, "BLOCK_WEIGHTS", block)
        assert torch.equal(standardise_weights([weight], [gain], dtype=torch.bfloat16)[0], expected)
        check(weight, gain, torch.bfloat16)


@pytest.mark.parametrize("shape", [(40, 60), (6, 7, 3, 3)])
@pytest.mark.parametrize("of_results", [torch.float64, torch.float32, torch.bfloat16])
def test_compiled_gradients_match_the_definition(shape, of_results, monkeypatch):
    monkeypatch.setattr(fused, "SMALLEST", 0)
    fuse_passes()
    try:
        of_weights = torch.promote_types(of_results, torch.float32)
        check(*layer(shape, of_weights), of_results)
        assert fused.is_fused(torch.zeros(1))  # nothing fell back
    finally:
        fuse_passes(False)


@pytest.mark.parametrize("channels_last", [False, True])
def test_strides_do_not_matter(channels_last):
    weight, gain = layer((4, 7, 3, 3), channels_last=channels_last)
    expected = standardise_weights([weight], [gain])[0]
    wanted = torch.autograd.grad(expected.sum() + expected[0].sum(), (weight, gain))
    scattered = torch.stack([weight.detach()] * 2, -1)[..., 0].requires_grad_()
    every_second = torch.stack([gain.detach()] * 2, -1)[:, 0].requires_grad_()
    result = standardise_weights([scattered], [every_second])[0]
    torch.testing.assert_close(result, expected)
    upstream = torch.ones((), dtype=result.dtype).expand_as(result) + torch.eye(4)[0].view(4, 1, 1, 1)
    for ours, theirs in zip(torch.autograd.grad(result, (scattered, every_second), upstream), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_each_may_be_frozen():
    weight, gain = layer((4, 7, 3, 3))
    (both,) = standardise_weights([weight], [gain])
    expected = torch.autograd.grad(both.square().sum() + both[0].sum(), (weight, gain))
    for index, pair in enumerate(((weight, gain.detach()), (weight.detach(), gain))):
        (result,) = standardise_weights([pair[0]], [pair[1]])
        (gradient,) = torch.autograd.grad(result.square().sum() + result[0].sum(), pair[index])
        assert torch.equal(gradient, expected[index])


def test_constant_neurons_give_zero_and_finite_gradients():
    weight = torch.full((2, 8), 0.25, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        (result,) = standardise_weights([weight], [torch.ones(2)], dtype=dtype)
        assert not result.any()
        (gradient,) = torch.autograd.grad(result.sum(), weight)
        assert gradient.isfinite().all()


def test_second_derivatives_are_refused():
    weight, gain = layer((4, 5))
    with pytest.raises(RuntimeError, match="standardise_weights: create_graph must be False; got True"):
        torch.autograd.grad(standardise_weights([weight], [gain])[0].square().sum(), weight, create_graph=True)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_in_one_graph():
    weights, gains = zip(*(layer(shape) for shape in SHAPES), strict=True)

    def results(function):
        found = function(weights, gains, dtype=torch.bfloat16)
        return *found, *torch.autograd.grad([f.float().square().sum() for f in found], [*weights, *gains])

    compiled = torch.compile(standardise_weights, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(results(compiled), results(standardise_weights), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
