"""Weight standardisation of many layers in one kernel call: against float64, in every layout, with its gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ttfs_kernels
from tests.kernels.triton.common import examples, fenced_memory
from ttfs_kernels import standardise_weights
from ttfs_kernels.triton_backend import standardisation
from ttfs_kernels.triton_backend.launch import Launch

SHAPES = ((3, 5), (4, 7, 3, 3), (2, 1500), (4, 3, 1, 2), (1, 2))
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _kernel() -> None:
    """Through our kernel, in the interpreter too; conftest takes the choice back."""
    ttfs_kernels.backend("triton")


def by_definition(weight: Tensor, gain: Tensor) -> Tensor:
    flat = weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (gain[:, None] * centred / centred.norm(dim=1, keepdim=True)).view(weight.shape)


def layers(shapes: tuple[tuple[int, ...], ...], device: torch.device, channels_last: bool = True):
    """Weights with a mean, and gains, that ask for gradients; maps channels last or not."""
    weights = [torch.randn(shape) + 0.3 for shape in shapes]
    if channels_last:
        weights = [w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w for w in weights]
    gains = [torch.randn(shape[0]) for shape in shapes]
    return [w.to(device).requires_grad_() for w in weights], [gain.to(device).requires_grad_() for gain in gains]


def check(weights: list[Tensor], gains: list[Tensor], dtype: torch.dtype | None = None) -> None:
    """Results and gradients against float64, by autograd through the definition; layouts as they were."""
    results = standardise_weights(weights, gains, dtype=dtype)
    grads = [torch.randn_like(result) for result in results]
    ours = torch.autograd.grad(results, [*weights, *gains], grads)
    precise = [tensor.detach().double().requires_grad_() for tensor in (*weights, *gains)]
    expected = [by_definition(*pair) for pair in zip(precise[: len(weights)], precise[len(weights) :], strict=True)]
    theirs = torch.autograd.grad(expected, precise, [grad.double() for grad in grads])
    steepest = max(
        (gain.abs() / (flat - flat.mean(1, keepdim=True)).norm(dim=1)).max().item()
        for flat, gain in zip([p.flatten(1) for p in precise[: len(weights)]], precise[len(weights) :], strict=True)
    )
    for weight, result, wanted in zip(weights, results, expected, strict=True):
        assert result.dtype == (dtype or weight.dtype)
        assert result.stride() == weight.stride()
        tolerance = TOLERANCE[result.dtype]
        torch.testing.assert_close(result.double(), wanted, rtol=tolerance, atol=tolerance)
    for tensor, gradient, wanted in zip((*weights, *gains), ours, theirs, strict=True):
        assert gradient.dtype == tensor.dtype
        assert gradient.stride() == tensor.stride()
        tolerance = 1e-5 * max(1.0, wanted.abs().max().item(), steepest)
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("dtype", [None, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_all_layers_match_the_definition(device, channels_last, dtype):
    check(*layers(SHAPES, device, channels_last), dtype)


@examples(20)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 5), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=7
    ),
    channels_last=st.booleans(),
    block=st.sampled_from([16, 1024]),
    group=st.integers(1, 8),
)
def test_any_layers_in_any_number_of_launches(device, shapes, channels_last, block, group):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardisation, "BLOCK", block)
        patch.setattr(standardisation, "LAYERS", group)
        check(*layers(tuple(shapes), device, channels_last))


def test_one_launch_forward_and_one_backward(device, monkeypatch):
    """Of all layers of a VGG16, and no call of anything else that computes."""
    names = []
    real_run = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self: names.append(self.kernel.__name__) or real_run(self))
    weights, gains = layers(((2, 3),) * 16, device)
    results = standardise_weights(weights, gains)
    torch.autograd.grad(results, [*weights, *gains], [torch.ones_like(result) for result in results])
    assert names == ["standardise", "standardise_backward"]


def test_nothing_is_written_around_the_results(device):
    weights, gains = layers(SHAPES, device, channels_last=False)
    expected = standardise_weights(weights, gains)
    with fenced_memory():
        for ours, theirs in zip(standardise_weights(weights, gains), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_strides_do_not_matter(device):
    weights, gains = layers(SHAPES, device)
    scattered = [torch.stack([w.detach()] * 2, -1)[..., 0].requires_grad_() for w in weights]
    every_second = [torch.stack([gain.detach()] * 2, -1)[:, 0].requires_grad_() for gain in gains]

    def results(weights, gains, grad_of):
        found = standardise_weights(weights, gains)
        return *found, *torch.autograd.grad(found, [*weights, *gains], [grad_of(result) for result in found])

    expected = results(weights, gains, torch.ones_like)
    ours = results(scattered, every_second, lambda r: torch.ones((), device=device).expand_as(r))
    for ours_, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-5)


def test_layers_without_a_gradient_of_their_own(device):
    weights, gains = layers(SHAPES, device)
    results = standardise_weights(weights, gains)
    gradients = torch.autograd.grad(results[1].square().sum() + results[1].sum(), [*weights, *gains])
    for index, gradient in enumerate(gradients):
        assert bool(gradient.any()) == (index in (1, len(weights) + 1))


def test_constant_neurons_give_zero_and_finite_gradients(device):
    weight = torch.full((2, 8), 0.25, device=device, requires_grad=True)
    (result,) = standardise_weights([weight], [torch.ones(2, device=device)])
    assert not result.any()
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    assert gradient.isfinite().all()


def test_second_derivatives_are_refused(device):
    weights, gains = layers(SHAPES, device)
    with pytest.raises(RuntimeError, match="standardise_weights: create_graph must be False; got True"):
        torch.autograd.grad(standardise_weights(weights, gains)[0].sum(), weights[0], create_graph=True)


def test_no_layers():
    assert standardise_weights([], []) == []


@pytest.mark.parametrize("choice", ["torch", "auto"])
def test_elsewhere_each_layer_is_on_its_own(choice):
    """On a CPU, unless Triton is asked for; and float64 has no kernel."""
    ttfs_kernels.backend(choice)
    weights, gains = layers(SHAPES, torch.device("cpu"))
    assert "_OneLayerBackward" in str(standardise_weights(weights, gains)[0].grad_fn)
    check(weights, gains)
    ttfs_kernels.backend("triton")
    assert "_OneLayerBackward" not in str(standardise_weights(weights, gains)[0].grad_fn)
    double = [[tensor.detach().double() for tensor in tensors] for tensors in (weights, gains)]
    for ours, *pair in zip(standardise_weights(*double), *double, strict=True):
        torch.testing.assert_close(ours, by_definition(*pair))
