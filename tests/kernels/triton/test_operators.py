"""What `backend="triton"` promises beyond numbers: layouts, hands off its inputs, no hidden library."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile

from tests.kernels.test_operators import KINDS, PERSISTENCES, apply, arguments
from tests.kernels.triton.common import serve_by
from ttfs_kernels import Neuron, dft_linear

# Allocation, views, and layout copies; what Triton's interpreter does to reach a tensor's memory is among them.
ALLOWED = {
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "zero_", "fill_"),
        *("view", "reshape", "_unsafe_view", "as_strided", "permute", "select", "detach", "alias"),
        *("contiguous", "clone", "copy_", "to", "_to_copy"),
    )
}


def on(device: torch.device, kind: str, has_bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight, bias on the device that ask for gradients."""
    x, weight, bias = (t if t is None else t.detach().to(device).requires_grad_() for t in arguments(kind, has_bias))
    assert x is not None
    assert weight is not None
    return x, weight, bias


@PERSISTENCES
@pytest.mark.parametrize("provider", ["triton", "library"])
@pytest.mark.parametrize("kind", ["linear", "1x1", "1x1 stride 2", "3x3"])
def test_providers_equal_the_torch_backend(device, monkeypatch, kind, psp_persistence, provider):
    x, weight, bias = on(device, "linear" if kind == "linear" else "conv2d")
    options: dict = {"neuron": Neuron(psp_persistence)}
    if kind.startswith("1x1"):
        weight = weight.detach()[:, :, :1, :1].requires_grad_()
        options["stride"] = 2 if "stride" in kind else 1
    tensors = [t for t in (x, weight, bias) if t is not None]

    def results() -> list[Tensor]:
        y = apply("linear" if kind == "linear" else "conv2d", *tensors, **options)
        return [y, *torch.autograd.grad(y.sum(), tensors)]

    theirs = results()
    serve_by(monkeypatch, provider)
    for our_result, their_result in zip(results(), theirs, strict=True):
        torch.testing.assert_close(our_result, their_result, rtol=1e-3, atol=1e-4)


@PERSISTENCES
@pytest.mark.parametrize("side", [1, 6])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_maps_and_their_gradients_are_channels_last(device, psp_persistence, side, channels, kernel):
    for layout in (torch.channels_last, torch.contiguous_format):
        x = torch.rand(2, channels, side, side, device=device).contiguous(memory_format=layout).requires_grad_()
        weight = torch.randn(3, channels, kernel, kernel, device=device)
        weight = weight.contiguous(memory_format=layout).requires_grad_()
        y = apply("conv2d", x, weight, None, padding=1, neuron=Neuron(psp_persistence), backend="triton")
        assert y.is_contiguous(memory_format=torch.channels_last)
        for gradient in torch.autograd.grad(y.sum(), (x, weight)):
            assert gradient.is_contiguous(memory_format=torch.channels_last)


