"""Links between the repository's own pages and files lead somewhere, as GitHub reads them; Sphinx checks the site."""

import runpy
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "kernels", "recipes", "ttfs_triton/sample")
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")))
    if "_build" not in page.parts
)


def read(page: Path) -> tuple[set[str], list[str]]:
    """Anchors of a page's headings as GitHub names them, and where its links and images lead."""
    tokens = MarkdownIt().use(anchors_plugin, max_level=6).parse(page.read_text(encoding="utf-8"))
    anchors = {str(token.attrs["id"]) for token in tokens if token.type == "heading_open"}
    spans = [token for block in tokens for token in block.children or ()]
    return anchors, [str(token.attrGet("href") or token.attrGet("src") or "") for token in spans if token.attrs]


def is_broken(page: Path, link: str) -> bool:
    """Whether a link of a page leads to a file or heading that is not there."""
    path, _, anchor = unquote(link).partition("#")
    target = page.parent / path if path else page
    return "://" not in link and (not target.exists() or bool(anchor and anchor not in read(target)[0]))


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    assert [link for link in read(ROOT / page)[1] if is_broken(ROOT / page, link)] == []


def test_the_wheel_has_absolute_links(tmp_path):
    absolute = runpy.run_path(str(ROOT / "docs" / "wheel.py"))["absolute"]
    page = tmp_path / "README.md"
    page.write_text(absolute((ROOT / "README.md").read_text(encoding="utf-8"), "https://host/us/it", "abc"))
    links = read(page)[1]
    assert "https://host/us/it/raw/abc/docs/figures/why.svg" in links
    assert "https://host/us/it/blob/abc/docs/results.md" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
