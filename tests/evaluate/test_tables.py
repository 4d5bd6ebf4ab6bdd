"""Tables: all words fit a terminal; what is not known shows, and is never 0."""

import pytest
from rich.console import Console
from rich.text import Text

from tests.energy.energy_cases import convolutional_network
from ttfs_triton.energy import RunOptions, compare, estimate
from ttfs_triton.evaluate.tables import chips_table, print_chips, print_comparison, print_estimate, small_print
from ttfs_triton.table import Table, print_whole


@pytest.fixture
def printed(capsys):
    """What a function prints."""
    return lambda show, *arguments: show(*arguments) or capsys.readouterr().out


def test_estimate_shows_sums_assumptions_and_what_has_no_price(printed):
    text = printed(print_estimate, estimate(convolutional_network(), "odin", steps=4))
    assert "- excluded: multiply-accumulates, neuron updates (no published price)" in text
    assert "- excluded: leakage, idle power (the latency is not known: give --step-us, or " in text
    assert "- warning: 778 neurons exceed the 256 of one odin: at least 4 chips; static power counts one" in text
    assert text.index("sums; weakest status") < text.index("- clock-driven, 4 steps a window")


def test_comparison_shows_compute_and_memory_side_by_side(printed):
    comparison = compare(convolutional_network(), "lemaire45:int8", RunOptions(steps=8))
    text = printed(print_comparison, comparison)
    for word in ("compute only", "memory included", "dense ANN", "zero-skipping ANN", "activity"):
        assert word in text
    once = printed(print_comparison, comparison, small_print(comparison.estimates[0]))
    assert [line in once for line in ("- memory of a layer", "- zero-skipping ANN; no reuse")] == [False, True]


def test_chips_show_what_is_missing(printed):
    estimates = [estimate(convolutional_network(), name, steps=8) for name in ("anp_i", "odin", "lemaire45:int8")]
    table = chips_table(estimates)
    assert table.rows[0][-1] == "multiply-accumulates, neuron updates, leakage"
    assert table.rows[1][-1].startswith("multiply-accumulates, neuron updates; leakage, idle power (the latency")
    assert all(len(row) == len(table.headers) for row in table.rows)
    assert "warning: 778 neurons" in printed(print_chips, estimates)


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
