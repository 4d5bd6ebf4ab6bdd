"""Tables on a terminal of any width: cells wrap at words, never within one; where that cannot be, rows are blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

# A number and its unit, "109 µJ" or "1.2 million", and a sign and its number, "× 0.44", are one word.
_WITHIN = re.compile(r"(?<=\d) (?=[pnµm]?[JsW]\b|[mbtr]+illion\b|images\b)|(?<=[×<]) (?=\d)")
_KEPT = "\u00a0"
_GAP = re.compile(r"([ \n]+|(?<=[^\W\d]-)(?=[^\W\d]))")  # spaces, or nothing behind the hyphen of a word


@dataclass(frozen=True)
class TerminalTable:
    """A table for `rich.print`, laid out for the width that there is.

    As boxes; if columns have no room for their longest words, without lines between them; and if there is too little
    for that, each row as a block, a line for each of its cells.

    Attributes:
        title: line above it; "" for none.
        headers: one a column; the first column names the rows.
        rows: cells, as many as headers.
        prose: columns of words, which stand left; the others but the first hold figures, which stand right.
        caption: line below it.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: tuple[int, ...] = ()
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text("\n".join(_wrapped(self.title, options.max_width)), style="table.title")
        yield from self._layout(options.max_width)
        if self.caption:
            yield Text("\n".join(_wrapped(self.caption, options.max_width)), style="table.caption")

    def _layout(self, width: int) -> RenderResult:
        count = len(self.headers)
        for compact in (False, True):
            lines = 2 * (count - 1) if compact else 3 * count + 1
            for named in (True, False):  # with names in one line, or wrapped at words like all else
                if (widths := self._widths(width - lines, named)) is not None:
                    yield self._table(widths, compact)
                    return
        yield from self._blocks(width)

    def _widths(self, room: int, named: bool) -> list[int] | None:
        """Of columns, so that no word is broken; None if there is too little room."""
        columns = list(zip(self.headers, *self.rows, strict=True))
        widths = [max(map(cell_len, column)) for column in columns]
        least = [max(map(_longest_word, column)) for column in columns]
        if named and 0 not in self.prose:
            least[0] = max(widths[0] if self.rows else 0, least[0])
        if sum(least) > room:
            return None
        while sum(widths) > room:
            widest = max(
                (place for place in range(len(widths)) if widths[place] > least[place]), key=widths.__getitem__
            )
            widths[widest] -= 1
        return widths

    def _table(self, widths: Sequence[int], compact: bool) -> Table:
        table = Table(box=box.HEAVY_HEAD)
        if compact:
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for place, (header, width) in enumerate(zip(self.headers, widths, strict=True)):
            right = place and place not in self.prose
            text = "\n".join(_wrapped(header, width))
            table.add_column(text, width=width, justify="right" if right else "left", vertical="top", no_wrap=True)
        for row in self.rows:
            cells = ("\n".join(_wrapped(cell, width)) for cell, width in zip(row, widths, strict=True))
            table.add_row(*map(Text, cells))
        return table

    def _blocks(self, width: int) -> RenderResult:
        inset = 4 + max(map(cell_len, self.headers[1:]), default=0)
        longest = max((_longest_word(cell) for row in self.rows for cell in row[1:]), default=0)
        for name, *cells in self.rows:
            yield Text("\n".join(_wrapped(name, width)), style="bold")
            for header, cell in zip(self.headers[1:], cells, strict=True):
                if inset + longest > width:
                    lines = [f"  {header}", *(f"    {line}" for line in _wrapped(cell, width - 4))]
                else:
                    first, *others = _wrapped(cell, width - inset)
                    lines = [set_cell_size(f"  {header}", inset) + first, *(" " * inset + line for line in others)]
                yield Text("\n".join(lines))


def _longest_word(text: str) -> int:
    return max(map(cell_len, _wrapped(text, 1)))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, or of one word that is longer."""
    first, *others = _GAP.split(_WITHIN.sub(_KEPT, text.strip()))
    lines = [first]
    for gap, word in zip(others[::2], others[1::2], strict=True):
        if cell_len(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
        else:
            lines.append(word)
    return [line.replace(_KEPT, " ") for line in lines]
