"""Tables as text and bars, ready to be laid out on a page or a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from ttfs_triton.hardware import Counts, LayerCounts, Sweep, SweepRow
from ttfs_triton.scoring.deadline import DeadlineRow
from ttfs_triton.terminal import TerminalTable
from ttfs_triton.wording import energy, number, percent, small_percent, weight_bits_label

Row = TypeVar("Row")


@dataclass(frozen=True)
class Cell:
    """Text with a bar under it, whose length is a share in [0, 1]."""

    text: str
    share: float

    @classmethod
    def of(cls, share: float) -> Cell:
        """A share in words; NaN has no bar."""
        return cls(small_percent(share), min(1.0, max(0.0, share)) if share == share else 0.0)


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows. Columns of words, `prose`, wrap; the others hold figures."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    prose: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        caption: str,
        rows: Iterable[Row],
        columns: Mapping[str, Callable[[Row], str | Cell]],
        prose: tuple[int, ...] = (),
    ) -> Table:
        """A table with a column for each header, whose function makes a row's cell."""
        cells = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
        return cls(caption, tuple(columns), cells, prose)


def on_terminal(table: Table) -> TerminalTable:
    """The table for `rich.print`."""
    rows = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    return TerminalTable(table.caption, table.headers, rows, table.prose)


def activity_table(counts: Counts) -> Table:
    """Spikes a layer."""
    columns: dict[str, Callable[[LayerCounts], str | Cell]] = {
        "layer": lambda layer: layer.name,
        "firing": lambda layer: Cell.of(layer.sparsity),
        "spikes": lambda layer: number(layer.spikes / layer.samples),
        "neurons": lambda layer: number(layer.neurons),
        "saturated": lambda layer: small_percent(layer.saturated_share),
        "silent": lambda layer: small_percent(layer.silent_share),
        "never active": lambda layer: small_percent(layer.never_active_share),
    }
    return Table.of("Spikes of an image. Shares are of a layer's neurons.", counts.layers, columns)


def operations_table(counts: Counts) -> Table:
    """Synaptic operations a layer, against the multiply-accumulates of a dense network; sums in the last row."""
    total = counts.total()
    keys = ("synaptic_operations", *(["analog_macs"] if total["analog_macs"] else []), "dense_macs")
    sources = [(layer.name, {key: getattr(layer, key) for key in keys}) for layer in counts.layers]
    rows = []
    for name, found in [*sources, ("all", total)]:
        done = found["synaptic_operations"] + found.get("analog_macs", 0)
        share = done / found["dense_macs"] if found["dense_macs"] else float("nan")
        rows.append((name, Cell.of(share), *(number(found[key] / counts.samples) for key in keys)))
    titles = {"synaptic_operations": "synaptic operations", "analog_macs": "MACs", "dense_macs": "dense MACs"}
    return Table("Operations of an image", ("layer", "of dense", *(titles[key] for key in keys)), tuple(rows))


def sweep_table(sweep: Sweep) -> Table:
    """Accuracy: steps downwards, weight bits across."""
    found = {(row.steps, row.weight_bits): percent(row.accuracy) for row in sweep.rows}
    steps, bits = (list(dict.fromkeys(values)) for values in zip(*sorted(found, key=lambda key: key[0]), strict=True))
    headers = ("steps", *(f"{each} bits" if each is not None else "float" for each in bits))
    rows = tuple((str(each), *(found.get((each, other), "–") for other in bits)) for each in steps)
    return Table(f"Accuracy over {number(sweep.samples)} images, by time steps and weight bits", headers, rows)


def sweep_details(sweep: Sweep) -> Table:
    """All figures of a sweep."""
    caption = f"All figures over {number(sweep.samples)} images; those of work are of an image"
    columns: dict[str, Callable[[SweepRow], str]] = {
        "bits": lambda row: weight_bits_label(row.weight_bits),
        "steps": lambda row: str(row.steps),
        "accuracy": lambda row: percent(row.accuracy),
        "by first spike": lambda row: percent(row.first_spike_accuracy),
        "ties": lambda row: small_percent(row.ties),
        "spikes": lambda row: number(row.spikes),
        "synops": lambda row: number(row.synaptic_operations),
        "latency, steps": lambda row: f"{row.latency_steps:,.1f}",
    }
    if any(row.energy_pj is not None for row in sweep.rows):
        columns["energy"] = lambda row: energy(row.energy_pj)
        caption += f", energy on {sweep.chip}" if sweep.chip else ""
    return Table.of(caption, sweep.rows, columns)


def deadline_table(rows: Sequence[DeadlineRow]) -> Table:
    """Accuracy against the deadline, where something changes; the last row ends it."""
    figures = [(row.accuracy, row.decided) for row in rows]
    changed = [row for row, (before, after) in zip(rows[1:], pairwise(figures), strict=True) if before != after]
    shown = dict.fromkeys([*rows[:1], *changed, *rows[-1:]])
    columns: dict[str, Callable[[DeadlineRow], str]] = {
        "deadline": lambda row: f"{row.deadline:.2f}",
        "accuracy": lambda row: percent(row.accuracy),
        "fired by then": lambda row: percent(row.decided),
        "mean decision time": lambda row: f"{row.time:.3f}",
    }
    return Table.of("Decisions by a deadline, in windows from the image's start, where they change", shown, columns)


def pairs_table(
    caption: str, pairs: Iterable[tuple[str, object]], headers: tuple[str, str] = ("what", "value")
) -> Table:
    """Names and values."""
    return Table(caption, headers, tuple((name, str(value)) for name, value in pairs), (1,))
