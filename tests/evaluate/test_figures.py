"""Pictures: written, and refused with a reason; the raster's spikes are those of the layers."""

import importlib.util

import numpy as np
import pytest
import torch

from tests.evaluate.cases import full_report, small_network
from ttfs_triton.evaluate.figures import accuracy_axis, legend_below, lines_svg, page_svg, raster_svg
from ttfs_triton.evaluate.measure import LayerSpikes, spikes_of
from ttfs_triton.evaluate.page import render_page

pytest.importorskip("matplotlib", reason="pictures need matplotlib")


def test_pages_draw_the_same_twice_and_need_matplotlib(monkeypatch):
    def draw():
        return page_svg("name", 1, lambda figure: figure.subplots().set_title("no $x_{$ formula"))

    assert draw() == draw()
    assert "no $x_{$ formula" in draw()
    assert lines_svg("one", {"a": [(1.0, 0.5)]}, "steps", 100) is None
    assert "99.5%" in lines_svg(
        "two", {"a": [(1.0, 0.5), (2.0, 1.0)]}, "steps", 100, doubling=True
    )  # of 100, none wrong
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"write_page: matplotlib must be installed; got none.*\[plot\]"):
        render_page(full_report())


@pytest.mark.parametrize(
    ("accuracies", "labels"),
    [
        ((0.138, 0.9785, 0.9955), {"50%", "80%", "90%", "95%", "98%", "99%", "99.5%"}),  # on a scale of errors
        ((0.82, 0.83, 0.84), {"82%", "83%", "84%"}),
    ],
)
def test_accuracies_are_told_apart(accuracies, labels):
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    axes = figure.subplots()
    points = [axes.plot([8], [share], label=share)[0] for share in accuracies]
    accuracy_axis(axes, accuracies, 10_000)
    legend_below(figure, axes, columns=6)
    figure.canvas.draw()
    assert labels <= {label.get_text() for label in axes.get_yticklabels()}
    heights = [axes.transData.transform(point.get_xydata())[0, 1] for point in points]
    assert (np.diff(heights) > 0.1 * axes.bbox.height).all()
    assert figure.legends[0].get_window_extent().y1 < axes.get_window_extent().y0  # no line can be behind it


def test_raster_stays_small_with_many_spikes():
    torch.manual_seed(0)
    layers = [LayerSpikes(f"conv{i}", i, 20_000, torch.arange(6_000), i + torch.rand(6_000)) for i in range(17)]
    assert len(raster_svg(layers)) < 1_000_000


def test_spikes_are_those_of_the_layers_and_the_decision():
    network, image, outputs = small_network(), full_report().sample.image, {}
    for name, module in network.features.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output[0].flatten()}))
    decision = network.decide(image[None])
    layers = spikes_of(network.train(), image)
    assert network.training
    network.eval()
    assert [(layer.name, layer.window) for layer in layers] == [("input", 0), ("conv1", 1), ("fc1", 2), ("readout", 3)]
    for layer in layers[:-1]:
        found = outputs["encoder" if layer.name == "input" else layer.name].detach()
        assert layer.neurons == len(found)
        assert layer.index.equal(found.nonzero().flatten())
        torch.testing.assert_close(layer.window + 1 - layer.time, found[layer.index])
    times = decision.spike_times[0].detach()
    assert layers[-1].index.equal(times.isfinite().nonzero().flatten())
    torch.testing.assert_close(layers[-1].time, 3 + times[layers[-1].index])
