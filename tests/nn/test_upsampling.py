"""Upsampled spikes: the layer, and a U-shaped network through graph, counts, simulator, exports and conversion."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.chip.networks import emitted
from tests.nn.common import activations, randomised
from ttfs_triton.chip import simulate
from ttfs_triton.convert import ConversionError, convert_ann
from ttfs_triton.convert.build import code_of
from ttfs_triton.energy import count
from ttfs_triton.export import compare_onnx, to_c, to_nir, to_onnx
from ttfs_triton.nn import DFTConv2d, Grid, LatencyEncoder, Neuron, Readout, SpikeUpsample2d, network_graph, put_on_grid


class UShaped(nn.Module):
    """Two sizes of maps: pooled, convolved, upsampled, concatenated with earlier maps, and a skip past `last`.

    `upsample` is a module or a function. If `ann`, layers are PyTorch's.
    """

    image_shape = (1, 8, 8)

    def __init__(self, upsample, ann=False) -> None:
        super().__init__()
        spiking = {} if ann else {"neuron": Neuron(0.25, surrogate_width=0.5)}
        conv, skip = (nn.Conv2d, {}) if ann else (DFTConv2d, {"skip": 6})
        self.ann, self.upsample, self.encoder = ann, upsample, nn.Identity() if ann else LatencyEncoder()
        self.down, self.deep = conv(1, 4, 3, padding=1, **spiking), conv(4, 6, 3, padding=1, **spiking)
        self.up, self.last = conv(10, 5, 3, padding=1, **spiking), conv(5, 6, 3, padding=1, **spiking, **skip)
        self.readout = (nn.Linear if ann else Readout)(6 * 64, 3)

    def fire(self, layer: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.ann:
            return F.relu(layer(x) if skip is None else layer(x) + skip)
        return layer(x) if skip is None else layer(x, skip=skip)

    def forward(self, images: Tensor) -> Tensor:
        early = self.fire(self.down, self.encoder(images))
        late = self.upsample(self.fire(self.deep, F.max_pool2d(early, 2)))
        joined = self.fire(self.up, torch.cat([late, early], 1))
        return self.readout(self.fire(self.last, joined, late).flatten(1))


def network(upsample=None) -> UShaped:
    return randomised(UShaped(upsample or SpikeUpsample2d(2)), seed=2).eval()


@torch.no_grad()
def test_graph_has_the_same_layer_for_every_way_to_upsample():
    model, images = network(), activations(4, 1, 8, 8, seed=1).float()
    graph = network_graph(model)
    (late, early), up = graph["up"].inputs, graph["up"]
    assert (late.source, late.shape, graph.delay(up, late)) == ("deep", (6, 8, 8), 0)
    assert (early.source, early.shape, graph.delay(up, early)) == ("down", (4, 8, 8), 1)
    assert "deep → SpikeUpsample2d(scale_factor=(2, 2)), down" in graph.describe()[3]
    logits = graph.run(images, lambda stage, arriving, skip: stage.activations(arriving, skip))
    torch.testing.assert_close(logits, model(images))
    for other in (nn.Upsample(scale_factor=2), nn.Upsample((8, 8)), lambda x: F.interpolate(x, scale_factor=2)):
        assert network_graph(network(other)).describe() == graph.describe()


@torch.no_grad()
def test_counts_equal_brute_force():
    model, images = network(), activations(5, 1, 8, 8, seed=4).float()
    counts, spikes = count(model, [images]), emitted(model, images)
    layers = {layer.name: layer for layer in counts.layers}
    late = (spikes["deep"] > 0).repeat_interleave(2, 2).repeat_interleave(2, 3)  # at its time in every place of a patch
    read = torch.cat([late, spikes["down"] > 0], 1)
    operations = 0
    for _, _, row, column in read.nonzero().tolist():
        operations += 5 * sum(0 <= row + i < 8 and 0 <= column + j < 8 for i in (-1, 0, 1) for j in (-1, 0, 1))
    assert (layers["up"].synaptic_operations, layers["up"].active_inputs) == (operations, int(read.sum()))
    assert layers["deep"].spikes_delivered == 2 * 4 * layers["deep"].spikes > 0  # to `up` and `last`


@torch.no_grad()
def test_network_on_a_grid_is_its_simulation():
    model, images = network(), activations(20, 1, 8, 8, seed=6).float()
    put_on_grid(model, Grid(8, 5))
    simulated = simulate(model, [images], keep_spike_times=True)
    assert torch.equal(model(images).argmax(1), simulated.predictions)
    for name, maps in emitted(model, images).items():
        assert torch.equal((8 - 8 * maps).round().int(), simulated.spike_steps[name])


def test_onnx_agrees_and_other_exports_refuse():
    pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")
    pytest.importorskip("nir", reason="exporting to NIR needs nir")
    model, images = network(), activations(12, 1, 8, 8, seed=8).float()
    compared = compare_onnx(to_onnx(model).SerializeToString(), model, images)
    assert (compared.different, compared.logits) == (0, pytest.approx(0, abs=1e-5))
    for export in (to_nir, to_c):
        with pytest.raises(NotImplementedError, match=rf"{export.__name__}: network must not upsample .* of up\."):
            export(model)


@pytest.mark.parametrize("upsample", [nn.Upsample(scale_factor=2), lambda x: F.interpolate(x, size=(8, 8))])
def test_an_ann_that_upsamples_is_converted(upsample):
    ann, images = UShaped(upsample, ann=True).eval(), torch.rand(6, 1, 8, 8)
    converted, _ = convert_ann(ann, images, percentile=100, encoder="latency")
    with torch.no_grad():
        torch.testing.assert_close(converted(images), ann(images), rtol=1e-4, atol=1e-5)
    assert "SpikeUpsample2d(scale_factor=(2, 2))(" in code_of(converted)
    with pytest.raises(ConversionError, match=r"Upsample \(upsample\), .*bilinear.*in its place .*nearest upsampling"):
        convert_ann(UShaped(nn.Upsample(scale_factor=2, mode="bilinear"), ann=True), images)
