"""An evaluation's page in headless Chromium."""

import re

import pytest

from tests.browser import CHROMIUM, problems
from tests.evaluate.cases import full_report
from ttfs_triton.evaluate.page import write_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
pytest.importorskip("matplotlib", reason="figures need matplotlib")


def test_page_has_no_script_errors_missing_pictures_or_sideways_scrolling(tmp_path):
    write_page(tmp_path / "page.html", full_report())
    for dark in (False, True):
        assert problems(tmp_path, ["page.html"], dark=dark) == []
    body = '<img src="gone.png"><div style="width: 2000px">wide</div><script>undefined_name()</script>'
    (tmp_path / "bad.html").write_text(f"<!doctype html><html><head></head><body>{body}</body></html>")
    told = " ".join(sorted(problems(tmp_path, ["bad.html"], widths=(390,))))
    assert re.search("undefined_name is not defined.*gone.png is missing.*scrolls sideways, 2008 pixels", told)
