"""Average pooling at the synapses: a mean of weighted spikes and of weighted masks, never of spike times."""

import pytest
import torch
import torch.nn.functional as F

from tests.nn.common import activations, randomised
from ttfs_kernels.rule import fire
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    FirstSpikeReadout,
    NetworkConfig,
    Neuron,
    PotentialReadout,
    TTFSNetwork,
    resnet20,
)
from ttfs_triton.nn.models import effective_weights

SIGMAS = pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])


def averaged(specification: str = "4C3-A2-(6C3-8C3)-A-5", **options) -> TTFSNetwork:
    config = NetworkConfig(specification, image_size=(8, 12), classes=3, **options)
    return randomised(TTFSNetwork(config).double(), seed=1)


@SIGMAS
@pytest.mark.parametrize("standardise", [False, True])
def test_convolution_reads_the_mean_of_spikes_and_the_mean_of_masks(sigma, standardise):
    options = {"average": 2, "weight_standardisation": standardise, "neuron": Neuron(sigma), "dtype": torch.float64}
    layer = randomised(DFTConv2d(4, 6, 3, 2, 1, groups=2, **options), 1, 1.5)
    x = activations(2, 4, 12, 8, seed=2)
    plain = DFTConv2d(4, 6, 3, 2, 1, groups=2, **options | {"average": 1})
    plain.load_state_dict(layer.state_dict())
    weight = plain.effective_weight()
    potential, slope = (F.conv2d(F.avg_pool2d(values, 2), weight, None, 2, 1, 1, 2) for values in (x, (x > 0).double()))
    potential = potential + layer.bias[:, None, None]
    expected = fire(potential, sigma * slope)[0] if sigma else potential.clamp(0, 1)
    torch.testing.assert_close(layer(x), expected)
    assert sigma == 0 or not torch.allclose(layer(x), plain(F.avg_pool2d(x, 2)))  # the mask of the mean is no mean


@SIGMAS
@pytest.mark.parametrize("kind", [DFTLinear, PotentialReadout, FirstSpikeReadout])
def test_fully_connected_layers_read_means_of_maps(sigma, kind):
    layer = randomised(kind(5 * 12, 7, average=12, neuron=Neuron(sigma), dtype=torch.float64), 1)
    x = activations(3, 5, 3, 4, seed=2)
    weight = kind(5, 7, neuron=Neuron(sigma), dtype=torch.float64)
    weight.load_state_dict(layer.state_dict())
    means, shares = x.mean((2, 3)), (x > 0).double().mean((2, 3))
    potential = F.linear(means, weight.effective_weight(), layer.bias)
    slope = sigma * F.linear(shares, weight.effective_weight())
    flat = x.flatten(1)
    if kind is DFTLinear:
        torch.testing.assert_close(layer(flat), fire(potential, slope)[0])
    else:
        torch.testing.assert_close(layer.potential(flat), potential)
        torch.testing.assert_close(layer.potential(flat, at="end"), potential + slope)
        torch.testing.assert_close(layer.potential_and_slope(flat)[1], slope)


def test_network_gives_averages_to_the_layers_behind():
    model = averaged()
    assert [(name, layer.average) for name, layer in model.features.named_children() if hasattr(layer, "average")] == [
        ("conv1", 1),
        ("conv2", 2),
        ("conv3", 1),
        ("fc1", 24),
    ]
    assert model.readout.average == 1
    assert resnet20(width=0.25).readout.average == 64
    assert resnet20(width=0.25, image_size=(64, 32)).readout.average == 128
    before, after = model.features.conv2.weight.shape, model.features.conv2.effective_weight().shape
    assert (before, after) == ((6, 4, 3, 3), (6, 4, 6, 6))
    for layer, weight in zip(model.features, effective_weights(model.features), strict=True):
        assert weight is None or torch.equal(weight, layer.effective_weight())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DFTConv2d(2, 3, 3, average=0), "DFTConv2d: average must be at least 1, and 1 for an encoder; got 0"),
        (lambda: AnalogEncoder(1, 3, 3, average=2), "AnalogEncoder: average must be at least 1, and 1 for an encoder"),
        (lambda: DFTConv2d(2, 3, 3, dilation=2, average=2), "dilation must be 1 with average=2; got .2, 2."),
        (lambda: DFTLinear(10, 3, average=4), r"DFTLinear: average must divide in_features \(10\); got 4"),
        (lambda: DFTConv2d(2, 3, 3, average=2)(torch.rand(1, 2, 9, 8)), "must divide into windows of average=2"),
        (lambda: averaged("4C3-A3-4C3"), "maps must divide into windows of an average; got 8×12 in front of A3"),
        (lambda: averaged("4C3-A2-8"), 'an average must stand behind maps .*; got "A2"'),
        (lambda: averaged("4C3-A-4C3"), 'an average must stand behind maps .*; got "A"'),
        (lambda: averaged("4C3-A2-P2"), 'an average must stand behind maps .*; got "A2"'),
        (lambda: averaged("A2-4C3"), 'an average must stand behind maps .*; got "A2"'),
        (lambda: averaged("4C3-8-A"), "convolutions and pools must come before fully connected layers"),
        (lambda: averaged("4C3-A0-4C3"), 'kernel_size must be from 1 to 1024; got "A0"'),
    ],
)
def test_wrong_averages_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
