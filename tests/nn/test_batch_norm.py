"""Batch norm of spiking layers and networks: folds, running statistics; whitened encoders."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from ttfs_kernels import Neuron
from ttfs_triton.energy import count
from ttfs_triton.nn import DFTLinear, Grid, NetworkConfig, TTFSNetwork, cifarnet, fold_batch_norm, network_graph, whiten
from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.prepare import unfold_batch_norm


def trained(sigma, encoder):
    """A network in float64 whose statistics are those of some batches."""
    options = {"neuron": Neuron(sigma, surrogate_width=0.5), "batch_norm": True, "encoder": encoder}
    config = NetworkConfig("8C2-6C3-P2-(6C3-6C3)-A2-4C3-10", 2, (13, 13), 3, **options)
    network = TTFSNetwork(config).double()
    for _ in range(40):
        network(torch.rand(16, 2, 13, 13).double())
    return network.eval()


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("encoder", ["analog", "signed"])
def test_a_folded_network_is_the_one_in_evaluation_and_is_unfolded_again(sigma, encoder):
    network, images = trained(sigma, encoder), torch.rand(700, 2, 13, 13).double()
    folded, few = deepcopy(network), images[:9]
    folded.fold_batch_norm()
    torch.testing.assert_close(folded(few), network(few))
    for ours, plain in zip(network_graph(network).weighted, network_graph(folded).weighted, strict=True):
        for one, other in zip(ours.synapses(), plain.synapses(), strict=True):  # which counts and exports read
            torch.testing.assert_close(one, other)
    assert not folded.config.batch_norm
    assert not any("batch_norm" in name for name in folded.state_dict())
    again = TTFSNetwork(folded.config).double()
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again.eval()(few), folded(few))
    before = deepcopy(network.state_dict())
    torch.testing.assert_close(fold_batch_norm(deepcopy(network))(few), network(few))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)  # evaluation changes no statistics

    unfolded = TTFSNetwork(network.config).double()
    unfold_batch_norm(unfolded, folded, images)
    torch.testing.assert_close(unfolded.eval()(few), folded(few))
    # Statistics are those of the images: a training step's normalisation changes next to nothing.
    running = unfolded.features.conv2.batch_norm.running_mean
    mean = running.clone()
    unfolded.train()(images)
    torch.testing.assert_close(running, mean, rtol=1e-3, atol=1e-3)

    for model in (network, folded):
        model.put_on_grid(Grid(16, 8))  # which folds first
    assert torch.equal(network(few), folded(few))


def test_counting_leaves_a_frozen_batch_norm_frozen():
    network = TTFSNetwork(NetworkConfig("4C3-4C3", batch_norm=True)).train()
    network.features.conv2.batch_norm.eval()
    count(network, [torch.rand(2, 1, 28, 28)])
    assert not network.features.conv2.normalises


def test_running_statistics_are_a_mean_and_later_a_moving_one():
    layer = DFTLinear(5, 3, batch_norm=True, neuron=Neuron(0.5)).double()
    expected, norm = torch.zeros(2, 3).double(), layer.batch_norm
    for batch in range(12):
        x = torch.rand(16, 5).double()
        potential = F.linear(x + 0.5 * (x > 0), layer.weight)
        layer(x)
        expected.lerp_(torch.stack([potential.mean(0), potential.var(0)]), max(1 / (batch + 1), 0.1))
        torch.testing.assert_close(torch.stack([norm.running_mean, norm.running_var]), expected)


def test_whitened_patches_are_uncorrelated():
    images = torch.rand(200, 3, 12, 12).cumsum(2) / 6  # neighbours alike
    encoder = AnalogEncoder(3, 24, 2, mean=[1.0] * 3, std=[0.3] * 3, weight_standardisation=False, initial_gain=0.25)
    whiten(encoder, images)
    outputs = F.conv2d(encoder.normalise(images), encoder.weight)
    outputs = outputs.movedim(1, -1).flatten(0, 2)
    products = outputs.T @ outputs / len(outputs)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    expected = 0.0625 * torch.kron(signs, torch.eye(12))
    torch.testing.assert_close(products, expected, rtol=0, atol=4e-3)
    assert not encoder.bias.any()


@pytest.mark.parametrize(("convolutions", "channels", "side"), [(2, 3, 32), (3, 3, 32), (2, 1, 28)])
def test_cifarnet_has_its_shape_and_folds_into_its_configuration(convolutions, channels, side):
    network = cifarnet(side, channels, 7, width=0.25, convolutions=convolutions, bias=False)
    assert network(torch.rand(2, channels, side, side)).shape == (2, 7)
    layers = [stage.shape[0] for stage in network_graph(network).stages[:-1]]
    assert layers == [8 * channels, *[16] * convolutions, *[64] * 2 * convolutions]
    assert not network.features.conv1.weight.requires_grad
    assert network.features.conv1.batch_norm is None
    starts = [norm.bias.mean().item() for norm in network.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    plain = [0.0] * (convolutions - 1)
    assert starts == pytest.approx([-0.4, *plain] * 2 + [-0.4, *plain[:-1], -0.4])
    network.fold_batch_norm()
    TTFSNetwork(network.config).load_state_dict(network.state_dict())
