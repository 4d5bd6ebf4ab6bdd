"""Layers: what they hand to the operators, whose numbers tests/kernels judges; skips, averages, dropout, pools."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad

from tests import oracles
from tests.nn.common import activations, randomised
from ttfs_kernels import dft_conv2d
from ttfs_kernels.rule import fire
from ttfs_triton.nn import Grid, LatencyEncoder, NetworkConfig, Neuron, Readout, TTFSNetwork, network_graph, resnet20
from ttfs_triton.nn.coding import activation_to_spike_time
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d, SpikeUpsample2d
from ttfs_triton.nn.weighted import skip_step

BLOCKS = "4C3-(4C3-6C3)x2-P2-(6C3s2-6C3-8C3)-12-(12-12)"
SIGMAS = pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
sigmas = st.sampled_from([0.0, 0.25, 1.0])
pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))


def network(specification: str = BLOCKS, size=(10, 12), **options) -> TTFSNetwork:
    config = NetworkConfig(specification, image_size=size, classes=3, **options)
    return randomised(TTFSNetwork(config).double(), seed=1)


@settings(max_examples=40)
@given(
    groups=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    kernel=pairs,
    stride=st.integers(1, 3),
    padding=pairs,
    dilation=pairs,
    skip=st.integers(0, 4),
    standardise=st.booleans(),
    bias=st.booleans(),
    sigma=sigmas,
    seed=st.integers(0, 2**20),
)
def test_convolutions_are_their_operator(
    groups, size, kernel, stride, padding, dilation, skip, standardise, bias, sigma, seed
):
    """A skip takes every k-th row and column of larger maps; channels that the earlier layer lacks are silent."""
    geometry = {"padding": padding, "dilation": dilation, "groups": groups, "stride": stride}
    options = {"skip": skip, "bias": bias, "weight_standardisation": standardise, "dtype": torch.float64}
    layer = randomised(DFTConv2d(4, 4, (2, 1 + kernel[1]), **geometry, **options, neuron=Neuron(sigma)), seed, 1.5)
    x, earlier, late = activations(2, 4, *size, seed=seed), activations(2, 4, *size, seed=seed + 1), {}
    shape = layer.output_shape(tuple(x.shape[1:]))
    if skip and skip_step((skip, *size), shape) is None:
        with pytest.raises(ValueError, match=f"skip must have {skip} channels, and maps that give"):
            layer(x, skip=earlier[:, :skip])
        return
    if skip:
        rows, columns = (-(-before // after) for before, after in zip(size, shape[1:], strict=True))
        late["skip"] = torch.zeros(2, *shape, dtype=torch.float64)
        for c, i, j in np.ndindex(skip, *shape[1:]):
            late["skip"][:, c, i, j] = earlier[:, c, i * rows, j * columns]
        late["skip_weight"] = torch.cat([layer.skip_weight, torch.zeros(4 - skip, dtype=torch.float64)])
    expected = dft_conv2d(x, layer.effective_weight(), layer.bias, **geometry, **late, neuron=layer.neuron)
    assert torch.equal(layer(x, **({"skip": earlier[:, :skip]} if skip else {})), expected)


@SIGMAS
@pytest.mark.parametrize("skip", [0, 3])
def test_fully_connected_layers_are_event_driven_neurons(sigma, skip):
    """One neuron after the other: spikes of its inputs and its skip as events of a sorted sweep."""
    layer = randomised(DFTLinear(6, 5, skip=skip, neuron=Neuron(sigma), dtype=torch.float64), 1, 1.5)
    x, earlier = activations(7, 6, seed=2), activations(7, 3, seed=3)
    activity = layer(x, skip=earlier) if skip else layer(x)
    for k, weight in enumerate(layer.effective_weight().detach().numpy()):
        inputs, synapses = x.numpy(), weight
        if k < skip:
            inputs = np.concatenate([inputs, earlier[:, k : k + 1].numpy()], 1)
            synapses = np.append(weight, layer.skip_weight[k].item())
        options = {"bias": layer.bias[k : k + 1].detach().numpy(), "psp_persistence": sigma}
        expected = oracles.linear_layer(inputs, synapses[None], **options)
        np.testing.assert_allclose(activity[:, k : k + 1].detach().numpy(), expected, rtol=0, atol=1e-9)
        ticked = oracles.linear_layer(inputs, synapses[None], **options, neuron=oracles.clock_driven, dt=0.01)
        assert ((expected - ticked >= -1e-9) & (expected - ticked <= 0.01 + 1e-9)).all()


# ---- averages: means of weighted spikes and of weighted masks, never of spike times


@SIGMAS
@pytest.mark.parametrize("standardise", [False, True])
def test_convolution_reads_the_mean_of_spikes_and_the_mean_of_masks(sigma, standardise):
    options = {"average": 2, "weight_standardisation": standardise, "neuron": Neuron(sigma), "dtype": torch.float64}
    layer = randomised(DFTConv2d(4, 6, 3, 2, 1, groups=2, **options), 1, 1.5)
    plain = randomised(DFTConv2d(4, 6, 3, 2, 1, groups=2, **options | {"average": 1}), 1, 1.5)
    x, weight = activations(2, 4, 12, 8, seed=2), plain.effective_weight()
    potential, slope = (F.conv2d(F.avg_pool2d(values, 2), weight, None, 2, 1, 1, 2) for values in (x, (x > 0).double()))
    potential = potential + layer.bias[:, None, None]
    expected = fire(potential, sigma * slope)[0] if sigma else potential.clamp(0, 1)
    torch.testing.assert_close(layer(x), expected)
    assert sigma == 0 or not torch.allclose(layer(x), plain(F.avg_pool2d(x, 2)))  # the mask of the mean is no mean


@SIGMAS
def test_fully_connected_layers_read_means_of_maps(sigma):
    layer = randomised(DFTLinear(5 * 12, 7, average=12, neuron=Neuron(sigma), dtype=torch.float64), 1)
    weight = randomised(DFTLinear(5, 7, dtype=torch.float64), 1).effective_weight()
    x = activations(3, 5, 3, 4, seed=2)
    potential = F.linear(x.mean((2, 3)), weight, layer.bias)
    slope = sigma * F.linear((x > 0).double().mean((2, 3)), weight)
    torch.testing.assert_close(layer(x.flatten(1)), fire(potential, slope)[0])


# ---- skips and averages in networks


@pytest.mark.parametrize("encoder", ["latency", "analog"])
def test_network_runs_its_layers_with_what_entered_each_block(encoder):
    """A pool behind a block pools neurons that the skip has reached."""
    model, images = network(encoder=encoder), activations(3, 1, 10, 12, seed=3)
    layers = model.features
    x = layers.conv1(images)
    x = layers.conv3(layers.conv2(x), skip=x)
    x = layers.pool1(layers.conv5(layers.conv4(x), skip=x))
    x = layers.conv8(layers.conv7(layers.conv6(x)), skip=x)
    x = layers.fc1(layers.flatten(x))
    assert torch.equal(model.hidden(images), layers.fc3(layers.fc2(x), skip=x))
    skips = {name: layer.skip for name, layer in layers.named_children() if getattr(layer, "skip", 0)}
    assert skips == {"conv3": 4, "conv5": 6, "conv8": 6, "fc3": 12}
    layers = network("4C3-A2-(6C3-8C3)-A-5", (8, 12)).features
    averages = {name: layer.average for name, layer in layers.named_children() if hasattr(layer, "average")}
    assert averages == {"conv1": 1, "conv2": 2, "conv3": 1, "fc1": 24}
    assert resnet20(width=0.25, image_size=(64, 32)).readout.average == 128


# ---- pools


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(2, None, 0), ((2, 3), (2, 1), (0, 1))])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling_keeps_the_earliest_spike_of_each_patch(kernel_size, stride, padding, ceil_mode):
    pool = EarliestSpikePool2d(kernel_size, stride, padding, ceil_mode=ceil_mode)
    x = activations(2, 3, 5, 7, seed=1, silent=0.6).contiguous(memory_format=torch.channels_last)
    y = pool(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.shape[1:] == pool.output_shape(x.shape[1:])
    pooled, times = (activation_to_spike_time(spikes, layer=0) for spikes in (y, x))
    earliest = -F.max_pool2d(-times, pool.kernel_size, pool.stride, pool.padding, ceil_mode=ceil_mode)
    assert torch.equal(pooled, earliest)
    repeated = SpikeUpsample2d((3, 2))(x)
    assert torch.equal(repeated, x.repeat_interleave(3, 2).repeat_interleave(2, 3))


# ---- training, types, words


def test_initialisation_is_kaiming_times_the_gain():
    layer = DFTLinear(2000, 50, initial_gain=0.25)
    assert layer.weight.std().item() == pytest.approx(0.25 * (2 / 2000) ** 0.5, rel=0.02)
    torch.testing.assert_close(layer.weight_gain.detach(), torch.full((50,), 0.25 * 2**0.5))
    assert not layer.bias.any()


def test_dropout_drops_spikes_and_keeps_the_expected_potential():
    layer = DFTLinear(4000, 1, spike_dropout=0.25, weight_standardisation=False, bias=False, dtype=torch.float64)
    x = torch.full((200, 4000), 0.5, dtype=torch.float64)
    kept, weight = layer.synapses(x, torch.full_like(layer.weight, 1e-4))
    assert kept.unique().tolist() == [0.0, 0.5]
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (kept @ weight.T).mean().item() == pytest.approx(0.5 * 4000 * 1e-4, rel=1e-2)
    assert layer.eval().synapses(x, layer.weight)[0] is x


def test_repr_shows_layers_as_they_were_built():
    text = repr(DFTConv2d(4, 8, 3, stride=2, dilation=2, groups=2, neuron=Neuron(0.5), bias=False))
    assert "4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(0, 0), dilation=(2, 2), groups=2, bias=False" in text
    assert "neuron=Neuron(psp_persistence=0.5," in text
    averages, readout = DFTConv2d(4, 8, 1, average=2), Readout(128, 2, spike_dropout=0.25)
    assert "kernel_size=(1, 1), stride=(1, 1)" in repr(averages)
    graph = network_graph(nn.Sequential(LatencyEncoder(), averages, nn.Flatten(), readout), (4, 8, 8))
    assert "kernel_size=(2, 2), stride=(2, 2)" in graph.describe()[1]  # files have pixels
    assert "spike_dropout=0.25" in graph.describe()[2]


@pytest.mark.parametrize(("grid", "standardise"), [(None, True), (None, False), (Grid(4, 4), False)])
@pytest.mark.parametrize("grad", [True, False])
def test_layers_refuse_forward_mode(grid, standardise, grad):
    layer, x = DFTLinear(4, 3, weight_standardisation=standardise), torch.rand(2, 4)
    layer.put_on_grid(grid)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="derivatives must be taken in reverse mode"):
        torch.func.jvp(layer, (x,), (x,))
    with torch.set_grad_enabled(grad), forward_ad.dual_level(), pytest.raises(RuntimeError, match="in reverse mode"):
        layer(forward_ad.make_dual(x, x))
