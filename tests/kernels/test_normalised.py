"""Normalised potentials against the plain layer that they fold into, whose statistics autograd differentiates."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.common import activations
from ttfs_kernels import (
    Neuron,
    Normalisation,
    dft_conv2d,
    dft_linear,
    fuse_passes,
    fused,
    normalised_conv2d,
    normalised_linear,
)

NEURONS = [
    Neuron(0.0),
    Neuron(0.25, derivative_clip=None),
    Neuron(1.0, derivative_clip=None),
    Neuron(1.0, derivative_clip=0.6, surrogate_width=0.5),
    Neuron(0.5, surrogate_width=0.3),
]
EPSILON = 1e-5


class _Surrogate(torch.autograd.Function):
    """x, or its mask [x > 0], with the gradients that layers give their inputs."""

    @staticmethod
    def forward(ctx, x, neuron, mask):
        ctx.save_for_backward(x)
        ctx.neuron, ctx.mask = neuron, mask
        return (x > 0).to(x) if mask else x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,), neuron = ctx.saved_tensors, ctx.neuron
        if not ctx.mask:
            return grad * (x > 0) if neuron.has_slope else grad, None, None
        return grad * (1 - x / neuron.surrogate_width).clamp_min(0) if neuron.has_surrogate else 0 * grad, None, None


def folded(x, weight, gamma, beta, skip, skip_weight, neuron, geometry):
    """The plain layer of g·w and β − g·μ, where g and μ follow from the potentials of this batch."""
    contract = F.linear if geometry is None else lambda x, w: F.conv2d(x, w, None, **geometry)
    A, spikes = (contract(_Surrogate.apply(x, neuron, mask), weight) for mask in (False, True))
    V = A + neuron.psp_persistence * spikes
    V = V if geometry is None else V.movedim(1, -1).flatten(0, 2)
    variance, mean = torch.var_mean(V, 0, correction=0)
    g = gamma * (variance + EPSILON).rsqrt()
    operands = x, g.view(-1, *(1,) * (weight.dim() - 1)) * weight, beta - g * mean
    options = {"skip": skip, "skip_weight": skip_weight, "neuron": neuron, "backend": "torch"}
    y = dft_linear(*operands, **options) if geometry is None else dft_conv2d(*operands, **geometry, **options)
    return y, mean, V.var(0)


def operands(x_shape, weight_shape, geometry, with_skip, dtype=torch.float64):
    x = activations(*x_shape, dtype=dtype).requires_grad_()
    weight = torch.randn(*weight_shape, dtype=dtype).requires_grad_()
    channels = weight_shape[0]
    gamma = (0.3 + torch.rand(channels, dtype=dtype)).requires_grad_()
    beta = (torch.randn(channels, dtype=dtype) / 3).requires_grad_()
    if not with_skip:
        return x, weight, gamma, beta, None, None
    shape = F.linear(x, weight).shape if geometry is None else F.conv2d(x, weight, None, **geometry).shape
    skip = activations(*shape, dtype=dtype).requires_grad_()
    return x, weight, gamma, beta, skip, torch.randn(channels, dtype=dtype).requires_grad_()


def normalised(x, weight, gamma, beta, skip, skip_weight, neuron, geometry, backend="auto"):
    norm = Normalisation(gamma, beta, torch.randn_like(gamma), EPSILON)
    options = {"skip": skip, "skip_weight": skip_weight, "neuron": neuron, "backend": backend}
    if geometry is None:
        return normalised_linear(x, weight, norm, **options)
    return normalised_conv2d(x, weight, norm, **geometry, **options)


def assert_alike(given, neuron, geometry):
    found, expected = normalised(*given, neuron, geometry), folded(*given, neuron, geometry)
    torch.testing.assert_close(tuple(found), expected)
    wanted, grad = [operand for operand in given if operand is not None], torch.randn_like(expected[0])
    ours, theirs = (torch.autograd.grad(outputs[0], wanted, grad) for outputs in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@given(
    st.integers(2, 4), st.integers(2, 6), st.sampled_from([1, 2]), st.integers(1, 2), st.integers(1, 2), st.booleans()
)
def test_convolutions_are_the_layers_that_they_fold_into(neuron, batch, size, groups, stride, dilation, with_skip):
    geometry = {"stride": stride, "padding": 1, "dilation": dilation, "groups": groups}
    given_ = operands((batch, 4, size + 2, size + 3), (6, 4 // groups, 3, 3), geometry, with_skip)
    assert_alike(given_, neuron, geometry)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("with_skip", [False, True])
def test_linear_layers_are_convolutions_of_single_pixels(served, neuron, with_skip):
    given_ = [None if t is None else t.float().to(served.device) for t in operands((9, 7), (5, 7), None, with_skip)]
    maps = [t if t is None or t.dim() == 1 else t[..., None, None] for t in given_]
    results = []
    for tensors, geometry in ((given_, None), (maps, {"padding": 0})):
        tensors = [t if t is None else t.detach().requires_grad_() for t in tensors]
        found = normalised(*tensors, neuron, geometry, served.option)
        gradients = torch.autograd.grad(found.activations.sum(), [t for t in tensors if t is not None])
        results.append([tensor.flatten() for tensor in (*found, *gradients)])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_gradients_are_finite_differences(neuron):
    """Of exact derivatives, away from jumps: no input is near 0, and a step is small beside every border."""
    exact = Neuron(neuron.psp_persistence, derivative_clip=None)
    given_ = operands((3, 2, 5, 4), (4, 2, 3, 3), {"padding": 1}, False)
    weight, gamma, beta = (operand.detach().requires_grad_() for operand in given_[1:4])
    norm_estimate = torch.zeros_like(gamma)

    def layer(weight, gamma, beta):
        norm = Normalisation(gamma, beta, norm_estimate)
        return normalised_conv2d(given_[0].detach(), weight, norm, padding=1, neuron=exact).activations

    assert torch.autograd.gradcheck(layer, (weight, gamma, beta), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize(
    ("neuron", "dtype"), [(NEURONS[0], torch.float32), (NEURONS[3], torch.float32), (NEURONS[3], torch.bfloat16)]
)
def test_fused_passes_are_the_eager_ones(neuron, dtype, monkeypatch):
    monkeypatch.setattr(fused, "SMALLEST", 1)
    geometry = {"padding": 1}
    given_ = operands((3, 4, 6, 5), (6, 4, 3, 3), geometry, True, dtype)
    grad = torch.randn(3, 6, 6, 5, dtype=dtype)
    results = []
    for on in (False, True):
        fuse_passes(on)
        try:
            torch.manual_seed(0)
            found = normalised(*given_, neuron, geometry)
            results.append([*found, *torch.autograd.grad(found.activations, given_, grad)])
        finally:
            fuse_passes(False)
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for eager, compiled in zip(*results, strict=True):
        assert eager.dtype == compiled.dtype
        torch.testing.assert_close(compiled, eager, **tolerance)


def test_another_persistence_compiles_nothing_anew(monkeypatch):
    monkeypatch.setattr(fused, "SMALLEST", 1)
    given_ = operands((3, 4, 6, 5), (6, 4, 3, 3), {"padding": 1}, False)
    fuse_passes()
    try:
        normalised(*given_, Neuron(0.1), {"padding": 1}).activations.sum().backward()
        with torch._dynamo.config.patch(error_on_recompile=True):
            for sigma in (0.2, 0.7, 1.0):
                normalised(*given_, Neuron(sigma), {"padding": 1}).activations.sum().backward()
    finally:
        fuse_passes(False)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_few_rows_and_constant_channels_divide_by_nothing(served, neuron):
    weight, gamma = (torch.randn(shape, device=served.device).requires_grad_() for shape in ((5, 7), (5,)))
    beta = torch.full((5,), 0.5, device=served.device)
    rows = [torch.rand(1, 7), torch.rand(1, 7).expand(4, 7), torch.zeros(4, 7)]
    for x in rows if served.name == "torch" else [*rows, torch.zeros(0, 7)]:
        found = normalised(x.to(served.device), weight, gamma, beta, None, None, neuron, None, served.option)
        grads = torch.autograd.grad(found.activations.sum(), (weight, gamma))
        assert all(tensor.isfinite().all() for tensor in (*found, *grads))


def test_statistics_keep_their_digits_far_from_zero(served):
    """Of potentials a thousand deviations from 0, by PyTorch around an estimate of their mean."""
    x, one = 1000 + torch.randn(4096 if served.name == "torch" else 300, 1, dtype=torch.float64), torch.ones(1, 1)
    estimate = 999.0 if served.name == "torch" else 0.0
    norm = Normalisation(*(torch.full((1,), value, device=served.device) for value in (1.0, 0.0, estimate)))
    of_backend = {"neuron": Neuron(0.0), "backend": served.option}
    found = normalised_linear(x.float().to(served.device), one.to(served.device), norm, **of_backend)
    torch.testing.assert_close(found.variance.cpu().double(), x.float().double().var(0), rtol=1e-4, atol=0)


def test_under_autocast_contractions_have_its_type_and_statistics_float32():
    x, weight, gamma, beta, *_ = operands((3, 4, 6, 5), (6, 4, 3, 3), {"padding": 1}, False, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = normalised_conv2d(x, weight, Normalisation(gamma, beta, torch.zeros(6)), padding=1)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.float32, torch.float32]
    found.activations.sum().backward()
    assert weight.grad.dtype == gamma.grad.dtype == torch.float32


def test_wrong_operands_are_refused():
    norm = Normalisation(torch.ones(6), torch.zeros(6), torch.zeros(6))
    with pytest.raises(ValueError, match="x must"):
        normalised_linear(torch.rand(2, 3), torch.rand(6, 4), norm)
    with pytest.raises(ValueError, match="bias must have shape"):
        normalised_linear(torch.rand(2, 4), torch.rand(5, 4), norm)
    with pytest.raises(ValueError, match="stride must be"):
        normalised_conv2d(torch.rand(2, 4, 5, 5), torch.rand(6, 4, 3, 3), norm, stride=0)
