"""What the operators promise beyond numbers: layouts, refused derivatives, zero gradients, untouched inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from tests.kernels.common import activations, weights
from ttfs_kernels import Neuron, dft_conv2d, dft_linear

PERSISTENCES = pytest.mark.parametrize("psp_persistence", [0.0, 0.25, 1.0])
KINDS = pytest.mark.parametrize("kind", ["linear", "conv2d"])


def arguments(kind: str, has_bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight, bias that ask for gradients."""
    x_shape, weight_shape = ((5, 7), (6, 7)) if kind == "linear" else ((2, 4, 6, 5), (6, 4, 3, 3))
    bias = (torch.randn(6) / 2).requires_grad_() if has_bias else None
    return activations(*x_shape).requires_grad_(), weights(*weight_shape).requires_grad_(), bias


def apply(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None, **options) -> Tensor:
    return dft_linear(x, weight, bias, **options) if kind == "linear" else dft_conv2d(x, weight, bias, **options)


@KINDS
@PERSISTENCES
def test_saturated_and_silent_neurons_have_no_gradient(kind, psp_persistence):
    x, weight, _ = arguments(kind)
    for potential, expected in ((50.0, 1.0), (-50.0, 0.0)):
        bias = torch.full((6,), potential, requires_grad=True)
        y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))
        assert (y == expected).all()
        for gradient in torch.autograd.grad(y.sum(), (x, weight, bias)):
            assert not gradient.any()


@KINDS
@PERSISTENCES
def test_silent_inputs_have_no_gradient_where_there_is_a_mask(kind, psp_persistence):
    x, weight, bias = arguments(kind)
    (grad_x,) = torch.autograd.grad(apply(kind, x, weight, bias, neuron=Neuron(psp_persistence)).sum(), (x,))
    assert grad_x[x > 0].any()
    assert bool(grad_x[x == 0].any()) == (psp_persistence == 0)


@KINDS
@pytest.mark.parametrize("has_bias", [False, True])
def test_two_phase_neurons_are_clamped_convolutions_bit_for_bit(kind, has_bias):
    """Where the contraction is a convolution; products over columns sum in another order."""
    x, weight, bias = arguments(kind, has_bias)
    ours = apply(kind, x, weight, bias, neuron=Neuron(0.0))
    if kind == "linear":
        potential = F.linear(x, weight, bias)
    else:
        potential = F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert torch.equal(ours, potential.clamp(0, 1))
    wanted = [t for t in (x, weight, bias) if t is not None]
    grad = torch.randn_like(ours)
    analog = torch.autograd.grad(F.hardtanh(potential, 0, 1), wanted, grad)
    for ours_, theirs in zip(torch.autograd.grad(ours, wanted, grad), analog, strict=True):
        torch.testing.assert_close(ours_, theirs)


@PERSISTENCES
@pytest.mark.parametrize("side", [1, 6])
@pytest.mark.parametrize("channels", [1, 4])
def test_maps_and_their_gradients_are_channels_last(psp_persistence, side, channels):
    for layout in (torch.channels_last, torch.contiguous_format):
        x = activations(2, channels, side, side).contiguous(memory_format=layout).requires_grad_()
        weight = weights(3, channels, 3, 3).contiguous(memory_format=layout).requires_grad_()
        y = dft_conv2d(x, weight, padding=1, neuron=Neuron(psp_persistence))
        assert y.is_contiguous(memory_format=torch.channels_last)
        for gradient in torch.autograd.grad(y.sum(), (x, weight)):
            assert gradient.is_contiguous(memory_format=torch.channels_last)


@KINDS
@PERSISTENCES
def test_strides_do_not_matter(kind, psp_persistence):
    x, weight, bias = arguments(kind)
    assert bias is not None
    options = {"neuron": Neuron(psp_persistence)}

    def results(x, weight, bias, grad_of):
        y = apply(kind, x, weight, bias, **options)
        return y, *torch.autograd.grad(y, (x, weight, bias), grad_of(y))

    torch.manual_seed(1)
    expected = results(x, weight, bias, torch.randn_like)
    scattered = [
        torch.stack([t.detach()] * 2, -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        for t in (x, weight)
    ]
    every_second = torch.stack([bias.detach()] * 2, -1)[:, 0].requires_grad_()
    torch.manual_seed(1)
    for ours, theirs in zip(results(*scattered, every_second, torch.randn_like), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # A gradient that is one number, expanded, as that of a sum is.
    ones = results(x, weight, bias, lambda y: torch.ones_like(y).contiguous())
    for ours, theirs in zip(results(x, weight, bias, lambda y: torch.ones(()).expand_as(y)), ones, strict=True):
        torch.testing.assert_close(ours, theirs)


@KINDS
@PERSISTENCES
def test_inputs_are_never_written_to(kind, psp_persistence):
    tensors = [t.requires_grad_(False) for t in arguments(kind) if t is not None]
    copies = [t.clone() for t in tensors]
    x, weight, bias = (t.requires_grad_() for t in tensors)
    y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))
    before, grad = y.clone(), torch.randn_like(y)
    grad_before = grad.clone()
    first = torch.autograd.grad(y, (x, weight, bias), grad, retain_graph=True)
    second = torch.autograd.grad(y, (x, weight, bias), grad)
    for ours, theirs in zip((*tensors, y, grad, *first), (*copies, before, grad_before, *second), strict=True):
        assert torch.equal(ours, theirs)


