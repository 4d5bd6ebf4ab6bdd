"""Scaling a plain-ReLU network into [0, 1]."""

import pytest
import torch

from tests.convert import sources
from tests.convert.sources import randomised, weights_of
from ttfs_triton.convert import ConversionError, FoldedANN, convert
from ttfs_triton.convert.fit_range import fit_range
from ttfs_triton.nn import Neuron

IMAGES = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [sources.torchvision, sources.one_layer_head, lambda: sources.torchvision(side=1)])
def test_scaled_network_computes_the_same_without_the_clamp(build):
    before = convert(weights_of(randomised(build())))
    expected, reached = before.ann(IMAGES), before.ann.hidden(IMAGES)
    after = fit_range(before, IMAGES, percentile=100)
    assert after.ann.bound == 1
    unclamped = FoldedANN(after.ann.config, after.ann.layers.state_dict(), bound=None)
    torch.testing.assert_close(unclamped(IMAGES), expected, atol=1e-4, rtol=1e-4)
    # At the 100th percentile nothing of these images is clamped, and every channel that is ever active reaches 1.
    torch.testing.assert_close(after.ann(IMAGES), expected, atol=1e-4, rtol=1e-4)
    for name, activations in after.ann.hidden(IMAGES).items():
        channels, active = activations.transpose(0, 1).flatten(1), reached[name].transpose(0, 1).flatten(1).amax(1) > 0
        torch.testing.assert_close(channels.amax(1)[active], torch.ones(int(active.sum())), atol=1e-5, rtol=0)


def test_flattened_maps_are_scaled_channel_by_channel():
    before = convert(weights_of(randomised(sources.torchvision(5, side=7))), image_size=64)  # 2×2 maps are flattened
    images = torch.rand(4, 3, 64, 64)
    expected = before.ann(images)
    after = fit_range(before, images, percentile=100)
    torch.testing.assert_close(after.ann(images), expected, atol=1e-4, rtol=1e-4)


def test_spiking_network_gets_the_same_weights():
    after = fit_range(convert(weights_of(randomised(sources.one_layer_head())), neuron=Neuron(0.0)), IMAGES)
    torch.testing.assert_close(after.network(IMAGES), after.ann(IMAGES), atol=1e-4, rtol=1e-4)


def test_lower_percentile_clamps_more():
    saturated = []
    for percentile in (99.9, 90.0):
        ann = fit_range(convert(weights_of(randomised(sources.one_layer_head()))), IMAGES, percentile=percentile).ann
        saturated.append(sum(float((a == 1).float().mean()) for a in ann.hidden(IMAGES).values()))
    assert saturated[1] > saturated[0] > 0


def test_clamped_source_is_left_alone():
    before = convert(weights_of(randomised(sources.paper())), trained_as="ann")
    assert fit_range(before, IMAGES) is before


def test_silent_channels_keep_their_scale():
    source = randomised(sources.one_layer_head())
    with torch.no_grad():
        source.features[1].weight[0], source.features[1].bias[0] = 0.0, -1.0
    before = convert(weights_of(source))
    weight = before.ann.layers["conv1"].weight[0].clone()
    after = fit_range(before, IMAGES)
    assert torch.equal(after.ann.layers["conv1"].weight[0], weight)


@pytest.mark.parametrize("percentile", [0.0, 100.1, float("nan")])
def test_percentile_out_of_range_is_refused(percentile):
    before = convert(weights_of(randomised(sources.one_layer_head())))
    with pytest.raises(ConversionError, match="percentile must be in"):
        fit_range(before, IMAGES, percentile=percentile)


def test_no_images_are_refused():
    before = convert(weights_of(randomised(sources.one_layer_head())))
    with pytest.raises(ConversionError, match="at least one image"):
        fit_range(before, IMAGES[:0])
