"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


class TerminalTable(Table):
    """A table for `rich.print`; on a narrow terminal, its cells wrap between words.

    Args:
        title: line above the table; "" for none.
        headers: one for each column; the first column names the rows.
        rows: cells of each row, as many as headers.
        prose: indices of columns of words, aligned left as the first column is; columns of figures are aligned right.
        caption: line below the table.
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
