"""Pictures: written, and refused with a reason; the raster's spikes are those of the layers."""

import importlib.util

import numpy as np
import pytest
import torch

from tests.evaluate.cases import full_report, small_network
from ttfs_triton.evaluate.figures import accuracy_lines, legend_below, page_svg, raster_svg
from ttfs_triton.evaluate.page import render_page
from ttfs_triton.evaluate.result import LayerSpikes, spikes_of

pytest.importorskip("matplotlib", reason="pictures need matplotlib")


def test_pages_draw_the_same_twice_and_need_matplotlib(monkeypatch):
    def draw():
        return page_svg("name", 1, lambda figure: figure.subplots().set_title("no $x_{$ formula"))

    assert draw() == draw()
    assert "no $x_{$ formula" in draw()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"write_page: matplotlib must be installed; found none.*\[plot\]"):
        render_page(full_report())


@pytest.mark.parametrize(
    ("accuracies", "scale", "labels"),
    [
        ((0.138, 0.9785, 0.9955), "function", ["50%", "80%", "90%", "95%", "98%", "99%", "99.5%"]),
        ((0.2, 0.9, 1.0), "function", ["50%", "99.99%"]),  # none wrong is half an image wrong
        ((0.82, 0.83, 0.84), "linear", ["82%", "83%", "84%"]),
    ],
)
def test_accuracies_far_apart_are_told_apart(accuracies, scale, labels):
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    axes = figure.subplots()
    accuracy_lines(axes, {f"{bits}": [(8, share)] for bits, share in enumerate(accuracies)}, 10_000, "steps")
    legend_below(figure, axes, columns=6)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    shown = [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert axes.get_yscale() == scale
    assert set(labels) <= set(shown)
    drawn = [(8, line.get_ydata()[0]) for line in axes.get_lines()]
    heights = axes.transAxes.inverted().transform(axes.transData.transform(drawn))[:, 1]
    assert (np.diff(heights) > 0.1).all()
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
