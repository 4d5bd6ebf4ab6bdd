"""Branches whose spikes are concatenated: graph, grid, counts by hand, cost, and both exports."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.chip.networks import emitted
from tests.nn.common import activations, randomised
from ttfs_triton.chip import simulate
from ttfs_triton.energy import count
from ttfs_triton.energy.cost import Cost, EventWeights
from ttfs_triton.export import compare_nir, compare_onnx, to_nir, to_onnx
from ttfs_triton.nn import DFTConv2d, Grid, LatencyEncoder, NetworkError, Neuron, Readout, network_graph
from ttfs_triton.nn.chip import put_on_grid
from ttfs_triton.train.options import TargetOptions
from ttfs_triton.train.target import CostedNetwork, Target


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


def network(sigma: float = 0.25) -> Branches:
    return randomised(Branches(sigma), seed=2).eval()


@torch.no_grad()
def test_graph_says_what_each_layer_reads_and_runs_as_the_network():
    model, images = network(), activations(4, 1, 8, 8, seed=1).float()
    graph = network_graph(model)
    read = {stage.name: [(wire.source, graph.delay(stage, wire)) for wire in stage.inputs] for stage in graph.stages}
    assert read["mix"] == [("narrow", 0), ("wide", 0), ("stem", 1)]
    assert read["readout"] == [("mix", 0), ("stem", 2)]
    assert [wire.shape for wire in graph["mix"].inputs] == [(3, 4, 4), (5, 4, 4), (4, 4, 4)]
    assert (graph["narrow"].window, graph["wide"].window, graph.windows) == (2, 2, 4)
    assert "reads narrow → EarliestSpikePool2d" in graph.describe()[4]
    found = graph.run(images, lambda stage, arriving, skip: stage.activations(arriving, skip))
    torch.testing.assert_close(found, model(images))


def test_network_on_a_grid_is_its_simulation_and_trains():
    model, images = network(), activations(20, 1, 8, 8, seed=6).float()
    put_on_grid(model, Grid(8, 5))
    found = simulate(model, [images])
    logits = model(images)
    assert torch.equal(logits.argmax(1), found.predictions)
    F.cross_entropy(logits, torch.arange(20) % 3).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_delivered_spikes_and_cost_by_hand():
    model, images = network(), activations(5, 1, 8, 8, seed=4).float()
    counts, spikes = count(model, [images]), emitted(model, images)
    pooled = {name: int(F.max_pool2d(maps, 2).count_nonzero()) for name, maps in spikes.items()}
    layers = {layer.name: layer for layer in counts.layers}
    for name in ("narrow", "wide", "mix"):
        assert layers[name].spikes_delivered == pooled[name]
    assert layers["stem"].spikes_delivered == 2 * int(spikes["stem"].count_nonzero()) + 2 * pooled["stem"]
    assert layers["mix"].active_inputs == pooled["narrow"] + pooled["wide"] + pooled["stem"]
    simulated = simulate(model, [images], steps=64)
    assert [layer.synapses for layer in simulated.counts.layers] == [layer.synapses for layer in counts.layers]
    price = Cost(0.0, {"narrow": EventWeights(delivered=1.0), "stem": EventWeights(delivered=8.0)})
    wanted = TargetOptions(target_operations=0.4).target
    assert wanted is not None
    costed = CostedNetwork(model, network_graph(model), Target(wanted, price, 0.0))
    with costed.watching():
        found = costed(images)[1]
    assert found.item() == pytest.approx(price.of(counts))


def test_exports_agree():
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    pytest.importorskip("snntorch", reason="running NIR needs snnTorch")
    model, images = network(), activations(12, 1, 8, 8, seed=8).float()
    compared = compare_onnx(to_onnx(model).SerializeToString(), model, images)
    assert (compared.different, compared.logits) == (0, pytest.approx(0, abs=1e-5))
    compared = compare_nir(to_nir(model, steps=64), model, images)
    assert compared.same_decisions + compared.ties >= 11
    assert all(layer.mean < 0.03 and layer.repeated == 0 for layer in compared.times)


@pytest.mark.parametrize(
    ("join", "match"),
    [
        (lambda spikes, images: torch.cat([spikes, spikes], 2), r"got cat\(\) in .*along the channels"),
        (lambda spikes, images: torch.cat([spikes, images], 1), r"got cat\(\) in .*Concatenate spikes of layers"),
    ],
)
def test_other_concatenations_are_refused(join, match):
    class Other(Branches):
        def forward(self, images: Tensor) -> Tensor:
            return self.readout(self.mix(join(self.stem(self.encoder(images)), images)).flatten(1))

    with pytest.raises(NetworkError, match=match):
        network_graph(Other())


def test_skip_of_a_concatenation_is_refused():
    class Skipping(Branches):
        def forward(self, images: Tensor) -> Tensor:
            spikes = self.encoder(images)
            return self.late(self.stem(spikes), skip=torch.cat([spikes, spikes], 1))

    model = Skipping()
    model.late = DFTConv2d(4, 6, 3, padding=1, skip=2)
    with pytest.raises(NetworkError, match="whose skip is a concatenation"):
        network_graph(model)
