"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


class TerminalTable(Table):
    """A table for `rich.print`, whose cells wrap at words where the terminal is narrow.

    Args:
        title: line above it; "" for none.
        headers: one a column; the first column names the rows.
        rows: cells, as many as headers.
        prose: columns of words, which stand left; the others but the first hold figures, which stand right.
        caption: line below it.
    """

    def __init__(
        self,
        title: str,
        headers: Sequence[str],
        rows: Sequence[Sequence[str]],
        prose: Sequence[int] = (),
        caption: str = "",
    ) -> None:
        super().__init__(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left")
        self.title, self.caption, self.caption_justify = Text(title) if title else None, caption or None, "left"
        for place, header in enumerate(headers):
            self.add_column(Text(header), justify="right" if place and place not in prose else "left", vertical="top")
        for row in rows:
            self.add_row(*map(Text, row))
