"""Pictures: written, and refused with a reason."""

import importlib.util

import pytest

from tests.hardware.energy.energy_cases import convolutional_network
from ttfs_triton.hardware import Sweep, SweepRow
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.estimate import estimate, sensitivity
from ttfs_triton.hardware.energy.prices import Price
from ttfs_triton.report.plots import draw_chips, draw_layers, draw_sensitivity, draw_sweep

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


def test_sweep_needs_accuracies(tmp_path):
    found = Sweep(20, (SweepRow(4, 2, None, None, 3.0, 30.0, 5.0, 0.1, None),))
    with pytest.raises(ValueError, match="draw_sweep: sweep must have accuracies; got none"):
        draw_sweep(found, tmp_path / "sweep.svg")
