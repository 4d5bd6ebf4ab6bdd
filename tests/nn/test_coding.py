import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nn.common import randomised
from ttfs_kernels.rule import fire
from ttfs_triton.nn import AnalogEncoder, LatencyEncoder, Neuron, SignedEncoder, activation_to_spike_time


def test_spike_times_are_in_the_window_of_the_layer():
    times = activation_to_spike_time(torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64), layer=2)
    assert (times.dtype, times.tolist()) == (torch.float64, [2.0, 2.75, math.inf])


def test_latency_encoder_refuses_what_it_was_not_told_to_map():
    with pytest.raises(TypeError, match=r"floating point in \[0, 1\]; got torch\.uint8\. Divide 8-bit"):
        LatencyEncoder()(torch.zeros(2, dtype=torch.uint8))
    encoder = LatencyEncoder()
    assert encoder(torch.tensor([-1e-3, 1.001])).tolist() == [0.0, 1.0]  # rounding
    assert encoder(torch.zeros(0, 3)).shape == (0, 3)
    for wrong, got in (([0.0, 255.0], "0 to 255"), ([-1.8, 2.0], "-1.8 to 2"), ([math.nan, 0.5], "nan to nan")):
        with pytest.raises(ValueError, match=rf"images must be in \[0, 1\]; got {got}\. Scale them"):
            encoder(torch.tensor(wrong))


def test_latency_encoder_waits_for_no_device_in_training(watched_device):
    from tests.virtual_cuda.watch import recording

    encoder, wrong = LatencyEncoder().to(watched_device), torch.full((4,), 2.0).to(watched_device)
    with recording() as record:
        encoded = encoder.train()(wrong)
    assert not record.synchronisations
    with pytest.raises(ValueError, match="got 2 to 2"):
        encoder.eval()(wrong)
    with recording() as record:
        encoder.eval()(encoded)
        first = record.synchronisations.total()
        encoder(encoded)
    assert first == record.synchronisations.total() > 0  # the first batch only


@settings(max_examples=20)
@given(
    kind=st.sampled_from([AnalogEncoder, SignedEncoder]),
    sigma=st.sampled_from([0.0, 0.25, 1.0]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    options=st.fixed_dictionaries({"bias": st.booleans(), "weight_standardisation": st.booleans()}),
    seed=st.integers(0, 2**20),
)
def test_encoders_read_normalised_pixels(kind, sigma, stride, padding, options, seed):
    """A signed encoder's neurons fire by the paper's rule, an analog one clamps. Padding is the mean image."""
    mean, std = (0.4, 0.6), (0.2, 0.3)
    sigma = 0.0 if kind is AnalogEncoder else sigma
    options |= {} if kind is AnalogEncoder else {"neuron": Neuron(sigma)}
    layer = kind(2, 5, 3, stride, padding, mean=mean, std=std, dtype=torch.float64, **options)
    randomised(layer, seed, scale=1.5)
    images = torch.rand(6, 2, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    shift, scale = torch.tensor((mean, std), dtype=torch.float64).view(2, 2, 1, 1)
    x = (images - shift) / scale
    weight = layer.effective_weight()
    potential = F.conv2d(x, weight, layer.bias, stride, padding)
    slope = sigma * F.conv2d((x > 0).double(), weight, None, stride, padding)
    expected = fire(potential, slope)[0] if sigma else potential.clamp(0, 1)
    spikes = layer(images)
    torch.testing.assert_close(spikes, expected, atol=1e-9, rtol=0)
    assert spikes.is_contiguous(memory_format=torch.channels_last)
    spikes.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    assert not {"mean", "std"} & layer.state_dict().keys()
