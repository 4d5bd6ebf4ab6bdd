"""Correlation of a spiking network's layers with an ANN's."""

import pytest
import torch

from tests.convert.sources import SHORT, Named, classifier, features, randomised, weights_of
from ttfs_triton.convert import convert
from ttfs_triton.convert.correlation import layer_correlations
from ttfs_triton.convert.fit_range import fit_range


def converted(psp_persistence: float):
    source = randomised(
        Named(
            features=torch.nn.Sequential(*features(SHORT)),
            flatten=torch.nn.Flatten(),
            classifier=classifier(6 * 16, 96, 4),
        )
    )
    return convert(weights_of(source), psp_persistence=psp_persistence, image_size=16)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_correlation_is_that_of_all_activations(batch_size):
    images = torch.rand(12, 3, 16, 16)
    pair = fit_range(converted(1.0), images)
    found = layer_correlations(pair.network, pair.ann, images, batch_size)
    activations = pair.ann.hidden(images)
    assert list(found) == list(activations)
    x = images
    for name, layer in pair.network.features.named_children():
        x = layer(x)
        if name in found:
            both = torch.stack([x.flatten(), activations[name].flatten()]).detach().double()
            value = found[name]
            assert value is not None
            assert value == pytest.approx(torch.corrcoef(both)[0, 1].item(), abs=1e-6)


def test_correlation_without_persistence_is_one():
    images = torch.rand(8, 3, 16, 16)
    pair = fit_range(converted(0.0), images)
    values = layer_correlations(pair.network, pair.ann, images).values()
    assert values
    assert all(value == pytest.approx(1, abs=1e-6) for value in values)


def test_correlation_of_a_constant_layer_is_none():
    images = torch.rand(4, 3, 16, 16)
    pair = fit_range(converted(1.0), images)
    with torch.no_grad():
        pair.network.features.conv2.bias.fill_(-100.0)
    found = layer_correlations(pair.network, pair.ann, images)
    assert found["conv1"] is not None
    assert found["conv2"] is None
