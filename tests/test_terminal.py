"""Tables on terminals of any width: whole words, nothing lost."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from ttfs_triton.terminal import TerminalTable

ENERGIES = TerminalTable(
    "Energy of an image on lemaire45:fp32",
    ("computed as", "memory included", "ratio", "weakest status", "not in it"),
    [
        ("clock-driven", "109 µJ (56.7 µJ to 109 µJ)", "× 1", "assumed", "leakage, hops (give hops_per_spike)"),
        ("zero-skipping ANN", "35.9 µJ", "× 0.329", "unpublished", "multiply-accumulates"),
    ],
    prose=(4,),
    caption="at nominal prices",
)


def shown(table: TerminalTable, width: int, **options) -> str:
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("soft_wrap", [False, True])
@pytest.mark.parametrize("width", [30, 40, 60, 70, 80, 100, 160])
def test_words_are_whole_at_any_width(width, soft_wrap):
    text = shown(ENERGIES, width, soft_wrap=soft_wrap)
    assert max(map(cell_len, text.splitlines())) <= width
    for word in (
        "included",
        "weakest",
        "status",
        "unpublished",
        "accumulates",
        "hops_per_spike)",
        "leakage,",
        "driven",
    ):
        assert word in text
    for figure in ("109 µJ", "(56.7 µJ", "× 0.329", "35.9 µJ"):  # a number is not torn from its unit
        assert figure in text


def test_layouts_follow_from_the_width():
    texts = {width: shown(ENERGIES, width) for width in (160, 80, 62, 40)}
    assert "│ clock-driven      │ 109 µJ (56.7 µJ to 109 µJ) │" in texts[160]
    assert "│ zero-skipping ANN │" in texts[80]
    assert "│" not in texts[62]
    assert re.search(r"^as +included +ratio +status +not in it *$", texts[62], re.MULTILINE)
    assert "\n  weakest status   unpublished\n" in texts[40]
    for text in texts.values():
        assert text.startswith("Energy of an image")
        assert text.endswith("at nominal prices\n")


words = st.text(st.characters(whitelist_categories=("Ll", "Nd")), min_size=1, max_size=12)
cells = st.lists(words, min_size=1, max_size=4).map(" ".join)


@settings(max_examples=20)
@given(
    st.integers(24, 90), st.integers(2, 5).flatmap(lambda n: st.lists(st.tuples(*[cells] * n), min_size=2, max_size=4))
)
def test_nothing_is_lost_and_nothing_broken(width, rows):
    headers, *rows = rows
    text = shown(TerminalTable("", headers, rows), width)
    assert max(map(cell_len, text.splitlines())) <= max(width, 2 + max(map(cell_len, headers)))
    found = re.findall(r"[^\s┏━┳┓┃┡╇╩┩│└─┴┘╹╺╷╶]+", text)
    for cell in (*headers[1:], *(cell for row in rows for cell in row)):
        for word in cell.split():
            assert word in found
