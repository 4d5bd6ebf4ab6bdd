"""Scaling a plain-ReLU network into [0, 1]."""

import pytest
import torch

from tests.convert import sources
from tests.convert.sources import assert_same_logits, in_range, randomised, weights_of
from ttfs_triton.convert import ConversionError, calibrate_converted, convert, fit_range
from ttfs_triton.nn import Neuron, network_graph

IMAGES = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def converted(**options):
    return convert(weights_of(randomised(sources.one_layer_head())), neuron=Neuron(0.0), **options)


def hidden(network, images) -> dict[str, torch.Tensor]:
    found = {}

    def fire(stage, inputs, skip):
        found[stage.name] = stage.activations(inputs, skip)
        return found[stage.name]

    network_graph(network).run(images, fire)
    return found


@torch.no_grad()
def test_every_channel_that_is_active_reaches_one():
    network = in_range(converted(), IMAGES)
    for name, activations in list(hidden(network, IMAGES).items())[:-1]:
        highest = activations.transpose(0, 1).flatten(1).amax(1)
        active = highest > 0
        assert active.any(), name
        torch.testing.assert_close(highest[active], torch.ones(int(active.sum())), atol=1e-5, rtol=0)


def test_flattened_maps_are_scaled_channel_by_channel():
    source = randomised(sources.torchvision(5, side=7))
    found = convert(weights_of(source), image_size=64, neuron=Neuron(0.0))  # 2×2 maps are flattened
    assert_same_logits(found, source, torch.rand(4, 3, 64, 64))


def test_lower_percentile_clamps_more():
    saturated = []
    for percentile in (99.9, 90.0):
        network = calibrate_converted(converted(), IMAGES, percentile=percentile)[0].network
        saturated.append(sum(float((a == 1).float().mean()) for a in list(hidden(network, IMAGES).values())[:-1]))
    assert saturated[1] > saturated[0] > 0


def test_bounds_are_clips_and_silent_channels_keep_their_scale():
    source = randomised(sources.one_layer_head())
    with torch.no_grad():
        source.features[1].weight[0], source.features[1].bias[0] = 0.0, -1.0
    network = convert(weights_of(source), neuron=Neuron(0.0)).network
    weight, bias = network.features.conv1.weight[0].clone(), network.features.conv2.bias.clone()
    clips = fit_range(network, IMAGES, [None, 4.0, *[None] * 6])
    assert torch.equal(network.features.conv1.weight[0], weight)
    assert torch.equal(clips["conv2"], torch.full((6,), 4.0))
    torch.testing.assert_close(network.features.conv2.bias, bias / 4)


@pytest.mark.parametrize("percentile", [0.0, 100.1, float("nan")])
def test_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ConversionError, match="percentile must be in"):
        calibrate_converted(converted(), IMAGES, percentile=percentile)
    with pytest.raises(ConversionError, match="at least one image"):
        calibrate_converted(converted(), IMAGES[:0])
