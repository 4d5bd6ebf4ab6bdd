"""Tables as text and bars, ready to be laid out on a page or a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ttfs_triton.hardware import Counts, LayerCounts, Simulation, Sweep, SweepRow
from ttfs_triton.terminal import TerminalTable
from ttfs_triton.wording import energy, number, percent, small_percent, weight_bits_label


@dataclass(frozen=True)
class Cell:
    """Text with a bar under it.

    Attributes:
        text: what it says.
        share: length of the bar, in [0, 1].
    """

    text: str
    share: float


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        caption: what it shows, with its unit.
        headers: one a column.
        rows: cells, as many as headers.
        prose: columns of words, which wrap; the others hold figures.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    prose: tuple[int, ...] = ()


def on_terminal(table: Table) -> TerminalTable:
    """The table for `rich.print`."""
    rows = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    return TerminalTable(table.caption, table.headers, rows, table.prose)


def activity_table(counts: Counts) -> Table:
    """Spikes a layer."""
    return Table(
        "Spikes of an image. Shares are of a layer's neurons.",
        ("layer", "firing", "spikes", "neurons", "saturated", "silent", "never active"),
        tuple(_activity(layer) for layer in counts.layers),
    )


def _activity(layer: LayerCounts) -> tuple[str | Cell, ...]:
    return (
        layer.name,
        Cell(small_percent(layer.sparsity), _clamp(layer.sparsity)),
        number(layer.spikes / layer.samples),
        number(layer.neurons),
        small_percent(layer.saturated_share),
        small_percent(layer.silent_share),
        small_percent(layer.never_active_share),
    )


def operations_table(counts: Counts) -> Table:
    """Synaptic operations a layer, against the multiply-accumulates of a dense network; sums in the last row."""
    rows = [
        _operations(layer.name, layer.synaptic_operations, layer.analog_macs, layer.dense_macs, counts.samples)
        for layer in counts.layers
    ]
    total = counts.total()
    sums = (total["synaptic_operations"], total["analog_macs"], total["dense_macs"])
    headers = ("layer", "of dense", "synaptic operations", "MACs", "dense MACs")
    rows.append(_operations("all", *sums, counts.samples))
    if not total["analog_macs"]:
        headers = (*headers[:3], headers[4])
        rows = [(*row[:3], row[4]) for row in rows]
    return Table("Operations of an image", headers, tuple(rows))


def _operations(name: str, synaptic_operations: int, analog: int, dense: int, samples: int) -> tuple[str | Cell, ...]:
    share = _share(synaptic_operations + analog, dense)
    figures = (number(count / samples) for count in (synaptic_operations, analog, dense))
    return (name, Cell(small_percent(share), _clamp(share)), *figures)


def simulation_table(found: Simulation) -> Table:
    """Figures of a simulation."""
    settings, samples = found.settings, found.samples
    bits = "not rounded" if settings.weight_bits is None else f"{settings.weight_bits} bits"
    rows = [
        ("images", number(samples)),
        ("time steps of a window", number(settings.steps)),
        ("weights", f"{bits}, a unit for each {'channel' if settings.per_channel else 'layer'}"),
        ("accuracy", percent(found.accuracy)),
        ("by the first spike", percent(found.first_spike_accuracy)),
        ("ties of the first spike", f"{number(found.ties)} images ({small_percent(found.ties / samples)})"),
        ("without an output spike", f"{number(found.no_spike)} images"),
        ("first output spike", f"{found.mean_latency_steps:,.1f} steps after the image's start, on average"),
        ("potentials can be read", f"{found.potential_latency_steps:,} steps after the image's start"),
    ]
    return Table("Simulated in integers, with a clock", ("figure", "value"), tuple(rows), (1,))


def sweep_table(sweep: Sweep) -> Table:
    """Accuracy: steps downwards, weight bits across."""
    found = {(row.steps, row.weight_bits): row.accuracy for row in sweep.rows}
    bits = list(dict.fromkeys(row.weight_bits for row in sweep.rows))
    headers = ("steps", *(f"{each} bits" if each is not None else "float" for each in bits))
    rows = tuple(
        (str(steps), *(percent(found.get((steps, each))) for each in bits))
        for steps in sorted({row.steps for row in sweep.rows})
    )
    return Table(f"Accuracy over {number(sweep.samples)} images, by time steps and weight bits", headers, rows)


def sweep_details(sweep: Sweep) -> Table:
    """All figures of a sweep."""
    headers = ["bits", "steps", "accuracy", "by first spike", "ties", "spikes", "synops", "latency, steps"]
    priced = any(row.energy_pj is not None for row in sweep.rows)
    rows = tuple(_sweep_row(row, priced) for row in sweep.rows)
    caption = f"All figures over {number(sweep.samples)} images; those of work are of an image"
    caption += f", energy on {sweep.chip}" if priced and sweep.chip else ""
    return Table(caption, (*headers, *(["energy"] if priced else [])), rows)


def _sweep_row(row: SweepRow, priced: bool) -> tuple[str, ...]:
    figures = [weight_bits_label(row.weight_bits), str(row.steps), percent(row.accuracy)]
    figures += [percent(row.first_spike_accuracy), small_percent(row.ties)]
    figures += [number(row.spikes), number(row.synaptic_operations), f"{row.latency_steps:,.1f}"]
    return (*figures, *([energy(row.energy_pj)] if priced else []))


def pairs_table(caption: str, pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values."""
    return Table(caption, ("what", "value"), tuple((name, str(value)) for name, value in pairs), (1,))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _clamp(share: float) -> float:
    return min(1.0, max(0.0, share)) if share == share else 0.0
