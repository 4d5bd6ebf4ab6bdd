"""Pictures: written, and refused with a reason."""

import importlib.util

import numpy as np
import pytest

from tests.hardware.energy.energy_cases import convolutional_network
from ttfs_triton.hardware import Sweep, SweepRow
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.estimate import estimate, sensitivity
from ttfs_triton.hardware.energy.prices import Price
from ttfs_triton.report import sweep_details
from ttfs_triton.report.figures import draw_chips, draw_layers, draw_sensitivity, draw_sweep, sweep_on
from ttfs_triton.report.plots import value_axis

UNKNOWN = Price(None, unit="pJ", status="unpublished", source="nowhere")
SECRET = Chip("secret", "no figures", "including fetch", {"synop": UNKNOWN})


@pytest.fixture(scope="module")
def report():
    return estimate(convolutional_network(), "lemaire45:int8", steps=8)


def drawings(report):
    silent = estimate(convolutional_network(), SECRET, steps=8)
    return {
        "layers": lambda path: draw_layers(report, path),
        "chips": lambda path: draw_chips([report, silent], path),
        "sweep": lambda path: draw_sweep(Sweep(9, (SweepRow(4, 2, 0.5, 0.5, 3, 30, 5, 0.1, 2.0),)), path),
        "sensitivity": lambda path: draw_sensitivity(sensitivity(report, spread=0.1), path),
    }


@pytest.mark.parametrize("name", ["layers", "chips", "sensitivity", "sweep"])
def test_pictures_are_written_and_the_same_twice(report, name, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    draw = drawings(report)[name]
    first, second = draw(tmp_path / "first.svg"), draw(tmp_path / "second.svg")
    assert first.read_text().startswith("<?xml")
    assert first.read_bytes() == second.read_bytes()
    assert draw(tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["layers", "chips", "sensitivity", "sweep"])
def test_pictures_need_matplotlib(report, name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=rf"draw_{name}: matplotlib must be installed; found none.*\[plot\]"):
        drawings(report)[name](tmp_path / "x.svg")


def test_pictures_need_a_price(tmp_path):
    silent = estimate(convolutional_network(), SECRET, steps=8)
    with pytest.raises(ValueError, match=r"draw_layers: estimate must have a price; got none on secret. Choose"):
        draw_layers(silent, tmp_path / "x.svg")
    with pytest.raises(ValueError, match="draw_chips: estimates must have a price; got 1 without"):
        draw_chips([silent], tmp_path / "x.svg")
    with pytest.raises(ValueError, match="draw_sensitivity: swings must not be empty; got none"):
        draw_sensitivity((), tmp_path / "x.svg")


@pytest.mark.parametrize("price", [None, 2.5e6], ids=["plain", "priced"])
def test_sweep_has_a_line_for_each_number_of_bits(tmp_path, price):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    rows = [SweepRow(steps, bits, 0.5, 0.5, 3.0, 30.0, 5.0, 0.1, price) for bits in (2, 8, None) for steps in (4, 8)]
    found = Sweep(20, tuple(rows))
    drawing = draw_sweep(found, tmp_path / "sweep.svg").read_text(encoding="utf-8")
    for colour in ("#0072b2", "#c24e00", "#009e73"):
        assert colour in drawing
    assert draw_sweep(found, str(tmp_path / "sweep.png")).stat().st_size > 1000


@pytest.mark.parametrize(
    ("accuracies", "scale", "labels"),
    [
        ((0.138, 0.9785, 0.9955), "function", ["50%", "80%", "90%", "95%", "98%", "99%", "99.5%"]),
        ((0.82, 0.83, 0.84), "linear", ["82%", "83%", "84%"]),
    ],
)
def test_accuracies_far_apart_are_told_apart(accuracies, scale, labels):
    figure = pytest.importorskip("matplotlib.figure", reason="pictures need matplotlib").Figure(layout="constrained")
    axes = figure.subplots()
    rows = tuple(SweepRow(8, bits, share, share, 3.0, 30.0, 5.0, 0.1, None) for bits, share in enumerate(accuracies, 2))
    sweep_on(figure, axes, Sweep(10_000, rows))
    figure.canvas.draw()
    low, high = axes.get_ylim()
    shown = [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert axes.get_yscale() == scale
    assert set(labels) <= set(shown)
    heights = axes.transAxes.inverted().transform(axes.transData.transform([(8, share) for share in accuracies]))[:, 1]
    assert (np.diff(heights) > 0.1).all()
    assert figure.legends[0].get_window_extent().y0 > axes.get_window_extent().y1  # no line can be behind it


def test_perfect_accuracy_has_a_place_among_errors(tmp_path):
    rows = tuple(SweepRow(8, bits, share, share, 3.0, 30.0, 5.0, 0.1, None) for bits, share in ((2, 0.2), (8, 1.0)))
    assert "99.95%" not in draw_sweep(Sweep(100, rows), tmp_path / "sweep.svg").read_text(encoding="utf-8")


def test_energies_close_together_have_ticks(report):
    figure = pytest.importorskip("matplotlib.figure", reason="pictures need matplotlib").Figure()
    axes = figure.subplots()
    axes.plot([7.7e5, 1.01e6], [0, 1])
    value_axis(axes, [7.7e5, 1.01e6])
    figure.canvas.draw()
    assert axes.get_xscale() == "linear"
    assert [label.get_text() for label in axes.get_xticklabels()][1:4] == ["780 nJ", "840 nJ", "900 nJ"]


def test_sweep_names_its_chip(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    found = Sweep(9, (SweepRow(4, 2, 0.5, 0.5, 3, 30, 5, 0.1, 2.0),), "odin")
    assert "energy of an image on odin" in draw_sweep(found, tmp_path / "sweep.svg").read_text(encoding="utf-8")
    assert sweep_details(found).caption.endswith("energy on odin")


def test_sweep_needs_accuracies(tmp_path):
    found = Sweep(20, (SweepRow(4, 2, None, None, 3.0, 30.0, 5.0, 0.1, None),))
    with pytest.raises(ValueError, match="draw_sweep: sweep must have accuracies; got none"):
        draw_sweep(found, tmp_path / "sweep.svg")
