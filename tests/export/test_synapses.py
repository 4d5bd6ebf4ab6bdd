"""Weights for other programs."""

import numpy as np
import pytest
import torch

from tests.export.common import images_for, small_network
from ttfs_triton.export.synapses import plain_synapses
from ttfs_triton.hardware.simulation.stages import network_stages
from ttfs_triton.nn import ANNConv2d, ANNLinear


def test_weights_are_those_that_the_simulator_gets():
    for stage in network_stages(small_network(encoder="analog")):
        weight, bias = plain_synapses(stage.weighted)
        expected = stage.synapses()
        assert weight.dtype == np.float32
        assert np.array_equal(weight, expected[0].float().numpy())
        assert expected[1] is not None
        assert np.array_equal(bias, expected[1].float().numpy())


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded(bias):
    network = small_network(neuron="ann", batch_norm=True, psp_persistence=0.0, bias=bias).double()
    value = images_for(network).double()
    for layer in network.features:
        if isinstance(layer, ANNConv2d | ANNLinear):
            weight, folded = (torch.from_numpy(array).double() for array in plain_synapses(layer))
            if isinstance(layer, ANNConv2d):
                potential = torch.nn.functional.conv2d(value, weight, folded, layer.stride, layer.padding)
            else:
                potential = torch.nn.functional.linear(value, weight, folded)
            torch.testing.assert_close(potential.clamp(0, 1), layer(value), rtol=0, atol=1e-5)
        value = layer(value)
