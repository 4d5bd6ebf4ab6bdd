"""The raster's spikes are those of the layers."""

import pytest
import torch
from torch import nn

from tests.report.cases import small_network
from ttfs_triton.nn import DFTLinear, FirstSpikeReadout, LatencyEncoder, PotentialReadout
from ttfs_triton.report import spikes_of


def test_spikes_of_equals_layer_outputs():
    network, image = small_network(), torch.rand(1, 8, 8)
    layers = spikes_of(network, image)
    assert [layer.name for layer in layers] == ["input", "conv1", "fc1", "readout"]
    assert [layer.window for layer in layers] == [0, 1, 2, 3]
    outputs = image[None]
    for layer in layers:
        if layer.name == "readout":
            break
        name = {"input": "encoder"}.get(layer.name, layer.name)
        for child_name, module in network.features.named_children():
            if child_name == name:
                captured = []
                handle = module.register_forward_hook(lambda _, __, output, kept=captured: kept.append(output))
                network(image[None])
                handle.remove()
                outputs = captured[0][0].flatten()
        assert layer.neurons == len(outputs)
        assert layer.index.equal(outputs.nonzero().flatten())
        torch.testing.assert_close(layer.window + 1 - layer.time, outputs[layer.index].detach())


def test_readout_spikes_are_those_of_the_decision():
    network, image = small_network(), torch.rand(1, 8, 8)
    decision, last = network.decide(image[None]), spikes_of(network, image)[-1]
    times = decision.spike_times[0].detach()
    assert last.index.equal(times.isfinite().nonzero().flatten())
    torch.testing.assert_close(last.time, 3 + times[last.index])


def test_readout_window_has_its_length():
    network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(4, 5), FirstSpikeReadout(5, 3, window=2.0))
    assert [layer.length for layer in spikes_of(network, torch.rand(1, 2, 2))] == [1, 1, 2]


@pytest.mark.parametrize("training", [True, False])
def test_spikes_of_keeps_the_mode(training):
    network = nn.Sequential(LatencyEncoder(), nn.Flatten(), PotentialReadout(4, 3)).train(training)
    spikes_of(network, torch.rand(1, 2, 2))
    assert network.training is training


def test_spikes_of_refuses_batches():
    with pytest.raises(ValueError, match=r"image must be \[channels, height, width\]"):
        spikes_of(small_network(), torch.rand(1, 1, 8, 8))
