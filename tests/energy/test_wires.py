"""Residual blocks, averages and concatenated branches: graph, chip, counts, cost and export."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.chip.networks import assert_same, emitted
from tests.nn.common import activations, randomised
from ttfs_triton.chip import simulate
from ttfs_triton.energy import count
from ttfs_triton.energy.cost import Cost, EventWeights
from ttfs_triton.export import compare_nir, to_nir
from ttfs_triton.nn import DFTConv2d, Grid, LatencyEncoder, NetworkConfig, NetworkError, Neuron, Readout, TTFSNetwork
from ttfs_triton.nn.graph import network_graph
from ttfs_triton.nn.integers import quantise_weight
from ttfs_triton.nn.on_chip import ClockedLayer
from ttfs_triton.nn.prepare import put_on_grid
from ttfs_triton.train.target import CostedNetwork, Target
from ttfs_triton.training_options import TargetOptions

SPECIFICATION = "4C3-(4C3-6C3)-A2-(6C3-6C3s2-8C3)-A-7-(7-9)"


def residual(sigma: float, specification: str = SPECIFICATION, **options) -> TTFSNetwork:
    config = NetworkConfig(specification, image_size=(8, 12), classes=3, neuron=Neuron(sigma), **options)
    return randomised(TTFSNetwork(config), seed=1).eval()


class Branches(nn.Module):
    """Two convolutions of one size beside each other, then one that also reads their input, a window late."""

    image_shape = (1, 8, 8)

    def __init__(self, sigma: float = 0.25) -> None:
        super().__init__()
        neuron = Neuron(sigma)
        self.encoder, self.stem = LatencyEncoder(), DFTConv2d(1, 4, 3, padding=1, neuron=neuron)
        self.narrow, self.wide = DFTConv2d(4, 3, 1, neuron=neuron), DFTConv2d(4, 5, 3, padding=1, neuron=neuron)
        self.mix = DFTConv2d(12, 6, 3, padding=1, groups=2, neuron=neuron)
        self.readout = Readout(6 * 4 + 4 * 16, 3, neuron=neuron)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.stem(self.encoder(images))
        joined = F.max_pool2d(torch.cat([self.narrow(spikes), self.wide(spikes), spikes], 1), 2)
        late = F.max_pool2d(spikes, 2).flatten(1)
        return self.readout(torch.concatenate([F.max_pool2d(self.mix(joined), 2).flatten(1), late], axis=-1))


def branched() -> Branches:
    return randomised(Branches(), seed=2).eval()


@pytest.mark.parametrize("sigma", [0.0, 0.25])
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


def test_network_on_a_grid_is_its_simulation_and_trains():
    model, grid = residual(0.25, "4C3-P3p1s2-(4C3-6C3)-A2-(6C3-6C3s2-8C3)-A-7-(7-9)"), Grid(5, 3, state_bits=16)
    put_on_grid(model, grid)
    images = activations(20, *network_graph(model).image_shape, seed=6).float()
    found = simulate(model, [images], keep_spike_times=True)
    for name, layer in emitted(model, images).items():
        assert torch.equal(((1 - layer) * grid.time_steps).round().int(), found.spike_steps[name]), name
    logits = model(images)
    assert torch.equal(logits.argmax(1), found.predictions)
    F.cross_entropy(logits, torch.arange(20) % 3).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Skipping(nn.Module):
    """Two layers, the second with a skip of its maker's choice that gets nothing, spikes, images or a sum."""

    image_shape = (2, 4, 4)

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


def test_delivered_spikes_and_cost_by_hand():
    model, images = branched(), activations(5, 1, 8, 8, seed=4).float()
    counts, spikes = count(model, [images]), emitted(model, images)
    pooled = {name: int(F.max_pool2d(maps, 2).count_nonzero()) for name, maps in spikes.items()}
    delivered = {layer.name: layer.spikes_delivered for layer in counts.layers[:-1]}
    assert delivered == pooled | {"stem": 2 * int(spikes["stem"].count_nonzero()) + 2 * pooled["stem"]}
    price = Cost(0.0, {"narrow": EventWeights(delivered=1.0), "stem": EventWeights(delivered=8.0)})
    costed = CostedNetwork(model, network_graph(model), Target(TargetOptions(target_operations=0.4).target, price, 0.0))
    with costed.watching():
        assert costed(images)[1].item() == pytest.approx(price.of(counts))


def test_nir_of_branches_agrees():
    """ONNX has the same connections in the U-shaped network of tests/nn/test_upsampling.py."""
    pytest.importorskip("snntorch", reason="running NIR needs snnTorch")
    model, images = branched(), activations(12, 1, 8, 8, seed=8).float()
    compared = compare_nir(to_nir(model, steps=64), model, images)
    assert compared.same_decisions + compared.ties >= 11
    assert all(layer.mean < 0.03 and layer.repeated == 0 for layer in compared.times)


def test_weights_of_delayed_spikes_keep_their_own_grain():
    weight = quantise_weight(torch.tensor([[0.1, -0.05], [0.02, 0.01]]), 4)
    late = weight.with_skip_weights(torch.tensor([1.0, 0.01])).skip_weight
    assert late.tolist() == [4 * 16, 4]  # of 70 and 3.5 units
    with pytest.raises(ValueError, match="weights of delayed spikes must be finite"):
        weight.with_skip_weights(torch.tensor([torch.nan, 1.0]))


class Joined(Branches):
    """Spikes joined in a way of its maker's choice."""

    def __init__(self, join) -> None:
        super().__init__()
        self.late, self.join = DFTConv2d(4, 6, 3, padding=1, skip=2), join

    def forward(self, images: Tensor) -> Tensor:
        return self.join(self, self.encoder(images), images)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Skipping(2, 0), "second.: .*skip must be given if, and only if, .* got none and skip=2"),
        (Skipping(3, 1), r"second.: .*skip must have 3 channels, .* got \[2, 4, 4\]"),
        (Skipping(2, 2), "whose skip is from no earlier layer"),
        (Skipping(2, 3), "A sum of spike times is no spike time"),
        (Joined(lambda own, x, _: own.mix(torch.cat([own.stem(x)] * 2, 2))), r"got cat\(\) in .*along the channels"),
        (
            Joined(lambda own, x, images: own.mix(torch.cat([own.stem(x), images], 1))),
            r"got cat\(\) in .*Concatenate spikes of layers",
        ),
        (Joined(lambda own, x, _: own.late(own.stem(x), skip=torch.cat([x, x], 1))), "whose skip is a concatenation"),
    ],
)
def test_other_connections_are_refused(model, match):
    with pytest.raises(NetworkError, match=match):
        network_graph(model)
