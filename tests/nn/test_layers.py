import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests import oracles
from tests.nn.common import activations, assert_finite_differences, randomised
from ttfs_triton.nn import AnalogEncoder, DFTConv2d, DFTLinear, Neuron

sigmas = st.sampled_from([0.0, 0.25, 1.0])


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(1, 3),
    in_features=st.integers(2, 9),
    out_features=st.integers(1, 6),
    bias=st.booleans(),
    standardise=st.booleans(),
    sigma=sigmas,
    seed=st.integers(0, 2**20),
)
def test_linear_matches_event_driven_neurons(samples, in_features, out_features, bias, standardise, sigma, seed):
    layer = DFTLinear(
        in_features,
        out_features,
        bias=bias,
        weight_standardisation=standardise,
        neuron=Neuron(sigma),
        dtype=torch.float64,
    )
    randomised(layer, seed, scale=2.0)
    x = activations(samples, in_features, seed=seed)
    weight = layer.effective_weight().detach().numpy()
    initial = layer.bias.detach().numpy() if bias else None
    expected = oracles.linear_layer(x.numpy(), weight, initial, psp_persistence=sigma)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    channels=st.sampled_from([(1, 3, 1), (2, 4, 1), (4, 2, 2), (3, 3, 3)]),
    size=st.tuples(st.integers(4, 6), st.integers(4, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(2, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    sigma=sigmas,
    standardise=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_conv2d_matches_event_driven_neurons(
    channels, size, kernel, stride, padding, dilation, sigma, standardise, seed
):
    in_channels, out_channels, groups = channels
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    kernel = (min(kernel[0], 2), min(kernel[1], 2)) if max(dilation) > 1 else kernel
    layer = DFTConv2d(
        in_channels,
        out_channels,
        kernel,
        **options,
        weight_standardisation=standardise,
        neuron=Neuron(sigma),
        dtype=torch.float64,
    )
    randomised(layer, seed, scale=1.5)
    x = activations(2, in_channels, *size, seed=seed)
    expected = oracles.conv2d_layer(
        x.numpy(),
        layer.effective_weight().detach().numpy(),
        layer.bias.detach().numpy(),
        **options,
        psp_persistence=sigma,
    )
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_linear_is_within_a_tick_of_clock_driven_neurons(sigma):
    layer = randomised(DFTLinear(12, 8, neuron=Neuron(sigma), dtype=torch.float64), seed=1, scale=2.0)
    x = activations(4, 12, seed=2)
    arguments = (x.numpy(), layer.effective_weight().detach().numpy(), layer.bias.detach().numpy())
    ticked = oracles.linear_layer(*arguments, neuron=oracles.clock_driven, psp_persistence=sigma, dt=0.01)
    difference = layer(x).detach().numpy() - ticked
    assert difference.min() >= -1e-9
    assert difference.max() <= 0.01 + 1e-9


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("standardise", [False, True])
def test_linear_gradients_match_numeric_ones(sigma, standardise):
    layer = DFTLinear(6, 4, neuron=Neuron(sigma, None), weight_standardisation=standardise, dtype=torch.float64)
    randomised(layer, seed=3)
    # Away from the borders: silent inputs stay silent under a small step only if they are not moved at all.
    x = activations(5, 6, seed=4, silent=0.0, saturated=0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), atol=1e-7)


def test_conv2d_gradients_match_numeric_ones():
    layer = randomised(DFTConv2d(2, 3, 3, padding=1, neuron=Neuron(derivative_clip=None), dtype=torch.float64), seed=5)
    x = activations(2, 2, 4, 4, seed=6, saturated=0.0)
    assert_finite_differences(lambda: layer(x).square().sum(), list(layer.parameters()))


def test_silent_inputs_get_no_gradient():
    layer = randomised(DFTLinear(8, 6, dtype=torch.float64), seed=7)
    x = activations(4, 8, seed=8).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.all(x.grad[x == 0] == 0)
    assert torch.any(x.grad[x > 0] != 0)


@pytest.mark.parametrize("options", [{}, {"weight_standardisation": False}, {"skip": 4}, {"average": 2}])
@pytest.mark.parametrize("kind", [DFTConv2d, DFTLinear])
def test_two_phase_neurons_are_clamped_relus(kind, options):
    sizes, shape = ((4, 5, 3, 1, 1), (2, 4, 6, 6)) if kind is DFTConv2d else ((144, 5), (2, 144))
    layer = randomised(kind(*sizes, neuron=Neuron(0.0), dtype=torch.float64, **options), seed=1)
    x, late = activations(*shape, seed=2), {}
    weight, skipped = layer.effective_weight(), 0
    if "skip" in options:
        shape = (2, 4, 6, 6) if kind is DFTConv2d else (2, 4)
        late = {"skip": activations(*shape, seed=3)}
        v = F.pad(layer.skip_weight, (0, 1)).view(-1, *[1] * (len(shape) - 2))
        skipped = v * F.pad(late["skip"], (*(0, 0) * (len(shape) - 2), 0, 1))
    contract = (
        (lambda: F.linear(x, weight, layer.bias))
        if kind is DFTLinear
        else (lambda: F.conv2d(x, weight, layer.bias, layer.stride, layer.padding))
    )
    torch.testing.assert_close(layer(x, **late), (contract() + skipped).clamp(0, 1))


def test_layers_do_not_change_their_input():
    for layer, x in (
        (DFTLinear(6, 3), activations(2, 6, seed=1)),
        (DFTConv2d(2, 3, 3), activations(2, 2, 5, 5, seed=1)),
    ):
        x = x.float()
        before = x.clone()
        layer(x).sum().backward()
        torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_initialisation_is_kaiming_times_the_gain():
    torch.manual_seed(0)
    layer = DFTLinear(2000, 50, initial_gain=0.25)
    assert layer.weight.std().item() == pytest.approx(0.25 * (2 / 2000) ** 0.5, rel=0.02)
    torch.testing.assert_close(layer.weight_gain.detach(), torch.full((50,), 0.25 * 2**0.5))
    torch.testing.assert_close(layer.bias.detach(), torch.zeros(50))
    # Standardised or plain, a layer starts with the same norm.
    norm = layer.weight.norm(dim=1).mean().item()
    assert norm == pytest.approx(layer.effective_weight().norm(dim=1).mean().item(), rel=0.02)


def test_dropout_drops_spikes_and_keeps_the_expected_potential():
    torch.manual_seed(0)
    layer = DFTLinear(4000, 1, spike_dropout=0.25, weight_standardisation=False, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, 1e-4)
    x = torch.full((200, 4000), 0.5, dtype=torch.float64)
    kept, weight = layer.synapses(x)
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.all(kept[kept != 0] == 0.5)
    assert (kept @ weight.T).mean().item() == pytest.approx((x @ layer.weight.T).mean().item(), rel=1e-2)
    layer.eval()
    assert layer.synapses(x)[0] is x
    assert "spike_dropout=0.25" in repr(layer)


def test_repr_shows_the_options():
    text = repr(DFTConv2d(4, 8, 3, stride=2, dilation=2, groups=2, neuron=Neuron(0.5), bias=False))
    for part in (
        "4, 8",
        "stride=(2, 2)",
        "dilation=(2, 2)",
        "groups=2",
        "bias=False",
        "neuron=Neuron(psp_persistence=0.5,",
    ):
        assert part in text
    assert "neuron=Neuron(psp_persistence=1.0," in repr(DFTLinear(4, 8))


@pytest.mark.parametrize("layer_type", [DFTLinear, DFTConv2d, AnalogEncoder])
def test_layers_run_in_bfloat16_autocast(layer_type, device):
    if layer_type is DFTLinear:
        layer, x = layer_type(16, 8), activations(4, 16, seed=1).float()
    else:
        layer, x = layer_type(4, 8, 3, padding=1), activations(2, 4, 6, 6, seed=1).float()
    layer, x = layer.to(device), x.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        low = layer(x)
    low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(low.float(), layer(x), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DFTLinear(0, 3), r"DFTLinear: sizes must be positive; got weights of shape \(3, 0\)"),
        (lambda: DFTLinear(2**20, 2**20), r"DFTLinear: weights must be at most 2147483648; got shape"),
        (lambda: DFTConv2d(3, 0, 3), "DFTConv2d: sizes must be positive"),
        (lambda: DFTConv2d(3, 4, 3, groups=2), r"groups must divide in_channels \(=3\) and out_channels \(=4\); got 2"),
        (lambda: DFTLinear(3, 3, initial_gain=0.0), "initial_gain must be positive and finite; got 0.0"),
        (lambda: DFTLinear(3, 3, spike_dropout=1.0), r"spike_dropout must be in \[0, 1\); got 1.0"),
        (lambda: DFTLinear(1, 3), "weight_standardisation must have a fan-in of at least 2; got 1"),
        (lambda: DFTConv2d(3, 3, 1, groups=3), "weight_standardisation must have a fan-in of at least 2"),
    ],
)
def test_layers_reject_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
