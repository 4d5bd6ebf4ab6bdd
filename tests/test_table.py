"""Tables on a terminal."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from ttfs_triton.table import Table, print_whole


def test_table_is_whole_in_a_pipe_and_loses_no_letter_on_a_narrow_terminal(capsys):
    table = Table("", ("computed as", "energy"), [("clock-driven-by-a-host", "23.7 µJ (5.06 µJ to 23.7 µJ)")] * 2)
    print_whole(table, Text("- " + "a long assumption " * 20))
    shown = capsys.readouterr().out
    assert "clock-driven-by-a-host   23.7 µJ (5.06 µJ to 23.7 µJ)\n" in shown
    assert "a long assumption " * 20 in shown
    print_whole(table, console=Console(width=20))
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 160])
def test_table_shows_all_words_within_the_width(width):
    headers = ("computed as", "ratio", "[not] in it")
    rows = [("clock-driven", "× 1", "leakage, hops (give hops_per_spike)"), ("dense ANN", "× 0.329", "[bold]")]
    console = Console(width=width, file=io.StringIO())
    console.print(Table("Energy of an image", headers, rows, prose=(2,), caption="at nominal prices"))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert (lines[0].strip(), lines[-1].strip()) == ("Energy of an image", "at nominal prices")
    for word in ("clock-driven", "0.329", "hops_per_spike)", "[not] in it", "[bold]"):
        assert word in " ".join(lines)
    (one,) = (line for line in lines if "× 1" in line)
    (other,) = (line for line in lines if "× 0.329" in line)
    assert one.index("× 1") + len("× 1") == other.index("× 0.329") + len("× 0.329"), "figures stand right"
