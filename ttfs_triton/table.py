"""Tables, for a terminal and for HTML pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from ttfs_triton.wording import small_percent

Row = TypeVar("Row")


Cell = str | float
"""A text, or a share in [0, 1], which is shown as a percentage; on a page, over a bar."""


@dataclass(frozen=True)
class Table:
    """A table, for `print_whole` and for pages. On a narrow terminal, its cells wrap between words.

    Attributes:
        title: line above the table; "" for none.
        headers: one per column; the first column names the rows.
        rows: the cells of every row, as many as headers.
        prose: indices of columns of words, aligned left as the first column is; columns of figures are aligned right.
        caption: line below the table; "" for none.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    prose: Sequence[int] = ()
    caption: str = ""

    @classmethod
    def of(
        cls,
        title: str,
        rows: Iterable[Row],
        columns: Mapping[str, Callable[[Row], Cell]],
        prose: Sequence[int] = (),
    ) -> Table:
        """A table with one column per header in `columns`; the header's function makes a cell from a row."""
        cells = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
        return cls(title, tuple(columns), cells, prose)

    def __rich__(self) -> rich.table.Table:
        table = rich.table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left")
        table.title, table.caption = (Text(line) if line else None for line in (self.title, self.caption))
        table.caption_justify = "left"
        for place, header in enumerate(self.headers):
            justify = "right" if place and place not in self.prose else "left"
            table.add_column(Text(header), justify=justify, vertical="top", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell if isinstance(cell, str) else small_percent(cell)) for cell in row))
        return table


def print_whole(*parts: Table | Text, console: Console | None = None) -> None:
    """Print tables and texts one below the other: on a terminal in its width, elsewhere without wrapping lines."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = 10_000
    console.print(*parts, sep="\n")
