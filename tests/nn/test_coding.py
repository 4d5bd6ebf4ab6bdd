import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from tests.nn.common import activations, randomised
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTLinear,
    EarliestSpikePool2d,
    LatencyEncoder,
    NetworkConfig,
    Neuron,
    SignedEncoder,
    TTFSNetwork,
    activation_to_spike_time,
    spike_time_to_activation,
)


@settings(deadline=None)
@given(
    layer=st.integers(0, 20),
    window=st.floats(0.01, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**20),
)
def test_converters_are_inverse(layer, window, dtype, seed):
    x = activations(50, seed=seed).to(dtype)
    times = activation_to_spike_time(x, layer, window)
    assert times.dtype == dtype
    assert torch.equal(times == math.inf, x == 0)
    back = spike_time_to_activation(times, layer, window)
    assert back.dtype == dtype
    torch.testing.assert_close(back, x, rtol=0, atol=8 * (layer + 1) * torch.finfo(dtype).eps)


def test_converters_use_the_window_of_the_layer():
    times = activation_to_spike_time(torch.tensor([1.0, 0.25, 0.0]), layer=2, window=10.0)
    assert times.tolist() == [20.0, 27.5, math.inf]
    assert spike_time_to_activation(torch.tensor([20.0, 27.5, 30.0, math.inf]), 2, 10.0).tolist() == [1, 0.25, 0, 0]


def test_absolute_times_through_two_layers_match_event_driven_neurons():
    window, layers = 4.0, [randomised(DFTLinear(6, 6, dtype=torch.float64), seed, scale=1.5) for seed in (1, 2)]
    x = activations(3, 6, seed=3)
    times = activation_to_spike_time(x, 0, window).numpy()
    for number, layer in enumerate(layers, start=1):
        x = layer(x)
        weight, bias = layer.effective_weight().detach().numpy(), layer.bias.detach().numpy()
        times = np.array(
            [
                [
                    oracles.event_driven(t, w, b, start=number * window, window=window)
                    for w, b in zip(weight, bias, strict=True)
                ]
                for t in times
            ]
        )
        np.testing.assert_allclose(activation_to_spike_time(x.detach(), number, window).numpy(), times, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: activation_to_spike_time(torch.tensor([0.5, 1.25]), 1),
            r"activation must be in \[0, 1\]; got values from 0.5 to 1.25",
        ),
        (lambda: activation_to_spike_time(torch.tensor([math.nan]), 1), "activation must be in"),
        (lambda: activation_to_spike_time(torch.tensor([0.5]), -1), "layer must be at least 0; got -1"),
        (lambda: activation_to_spike_time(torch.tensor([0.5]), 0, 0.0), "window must be positive; got 0.0"),
        (
            lambda: spike_time_to_activation(torch.tensor([5.0, 8.5]), 1, 4.0),
            r"spike_time must be inf or in the window of layer 1, \[4.0, 8.0\]; got values from 5 to 8.5",
        ),
        (lambda: spike_time_to_activation(torch.tensor([0.5]), 1), "in the window of layer 1"),
        (lambda: spike_time_to_activation(torch.tensor([math.nan]), 1), "in the window of layer 1"),
        (lambda: spike_time_to_activation(torch.tensor([0.5]), 0, -1.0), "window must be positive"),
    ],
)
def test_converters_reject_impossible_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_latency_encoder_fires_earlier_for_brighter_pixels():
    pixels = torch.tensor([0.0, 51.0, 255.0, 300.0, -3.0])
    encoded = LatencyEncoder(255.0, clamp=True)(pixels)
    torch.testing.assert_close(encoded, torch.tensor([0.0, 0.2, 1.0, 1.0, 0.0]))
    # Eq. 1: t = 1 − a / max; a zero pixel never fires.
    assert activation_to_spike_time(encoded, 0).tolist() == pytest.approx([math.inf, 0.8, 0.0, 0.0, math.inf])
    assert repr(LatencyEncoder(255.0)) == "LatencyEncoder(max_value=255.0)"
    assert torch.equal(LatencyEncoder(255)(pixels[:3].byte()), encoded[:3])


def test_latency_encoder_refuses_what_it_was_not_told_to_map():
    with pytest.raises(ValueError, match="max_value must be positive; got 0"):
        LatencyEncoder(0)
    with pytest.raises(TypeError, match=r"floating point in \[0, 1\]; got torch\.uint8\. Divide 8-bit"):
        LatencyEncoder()(torch.zeros(2, dtype=torch.uint8))
    for wrong, found in (([0.0, 255.0], "0 to 255"), ([-1.8, 2.0], "-1.8 to 2"), ([math.nan, 0.5], "nan to nan")):
        with pytest.raises(
            ValueError, match=rf"images must be in \[0, 1\]; got values from {found}\. Scale them, say max"
        ):
            LatencyEncoder()(torch.tensor(wrong))
    assert torch.equal(LatencyEncoder()(torch.tensor([-1e-3, 1.001])), torch.tensor([0.0, 1.0]))  # rounding
    assert LatencyEncoder()(torch.zeros(0, 3)).shape == (0, 3)
    assert "clamp=True" in repr(LatencyEncoder(clamp=True))


