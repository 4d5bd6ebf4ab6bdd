"""An evaluation's page in headless Chromium."""

import pytest

from tests.browser import CHROMIUM, problems
from tests.evaluate.cases import full_report
from ttfs_triton.evaluate.page import write_page
from ttfs_triton.shared_options import FaultOptions
from ttfs_triton.sweep.page import FREE, SUMS, write_frontier_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
pytest.importorskip("matplotlib", reason="figures need matplotlib")


def test_page_has_no_script_errors_missing_pictures_or_sideways_scrolling(tmp_path):
    write_page(tmp_path / "page.html", full_report())
    for dark in (False, True):
        assert problems(tmp_path, ["page.html"], dark=dark) == []


def test_widest_table_of_a_frontier_fits_the_page(tmp_path):
    """Every column, and two networks: without boxes that scroll, a table wider than the page makes it scroll."""
    point = "target_operations=0.2+time_steps=16+weight_bits=4+state_bits=16"
    row = {"trained": True, "images": 10_000, "accuracy": 0.93, "first_spike_accuracy": 0.92, "goal": 0.2}
    row |= {"simulated_accuracy": 0.93, "cost": 0.2134, "reached": False, "sparsity": 0.2, "time_steps": 16}
    row |= {"weight_bits": 4, "synaptic_operations": 123456789.0, "steps": 16, "chip": "c"}
    row |= dict.fromkeys(FaultOptions.model_fields, 0)
    row |= {f"{dense}{column}": 55.1 for dense in ("", "dense_") for column in SUMS.values()}
    names = "cifarnet-cifar10-sigma", "vgg9-cifar10-other"
    rows = [row | {"network": network, "point": name} for network in names for name in (FREE, point)]
    page = tmp_path / "page.html"
    write_frontier_page(page, rows, {})
    page.write_text(page.read_text().replace("overflow-x: auto", "overflow-x: visible"))
    assert problems(tmp_path, ["page.html"], widths=(1150,)) == []


def test_problems_are_found(tmp_path):
    body = '<img src="gone.png"><div style="width: 2000px">wide</div><script>undefined_name()</script>'
    (tmp_path / "page.html").write_text(f"<!doctype html><html><head></head><body>{body}</body></html>")
    found = problems(tmp_path, ["page.html"], widths=(390,))
    assert len(found) == 3
    for word in ("undefined_name is not defined", "scrolls sideways, 2008 pixels", "gone.png is missing"):
        assert any(word in problem for problem in found)