@KINDS
@PERSISTENCES
def test_strides_do_not_matter(device, kind, psp_persistence):
    x, weight, bias = on(device, kind)
    assert bias is not None

    def results(x, weight, bias, grad_of):
        y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence), backend="triton")
        return y, *torch.autograd.grad(y, (x, weight, bias), grad_of(y))

    expected = results(x, weight, bias, torch.ones_like)
    scattered = [
        torch.stack([t.detach()] * 2, -1)[..., 0].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        for t in (x, weight)
    ]
    every_second = torch.stack([bias.detach()] * 2, -1)[:, 0].requires_grad_()
    # A gradient that is one number, expanded, as that of a sum is.
    expanded = results(*scattered, every_second, lambda y: torch.ones((), device=device).expand_as(y))
    for ours, theirs in zip(expanded, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@KINDS
@PERSISTENCES
def test_inputs_are_never_written_to(device, kind, psp_persistence):
    x, weight, bias = on(device, kind)
    assert bias is not None
    copies = [t.detach().clone() for t in (x, weight, bias)]
    y = apply(kind, x, weight, bias, neuron=Neuron(psp_persistence), backend="triton")
    grad = torch.randn_like(y)
    before = y.detach().clone(), grad.clone()
    first = torch.autograd.grad(y, (x, weight, bias), grad, retain_graph=True)
    second = torch.autograd.grad(y, (x, weight, bias), grad)
    for ours, theirs in zip((x, weight, bias, y, grad, *first), (*copies, *before, *second), strict=True):
        assert torch.equal(ours, theirs)


@KINDS
@PERSISTENCES
def test_gradients_come_in_any_combination(device, kind, psp_persistence):
    tensors = on(device, kind)
    options = {"neuron": Neuron(psp_persistence), "backend": "triton"}
    complete = torch.autograd.grad(apply(kind, *tensors, **options).sum(), tensors)
    for chosen in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        parts = [t.detach().requires_grad_(i in chosen) for i, t in enumerate(tensors) if t is not None]
        y = apply(kind, *parts, **options)
        gradients = torch.autograd.grad(y.sum(), [parts[i] for i in chosen])
        for i, gradient in zip(chosen, gradients, strict=True):
            assert torch.equal(gradient, complete[i])


@KINDS
@PERSISTENCES
def test_inference_equals_training(device, kind, psp_persistence):
    x, weight, bias = on(device, kind)
    options = {"neuron": Neuron(psp_persistence), "backend": "triton"}
    y = apply(kind, x, weight, bias, **options)
    with torch.inference_mode():
        assert torch.equal(apply(kind, x, weight, bias, **options), y)
    with torch.no_grad():
        assert torch.equal(apply(kind, x, weight, bias, **options), y)
    assert not apply(kind, x.detach(), weight.detach(), None, **options).requires_grad


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6), (0, 6), (2, 0, 6)])
def test_linear_keeps_leading_dimensions(device, shape):
    x = torch.rand(shape, device=device, requires_grad=True)
    weight = torch.randn(5, 6, device=device, requires_grad=True)
    y = dft_linear(x, weight, backend="triton")
    assert y.shape == (*shape[:-1], 5)
    grad_x, grad_weight = torch.autograd.grad(y.sum(), (x, weight))
    rows = x.detach().reshape(-1, 6).requires_grad_()
    flat = torch.autograd.grad(dft_linear(rows, weight, backend="triton").sum(), (rows, weight))
    assert torch.equal(grad_x.reshape(-1, 6), flat[0])
    assert torch.equal(grad_weight, flat[1])


@KINDS
@PERSISTENCES
@pytest.mark.parametrize("surrogate_width", [0.0, 0.5])
@pytest.mark.parametrize("provider", ["triton", "library"])
def test_nan_reaches_every_result_that_depends_on_it(
    device, monkeypatch, kind, psp_persistence, surrogate_width, provider
):
    serve_by(monkeypatch, provider)
    x, weight, bias = on(device, kind)
    x = x.detach()
    x[0] = float("nan")
    tensors = (x.requires_grad_(), weight, bias)
    y = apply(kind, *tensors, neuron=Neuron(psp_persistence, surrogate_width=surrogate_width))
    assert y[0].isnan().all()
    assert y[1:].isfinite().all()
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, tensors, torch.ones_like(y))
    assert grad_x[0].isnan().all()
    assert grad_x[1:].isfinite().all()
    assert grad_weight.isnan().all()
    assert grad_bias.isnan().all()


@KINDS
@pytest.mark.parametrize("provider", ["triton", "library"])
def test_overflown_potentials_fire_at_once(device, monkeypatch, kind, provider):
    """A and W beyond the largest float16, as a library call returns them."""
    serve_by(monkeypatch, provider)
    x, weight, bias = (t.detach().half() for t in on(device, kind) if t is not None)
    x, weight = torch.ones_like(x).requires_grad_(), torch.full_like(weight, 6e4).requires_grad_()
    y = apply(kind, x, weight, bias.requires_grad_())
    assert (y == 1).all()
    for gradient in torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y)):
        assert not gradient.any()


