"""Spikes that wait and go past layers: layers against event-driven neurons, networks against their layers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import oracles
from tests.nn.common import activations, randomised
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    NetworkConfig,
    Neuron,
    PotentialReadout,
    TTFSNetwork,
)
from ttfs_triton.nn.sizes import skip_step

BLOCKS = "4C3-(4C3-6C3)x2-P2-(6C3s2-6C3-8C3)-12-(12-12)"


def residual(specification: str = BLOCKS, **options) -> TTFSNetwork:
    config = NetworkConfig(specification, image_size=(10, 12), classes=3, **options)
    return randomised(TTFSNetwork(config).double(), seed=1)


def fires(layer: DFTConv2d, x: Tensor, skip: Tensor) -> np.ndarray:
    """One neuron after the other: its field's spikes, and the one that waited, as events of a sorted sweep."""
    weight, v, bias = layer.effective_weight().detach(), layer.skip_weight.detach().numpy(), layer.bias.detach()
    fields = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).numpy()
    height, width = layer.output_shape(tuple(x.shape[1:]))[1:]
    steps = [-(-before // after) for before, after in zip(skip.shape[2:], (height, width), strict=True)]
    found = np.zeros((len(x), len(weight), height * width))
    for n, k, place in np.ndindex(*found.shape):
        a, w = fields[n, :, place], weight[k].flatten().numpy()
        if k < layer.skip:
            row, column = np.unravel_index(place, (height, width))
            a = np.append(a, skip[n, k, row * steps[0], column * steps[1]])
            w = np.append(w, v[k])
        times = np.where(a > 0, 1 - a, np.inf)
        time = oracles.event_driven(times, w, float(bias[k]), psp_persistence=layer.neuron.psp_persistence)
        found[n, k, place] = 0 if np.isinf(time) else 2 - time
    return found.reshape(len(x), len(weight), height, width)


@settings(max_examples=25)
@given(
    sigma=st.sampled_from([0.0, 0.25, 1.0]),
    skip=st.integers(1, 4),
    stride=st.integers(1, 3),
    size=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    seed=st.integers(0, 2**20),
)
def test_convolution_matches_event_driven_neurons(sigma, skip, stride, size, seed):
    """Of larger maps every k-th position arrives, channels that there are not are silent."""
    layer = DFTConv2d(2, 4, 3, stride, 1, skip=skip, neuron=Neuron(sigma), dtype=torch.float64)
    randomised(layer, seed, scale=1.5)
    x, earlier = activations(2, 2, *size, seed=seed), activations(2, skip, *size, seed=seed + 1)
    np.testing.assert_allclose(layer(x, skip=earlier).detach().numpy(), fires(layer, x, earlier), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
def test_fully_connected_layer_matches_event_driven_neurons(sigma):
    layer = randomised(DFTLinear(6, 5, skip=3, neuron=Neuron(sigma), dtype=torch.float64), 1, 1.5)
    x, earlier = activations(7, 6, seed=2), activations(7, 3, seed=3)
    weight, v = layer.effective_weight().detach().numpy(), layer.skip_weight.detach().numpy()
    for k in range(5):
        inputs, synapses = (x.numpy(), weight[k : k + 1])
        if k < 3:
            inputs = np.concatenate([inputs, earlier[:, k : k + 1].numpy()], 1)
            synapses = np.append(weight[k], v[k])[None]
        expected = oracles.linear_layer(inputs, synapses, layer.bias[k : k + 1].detach().numpy(), psp_persistence=sigma)
        np.testing.assert_allclose(layer(x, skip=earlier)[:, k : k + 1].detach().numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("encoder", ["latency", "analog"])
def test_network_runs_its_layers_with_what_entered_each_block(sigma, encoder):
    model = residual(neuron=Neuron(sigma), encoder=encoder)
    images = activations(3, 1, 10, 12, seed=3)
    layers = model.features
    x = layers.conv1(images)
    x = layers.conv3(layers.conv2(x), skip=x)
    x = layers.pool1(layers.conv5(layers.conv4(x), skip=x))
    x = layers.conv8(layers.conv7(layers.conv6(x)), skip=x)
    x = layers.fc1(layers.flatten(x))
    assert torch.equal(model.hidden(images), layers.fc3(layers.fc2(x), skip=x))


def test_skips_have_the_channels_that_enter_their_block():
    layers = dict(residual("4C3-(4C3-6C3)x3-(6C3-6C3-6C3)").features.named_children())
    skips = {name: layer.skip for name, layer in layers.items() if getattr(layer, "skip", 0)}
    assert skips == {"conv3": 4, "conv5": 6, "conv7": 6, "conv10": 6}


def test_a_pool_behind_a_block_is_its_own():
    """The kernel that pools in its epilogue reads no skip."""
    model = residual("4C3-(4C3-4C3)-P2-8")
    x = model.features.conv1(activations(2, 1, 10, 12, seed=1))
    pooled = model.features.pool1(model.features.conv3(model.features.conv2(x), skip=x))
    expected = model.features.fc1(pooled.flatten(1))
    assert torch.equal(model.hidden(activations(2, 1, 10, 12, seed=1)), expected)


class Own(nn.Module):
    """A network of one's own with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AnalogEncoder(1, 4, 3, padding=1)
        self.first, self.second = DFTConv2d(4, 4, 3, padding=1), DFTConv2d(4, 8, 3, padding=1, skip=4)
        self.readout = PotentialReadout(8 * 36, 2)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.encoder(images)
        return self.readout(self.second(self.first(spikes), skip=spikes).flatten(1))


def test_own_network_learns_its_skip_weights():
    model = Own()
    F.cross_entropy(model(torch.rand(4, 1, 6, 6)), torch.tensor([0, 1, 0, 1])).backward()
    assert model.second.skip_weight.grad.abs().sum() > 0


def test_skip_step():
    assert skip_step((3, 8, 8), (4, 4, 4)) == (2, 2)
    assert skip_step((3, 7, 9), (3, 4, 3)) == (2, 3)
    assert skip_step((3, 8, 8), (3, 8, 8)) == (1, 1)
    assert skip_step((3,), (5,)) == ()
    assert skip_step((4, 8, 8), (3, 8, 8)) is None
    assert skip_step((3, 4, 4), (3, 8, 8)) is None
    assert skip_step((3, 8, 8), (3, 5, 5)) is None
    for before, after in pairwise((27, 9, 3, 1)):
        assert skip_step((1, before, before), (1, after, after)) == (3, 3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DFTConv2d(2, 3, 3, skip=4), "DFTConv2d: skip must be 0 or at most the layer's 3 channels; got 4"),
        (lambda: DFTLinear(2, 3, skip=-1), "DFTLinear: skip must be 0 or at most"),
        (lambda: AnalogEncoder(1, 3, 3, skip=1), "AnalogEncoder: skip must be 0, since no earlier spikes"),
        (lambda: PotentialReadout(4, 3, skip=1), "PotentialReadout: skip must be 0"),
        (lambda: DFTLinear(4, 3)(torch.rand(2, 4), skip=torch.rand(2, 3)), r"got spikes \[2, 3\] and skip=0"),
        (lambda: DFTLinear(4, 3, skip=3)(torch.rand(2, 4)), "got none and skip=3. Call layer"),
        (lambda: DFTLinear(4, 3, skip=3)(torch.rand(2, 4), skip=torch.rand(2, 2)), "skip must bring 3 channels"),
        (
            lambda: DFTConv2d(2, 3, 3, skip=2)(torch.rand(1, 2, 6, 6), skip=torch.rand(1, 2, 3, 3)),
            r"every k-th position of makes \[4, 4\]; got \[2, 3, 3\]",
        ),
        (lambda: residual("4C3-(6C3-3C3)"), "a block must end with as many channels as enter it"),
        (lambda: residual("4C3-(4C3s2-4C3p2)-8"), r"got \(4, 10, 12\) in front of Convolution\(channels=4"),
        (
            lambda: residual("(4C3-4C3)", encoder="analog"),
            "start with a convolution, not in a block, for encoder=analog",
        ),
    ],
)
def test_wrong_skips_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
