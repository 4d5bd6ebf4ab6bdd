"""Pictures: written, and refused with a reason."""

import importlib.util

import pytest

from tests.hardware.energy.energy_cases import convolutional_network
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.energy import estimate
from ttfs_triton.hardware.energy.prices import Price
from ttfs_triton.hardware.energy.sensitivity import sensitivity
from ttfs_triton.report.energy_plots import draw_accuracy, draw_chips, draw_layers, draw_sensitivity

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
        "sensitivity": lambda path: draw_sensitivity(sensitivity(report, spread=0.1), path),
        "accuracy": lambda path: draw_accuracy([("8 steps", report, 0.9)], path),
    }


@pytest.mark.parametrize("name", ["layers", "chips", "sensitivity", "accuracy"])
def test_pictures_are_written_and_the_same_twice(report, name, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    draw = drawings(report)[name]
    first, second = draw(tmp_path / "first.svg"), draw(tmp_path / "second.svg")
    assert first.read_text().startswith("<?xml")
    assert first.read_bytes() == second.read_bytes()
    assert draw(tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["layers", "chips", "sensitivity", "accuracy"])
def test_pictures_need_matplotlib(report, name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=rf"draw_{name}: matplotlib must be installed; found none.*\[plot\]"):
        drawings(report)[name](tmp_path / "x.svg")


def test_pictures_need_a_price(tmp_path):
    silent = estimate(convolutional_network(), SECRET, steps=8)
    with pytest.raises(ValueError, match=r"draw_layers: report must have a price; got none on secret. Choose another"):
        draw_layers(silent, tmp_path / "x.svg")
    with pytest.raises(ValueError, match="draw_chips: reports must have a price; got 1 without"):
        draw_chips([silent], tmp_path / "x.svg")
    with pytest.raises(ValueError, match="draw_sensitivity: swings must not be empty; got none"):
        draw_sensitivity((), tmp_path / "x.svg")
    with pytest.raises(ValueError, match="draw_accuracy: points must not be empty; got none"):
        draw_accuracy((), tmp_path / "x.svg")
