"""Tables on a terminal."""

import pytest
from rich.console import Console
from rich.text import Text

from ttfs_triton.table import Table, print_whole

ROWS = [("clock-driven-by-a-host", "× 1", "leakage, hops (give hops_per_spike)"), ("dense ANN", "× 0.329", "[bold]")]


@pytest.mark.parametrize("width", [None, 20, 60, 160])
def test_table_shows_all_words_within_the_width(capsys, width):
    table = Table("Energy", ("computed as", "ratio", "[not] in it"), ROWS, prose=(2,), caption="at nominal prices")
    print_whole(table, Text("- " + "a long assumption " * 20), console=Console(width=width) if width else None)
    shown = capsys.readouterr().out
    lines = shown.partition("- a long")[0].splitlines()
    assert (lines[0].strip(), lines[-1].strip()) == ("Energy", "at nominal prices")
    assert ("a long assumption " * 20 in shown) == (width is None), "a pipe has no width"
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= (width or 400)
    if width != 20:
        assert all(word in shown for word in ("clock-driven-by-a-host", "hops_per_spike)", "[not] in it", "[bold]"))
        one, other = (next(line for line in lines if figure in line) for figure in ("× 1", "× 0.329"))
        assert one.index("× 1") + len("× 1") == other.index("× 0.329") + len("× 0.329"), "figures stand right"