@KINDS
@PERSISTENCES
def test_gradients_come_in_any_combination(kind, psp_persistence):
    x, weight, bias = arguments(kind)
    assert bias is not None
    complete = torch.autograd.grad(
        apply(kind, x, weight, bias, neuron=Neuron(psp_persistence)).sum(), (x, weight, bias)
    )
    for chosen in ((0,), (1,), (2,), (0, 2)):
        parts = [t.detach().requires_grad_(i in chosen) for i, t in enumerate((x, weight, bias))]
        y = apply(kind, *parts, neuron=Neuron(psp_persistence))
        gradients = torch.autograd.grad(y.sum(), [parts[i] for i in chosen])
        for i, gradient in zip(chosen, gradients, strict=True):
            assert torch.equal(gradient, complete[i])


@KINDS
@PERSISTENCES
def test_inference_equals_training(kind, psp_persistence):
    x, weight, bias = arguments(kind)
    y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))
    with torch.inference_mode():
        assert torch.equal(apply(kind, x, weight, bias, neuron=Neuron(psp_persistence)), y)
    assert not apply(kind, x.detach(), weight.detach(), None, neuron=Neuron(psp_persistence)).requires_grad


@PERSISTENCES
def test_empty_batch(psp_persistence):
    x = torch.empty(0, 4, 6, 6, requires_grad=True)
    weight, bias = weights(3, 4, 3, 3).requires_grad_(), torch.zeros(3, requires_grad=True)
    y = dft_conv2d(x, weight, bias, neuron=Neuron(psp_persistence))
    assert y.shape == (0, 3, 4, 4)
    gradients = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert [tuple(g.shape) for g in gradients] == [(0, 4, 6, 6), (3, 4, 3, 3), (3,)]
    assert not any(g.any() for g in gradients)


@KINDS
@PERSISTENCES
def test_other_derivatives_are_refused(kind, psp_persistence):
    """Second ones, forward mode, transforms of torch.func and batches of gradients: never a wrong number."""
    x, weight, bias = (t.detach() for t in arguments(kind) if t is not None)

    def layer(x: Tensor) -> Tensor:
        return apply(kind, x, weight, bias, neuron=Neuron(psp_persistence))

    learning = x.clone().requires_grad_()
    y = layer(learning)
    with pytest.raises(RuntimeError, match=f"dft_{kind}: create_graph must be False; got True"):
        torch.autograd.grad(y.sum(), learning, create_graph=True)
    with pytest.raises(RuntimeError, match=f"dft_{kind}: is_grads_batched must be False; got True"):
        torch.autograd.grad(y, learning, torch.ones(3, *y.shape), is_grads_batched=True)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="implement the jvp function"):
        layer(forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises(RuntimeError, match="it must override the setup_context staticmethod"):
        torch.func.vmap(lambda one: layer(one[None]))(x)
    with pytest.raises(RuntimeError, match="it must override the setup_context staticmethod"):
        torch.func.grad(lambda x: layer(x).sum())(x)


@KINDS
def test_saved_tensors_can_be_moved_away(kind):
    tensors = arguments(kind)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(apply(kind, *tensors).sum(), [t for t in tensors if t is not None])

    expected = gradients()
    packed: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: packed.append(tensor) or tensor.clone(), lambda tensor: tensor):
        moved = gradients()
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


@KINDS
@PERSISTENCES
def test_nan_reaches_every_result_that_depends_on_it(kind, psp_persistence):
    """A NaN input, seen by all neurons of one row: their activations, and every gradient that they have a part in."""
    x, weight, bias = arguments(kind)
    x = x.detach()
    x[0] = float("nan")
    tensors = (x.requires_grad_(), weight, bias)
    y = apply(kind, *tensors, neuron=Neuron(psp_persistence))
    assert y[0].isnan().all()
    assert y[1:].isfinite().all()
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, tensors, torch.ones_like(y))
    assert grad_x[0].isnan().all()
    assert grad_x[1:].isfinite().all()
    assert grad_weight.isnan().all()
    assert grad_bias.isnan().all()