@KINDS
def test_other_derivatives_are_refused(device, kind):
    x, weight, bias = on(device, kind)
    y = apply(kind, x, weight, bias, backend="triton")
    with pytest.raises(RuntimeError, match=f"dft_{kind}: create_graph must be False; got True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"dft_{kind}: is_grads_batched must be False; got True"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape, device=device), is_grads_batched=True)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="implement the jvp function"):
        apply(kind, forward_ad.make_dual(x, torch.ones_like(x)), weight, bias, backend="triton")
    with pytest.raises(RuntimeError, match="it must override the setup_context staticmethod"):
        torch.func.grad(lambda x: apply(kind, x, weight, bias, backend="triton").sum())(x)


def library_calls(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> set[str]:
    """PyTorch operators that compute, of a forward and a backward pass."""
    wanted = [t for t in (x, weight, bias) if t is not None]
    grad = torch.ones_like(apply(kind, x, weight, bias, neuron=Neuron(0.25)))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        torch.autograd.grad(apply(kind, x, weight, bias, neuron=Neuron(0.25)), wanted, grad)
    names = {event.name for event in recorded.events() or ()}
    assert names
    return {name for name in names if name.startswith("aten::")} - ALLOWED


@KINDS
@pytest.mark.parametrize("has_bias", [False, True])
def test_triton_calls_no_library(device, monkeypatch, kind, has_bias):
    serve_by(monkeypatch, "triton")
    assert library_calls(kind, *on(device, kind, has_bias)) == set()


@KINDS
def test_library_calls_are_seen(device, monkeypatch, kind):
    serve_by(monkeypatch, "library")
    expected = {"linear": "aten::mm", "conv2d": "aten::convolution_backward"}[kind]
    assert expected in library_calls(kind, *on(device, kind))


@KINDS
@PERSISTENCES
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_autocast_returns_its_dtype_and_float32_gradients(device, kind, psp_persistence, dtype):
    x, weight, bias = on(device, kind)
    options = {"neuron": Neuron(psp_persistence), "backend": "triton"}
    with torch.autocast(device.type, dtype):
        y = apply(kind, x, weight, bias, **options)
    assert y.dtype == dtype
    expected = apply(kind, x, weight, bias, **options)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=8 * eps)
    wanted = [t for t in (x, weight, bias) if t is not None]
    gradients = torch.autograd.grad(y.float().sum(), wanted)
    for gradient, precise in zip(gradients, torch.autograd.grad(expected.sum(), wanted), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - precise).norm() < 16 * eps * precise.norm()


@KINDS
def test_backward_inside_autocast_keeps_the_dtypes_of_forward(device, kind):
    x, weight, bias = on(device, kind)
    assert bias is not None
    y = apply(kind, x, weight, bias, backend="triton")
    expected = torch.autograd.grad(y.sum(), (x, weight, bias), retain_graph=True)
    with torch.autocast(device.type, torch.float16):
        for ours, theirs in zip(torch.autograd.grad(y.sum(), (x, weight, bias)), expected, strict=True):
            assert torch.equal(ours, theirs)


@KINDS
@pytest.mark.parametrize("psp_persistence", [0.0, 1.0])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_in_one_graph(device, kind, psp_persistence, autocast):
    x, weight, bias = on(device, kind)

    def layer(x, weight, bias):
        with torch.autocast(device.type, torch.float16, enabled=autocast):
            return apply(kind, x, weight, bias, neuron=Neuron(psp_persistence), backend="triton").float()

    def results(function):
        y = function(x, weight, bias)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(results(compiled), results(layer), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    with torch.no_grad():
        assert torch.equal(compiled(x, weight, bias), layer(x, weight, bias))
