"""Residual blocks and averages on the chip: the closed form, the network on its grid, and counts by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.chip.networks import assert_same, emitted
from tests.nn.common import activations, randomised
from ttfs_triton.chip import simulate
from ttfs_triton.energy import count
from ttfs_triton.nn import (
    DFTConv2d,
    Grid,
    LatencyEncoder,
    NetworkConfig,
    NetworkError,
    Neuron,
    Readout,
    TTFSNetwork,
    network_graph,
)
from ttfs_triton.nn.integers import quantise_weight
from ttfs_triton.nn.on_chip import ClockedLayer

SPECIFICATION = "4C3-(4C3-6C3)-A2-(6C3-6C3s2-8C3)-A-7-(7-9)"


def residual(sigma: float, specification: str = SPECIFICATION, **options) -> TTFSNetwork:
    config = NetworkConfig(specification, image_size=(8, 12), classes=3, neuron=Neuron(sigma), **options)
    return randomised(TTFSNetwork(config), seed=1).eval()


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])
def test_simulation_nears_the_closed_form_and_equals_one_by_steps(sigma, monkeypatch):
    model, images = residual(sigma), activations(4, 1, 8, 12, seed=3).float()
    settings = {"steps": 8, "weight_bits": 4, "keep_spike_times": True}
    fine = simulate(model, [images], steps=4096, weight_bits=None, keep_spike_times=True)
    summed = simulate(model, [images], **settings)
    monkeypatch.setattr(ClockedLayer, "integrate", ClockedLayer.integrate_stepped)
    assert_same(summed, simulate(model, [images], **settings))
    for name, layer in emitted(model, images).items():
        near = (1 - fine.spike_steps[name] / 4096 - layer).abs() < 0.02
        assert near.float().mean() > 0.99, name
    assert fine.potential_latency_steps == 10 * 4096


@pytest.mark.parametrize("specification", [SPECIFICATION, "4C3-P3p1s2-(4C3-6C3)-A2-5C3-A-7"])
@pytest.mark.parametrize("grid", [Grid(8, 5), Grid(5, 3, state_bits=16)])
def test_network_on_a_grid_is_its_simulation(grid, specification):
    model, images = residual(0.25, specification, grid=grid), activations(20, 1, 8, 12, seed=6).float()
    found = simulate(model, [images], keep_spike_times=True)
    for name, layer in emitted(model, images).items():
        assert torch.equal(((1 - layer) * grid.time_steps).round().int(), found.spike_steps[name]), name
    logits = model(images)
    assert torch.equal(logits.argmax(1), found.predictions)
    assert torch.equal(model.decide(images).prediction, found.first_spike_predictions)
    F.cross_entropy(logits, torch.arange(20) % 3).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_counts_by_hand():
    """A delayed spike meets one synapse; a spike of an averaged window all that its window has."""
    model, images = residual(1.0), activations(5, 1, 8, 12, seed=4).float()
    counts, spikes = count(model, [images]), emitted(model, images)
    layers = {layer.name: layer for layer in counts.layers}
    for name, source, skip, (outputs, kernel, stride, padding), places in (
        ("conv3", "conv2", "conv1", (6, 3, 1, 1), (8, 12)),
        ("conv4", "conv3", None, (6, 6, 2, 2), (4, 6)),
        ("conv6", "conv5", "conv3", (8, 3, 1, 1), (2, 3)),
    ):
        layer, x = layers[name], (spikes[source] > 0).float()
        ones = torch.ones(1, x.shape[1], kernel, kernel)
        operations = outputs * F.conv2d(x, ones, None, stride, padding).sum()
        exist = outputs * F.conv2d(torch.ones_like(x[:1]), ones, None, stride, padding).sum()
        arriving = torch.zeros(len(x), 0)
        if skip is not None:
            step = spikes[skip].shape[2] // places[0]
            arriving = spikes[skip][:, :, ::step, ::step]
            exist = exist + arriving[0].numel()
        assert layer.synaptic_operations == operations + torch.count_nonzero(arriving)
        assert layer.active_inputs == x.sum() + torch.count_nonzero(arriving)
        assert (layer.synapses, layer.dense_macs) == (exist, 5 * exist)
        assert layer.weights == getattr(model.features, name).weight.numel() + (arriving.shape[1] if skip else 0)
    assert layers["conv1"].spikes_delivered == 2 * spikes["conv1"].count_nonzero()  # into the block, and past it
    past = spikes["conv3"][:, :, ::4, ::4].count_nonzero()
    assert layers["conv3"].spikes_delivered == spikes["conv3"].count_nonzero() + past
    # The simulator counts the same of the spikes that it finds.
    simulated = simulate(model, [images], steps=64, keep_spike_times=True)
    assert [layer.synapses for layer in simulated.counts.layers] == [layer.synapses for layer in counts.layers]
    fired = [(simulated.spike_steps[name] < 64).float() for name in ("conv1", "conv2")]
    arrived = fired[0].sum() + 6 * F.conv2d(fired[1], torch.ones(1, 4, 3, 3), None, 1, 1).sum()
    assert {layer.name: layer for layer in simulated.counts.layers}["conv3"].synaptic_operations == arrived


class Skipping(nn.Module):
    """Two layers, the second with a skip of its maker's choice that gets nothing, spikes, images or a sum."""

    def __init__(self, skip: int, take: int, **options) -> None:
        super().__init__()
        self.encoder, self.first = LatencyEncoder(), DFTConv2d(2, 4, 3, padding=1, **options)
        self.second, self.take = DFTConv2d(4, 4, 3, padding=1, skip=skip, **options), take
        self.readout = Readout(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.encoder(x)
        late = (spikes + 1) if self.take == 3 else (None, spikes, x)[self.take]
        return self.readout(self.second(self.first(spikes), skip=late).flatten(1))


def test_neurons_that_only_a_skip_reaches_have_an_input():
    model = Skipping(2, 1, bias=False, weight_standardisation=False)
    nn.init.constant_(model.first.weight, -1.0)  # silent: what the second layer hears has waited
    images = torch.zeros(1, 2, 4, 4)
    images[0, 0, 1, 1], images[0, 1, 2, 3] = 1.0, 0.5
    first, second = count(model, [images]).layers[:2]
    assert (first.spikes, second.spikes, second.synaptic_operations) == (0, 2, 2)
    assert second.without_input == 64 - 2


@pytest.mark.parametrize(
    ("skip", "take", "match"),
    [
        (2, 0, "second.: .*skip must be given if, and only if, .* got none and skip=2"),
        (0, 1, r"second.: .* got spikes \[3, 2, 4, 4\] and skip=0"),
        (3, 1, r"second.: .*skip must have 3 channels, .* got \[2, 4, 4\]"),
        (2, 2, "whose skip is from no earlier layer"),
        (2, 3, "A sum of spike times is no spike time"),
    ],
)
def test_networks_with_wrong_skips_are_refused(skip, take, match):
    with pytest.raises(NetworkError, match=match):
        network_graph(Skipping(skip, take), (2, 4, 4))


def test_weights_of_delayed_spikes_keep_their_own_grain():
    weight = quantise_weight(torch.tensor([[0.1, -0.05], [0.02, 0.01]]), 4)
    late = weight.with_skip_weights(torch.tensor([1.0, 0.01])).skip_weight
    assert late.tolist() == [4 * 16, 4]  # of 70 and 3.5 units
    with pytest.raises(ValueError, match="weights of delayed spikes must be finite"):
        weight.with_skip_weights(torch.tensor([torch.nan, 1.0]))
