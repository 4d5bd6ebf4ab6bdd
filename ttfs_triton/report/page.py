"""One evaluated network as an HTML page that needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ttfs_triton import wording
from ttfs_triton.atomic import write_text
from ttfs_triton.report.data import PageData
from ttfs_triton.report.plots import require_matplotlib
from ttfs_triton.report.view import page_context

ADDRESS = re.compile(r"(?:https?://|\b(?:github\.com|doi\.org|arxiv\.org)/)[\w./~%?&=#:+@-]*[\w/]")
TIED = re.compile(r"(?<=×) (?=\d)|(?<=\d) (?=[pnµm]?J\b)")


def write_page(path: Path, data: PageData) -> Path:
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
    write_text(path, render_page(data))
    return path


def render_page(data: PageData) -> str:
    """The page as text; the same data give the same text.

    Args:
        data: what to show.
    Raises:
        RuntimeError: matplotlib is not installed.
    """
    return render("page.html", lambda: page_context(data))


def render(template: str, context: Callable[[], dict[str, Any]]) -> str:
    """One of our templates as text.

    Args:
        template: its file.
        context: everything that it names, drawn when it is called.
    Raises:
        RuntimeError: matplotlib is not installed.
    """
    require_matplotlib("write_page")
    environment = Environment(
        loader=PackageLoader("ttfs_triton.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = {"number": wording.number, "percent": wording.percent, "small_percent": wording.small_percent}
    environment.filters.update(words | {"linked": linked})
    return environment.get_template(template).render(context())


def linked(text: str) -> Markup:
    """Text as HTML, escaped, in which web addresses are links; no line ends behind × or before a unit of energy."""
    parts, done = [], 0
    text = TIED.sub("\u00a0", text)
    for found in ADDRESS.finditer(text):
        address = found.group()
        target = address if address.startswith("http") else f"https://{address}"
        parts += [
            escape(text[done : found.start()]),
            Markup('<a href="{}" rel="noopener">{}</a>').format(target, address),
        ]
        done = found.end()
    return Markup("").join([*parts, escape(text[done:])])
