"""The HTML report of one evaluated network: a single page that needs nothing but itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ttfs_triton.atomic import write_text
from ttfs_triton.report.data import ReportData
from ttfs_triton.report.text import linked
from ttfs_triton.report.view import page_context


def write_report(path: Path, data: ReportData) -> Path:
    """Write the page: whole, or not at all.

    Args:
        path: of the HTML file; its folder must exist. A file that is there is replaced.
        data: what to show.
    Returns:
        The path.
    Raises:
        RuntimeError: matplotlib is not installed.
        OSError: the file cannot be written; the old one, if any, is untouched.
    """
    path = Path(path)
    write_text(path, render_report(data))
    return path


def render_report(data: ReportData) -> str:
    """The page as text; the same data give the same text.

    Args:
        data: what to show.
    Raises:
        RuntimeError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("write_report: matplotlib must be installed; found none. pip install 'ttfs-triton[plot]'")
    environment = Environment(
        loader=PackageLoader("ttfs_triton.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["linked"] = linked
    return environment.get_template("page.html").render(page_context(data))