def test_latency_encoder_waits_for_no_device_in_training(watched_device):
    from tests.virtual_cuda.watch import recording

    encoder, wrong = LatencyEncoder().to(watched_device), torch.full((4,), 2.0).to(watched_device)
    with recording() as record:
        encoded = encoder.train()(wrong)
    if watched_device.type == "cuda":  # on the CPU nobody waits
        assert not record.synchronisations
        with pytest.raises(ValueError, match="got values from 2 to 2"):
            encoder.eval()(wrong)
        with recording() as record:
            encoder.eval()(encoded)
            first = record.synchronisations.total()
            encoder(encoded)
        assert first == record.synchronisations.total() > 0  # the first batch only


@settings(deadline=None, max_examples=20)
@given(
    channels=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    standardise=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_analog_encoder_matches_float64_loops(channels, stride, padding, standardise, bias, seed):
    rng = np.random.default_rng(seed)
    mean, std = rng.uniform(0.2, 0.8, channels), rng.uniform(0.1, 0.5, channels)
    encoder = AnalogEncoder(
        channels,
        2,
        3,
        stride,
        padding,
        mean=mean,
        std=std,
        bias=bias,
        weight_standardisation=standardise,
        dtype=torch.float64,
    )
    randomised(encoder, seed)
    images = torch.from_numpy(rng.uniform(0, 1, (2, channels, 5, 5)))
    normalised = np.pad(
        (images.numpy() - mean[:, None, None]) / std[:, None, None],
        ((0, 0), (0, 0), (padding, padding), (padding, padding)),
    )
    weight = encoder.effective_weight().detach().numpy()
    result = encoder(images).detach().numpy()
    for n, k, p, q in np.ndindex(result.shape):
        patch = normalised[n, :, p * stride : p * stride + 3, q * stride : q * stride + 3]
        potential = (patch * weight[k]).sum() + (encoder.bias[k].item() if bias else 0)
        assert result[n, k, p, q] == pytest.approx(min(max(potential, 0), 1), abs=1e-9)


def test_analog_encoder_keeps_mean_and_std_out_of_the_state_dict():
    encoder = AnalogEncoder(3, 4, 3, mean=[0.5] * 3, std=[0.25] * 3)
    assert set(encoder.state_dict()) == {"weight", "bias", "weight_gain"}
    x = torch.rand(2, 3, 5, 5)
    other = AnalogEncoder(3, 4, 3)
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(x), other((x - 0.5) / 0.25))


def test_analog_encoder_supports_batch_norm_and_channels_last():
    encoder = AnalogEncoder(1, 4, 3, batch_norm=True, initial_gain=0.25)
    x = torch.rand(4, 1, 6, 6)
    gain = torch.full((4,), 0.25)  # the normalised potential starts at the initial gain
    potential = F.conv2d(x, encoder.effective_weight())
    expected = F.batch_norm(potential, None, None, gain, training=True).clamp(0, 1)
    result = encoder(x)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [AnalogEncoder, SignedEncoder])
def test_encoders_reject_wrong_statistics(kind):
    with pytest.raises(ValueError, match=r"mean must have one entry per input channel \(3\); got \[0.5\]"):
        kind(3, 4, 3, mean=[0.5])
    with pytest.raises(ValueError, match=r"std must be positive; got \[0.0\]"):
        kind(1, 4, 3, std=[0.0])


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
@torch.no_grad()
def test_signed_encoder_is_the_paper_s_neuron_on_normalised_pixels(sigma):
    mean, std = (0.4, 0.6), (0.2, 0.3)
    layer = SignedEncoder(2, 5, 3, 1, 1, mean=mean, std=std, neuron=Neuron(sigma), dtype=torch.float64)
    randomised(layer, 3, scale=1.5)
    images = torch.rand(6, 2, 7, 8, dtype=torch.float64)
    x = (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    weight = layer.effective_weight()
    potential = F.conv2d(x, weight, layer.bias, padding=1)
    slope = sigma * F.conv2d((x > 0).double(), weight, None, padding=1)
    inside = torch.where(potential + slope > 0, (potential + slope) / (1 + slope), 0.0)
    expected = torch.where(potential >= 1, 1.0, inside)
    assert 0.1 < (expected > 0).double().mean() < 0.9
    torch.testing.assert_close(layer(images), expected, atol=1e-6, rtol=0)
    pooled = EarliestSpikePool2d(2)(layer(images))
    torch.testing.assert_close(layer(images, pool=2), pooled, atol=1e-12, rtol=0)


def test_signed_encoder_learns_weights_and_initial_potentials():
    network = TTFSNetwork(NetworkConfig("6C3-P2-8", 3, (8, 8), encoder="signed", mean=(0.5,) * 3, std=(0.2,) * 3))
    network(torch.rand(16, 3, 8, 8)).square().sum().backward()
    first = network.features[0]
    assert isinstance(first, SignedEncoder)
    assert all(parameter.grad.abs().sum() > 0 for parameter in first.parameters())
    assert not {"mean", "std"} & {name.rpartition(".")[2] for name in network.state_dict()}
