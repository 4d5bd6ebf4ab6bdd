"""Estimates as tables on a terminal, and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ttfs_triton.hardware.energy.compare import PUBLISHED, Comparison
from ttfs_triton.hardware.energy.prices import Range, Status, weakest
from ttfs_triton.hardware.energy.report import Kind, Report
from ttfs_triton.hardware.energy.sensitivity import Swing

COLUMNS = ("network", "layer", "term", "count", "price_pj", "low_pj", "high_pj", "status", "source")
KINDS: tuple[Kind, ...] = ("compute", "memory", "communication", "static")


def format_energy(pj: float) -> str:
    """Picojoules in a unit that reads well: "12.3 nJ"."""
    for unit, size in (("pJ", 1.0), ("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9)):
        if abs(pj) < 999.5 * size:
            return f"{pj / size:.3g} {unit}"
    return f"{pj / 1e12:.3g} J"


def format_range(energy: Range | None) -> str:
    """ "1.2 µJ", "1.2 µJ (0.9 µJ to 2 µJ)", or "–" for an energy that is not known."""
    if energy is None:
        return "–"
    text, low, high = (format_energy(pj) for pj in (energy.nominal, energy.low, energy.high))
    return text if low == high else f"{text} ({low} to {high})"


def report_table(report: Report) -> RenderableType:
    """Layers against kinds of operations, the terms, then sums and what they depend on."""
    layers = _table(
        f"{report.network}, {report.implementation}, on {report.chip.name}: energy a sample", "layer", *KINDS
    )
    for layer in report.by_layer():
        own = [term for term in report.terms if term.layer == layer]
        part = Report(report.network, report.implementation, report.chip, report.samples, tuple(own))
        layers.add_row(layer, *(_cell(part, kind) for kind in KINDS), format_range(part.total))
    layers.add_section()
    layers.add_row("all", *(_cell(report, kind) for kind in KINDS), format_range(report.total))
    return Group(layers, _terms(report), _sums(report), Text(_small_print(report)))


def comparison_table(comparison: Comparison) -> RenderableType:
    """One row for each way of computing the network, the ratio to the first one, then break-even points."""
    first = comparison.reports[0]
    columns = ("compute only", "memory included", "all that has a price")
    title = f"{first.network} on {first.chip.name}: energy a sample"
    table = _table(title, "computed as", *columns, "ratio", "weakest status", total=False)
    for report in comparison.reports:
        ratio = report.total.nominal / first.total.nominal if report.total and first.total else None
        table.add_row(
            report.implementation,
            *(format_range(energy) for energy in (report.compute_only, report.memory_included, report.total)),
            "–" if ratio is None else f"{ratio:.3g}",
            report.status or "–",
        )
    points = [comparison.firing_share, *comparison.rates.values()]
    return Group(table, Text("\n".join(point.text for point in points)), Text(_small_print(*comparison.reports)))


def chips_table(reports: Sequence[Report], *, published: bool = False) -> RenderableType:
    """One row a chip; `published` adds what others measured or simulated for VGG16 with one spike a neuron."""
    table = _table("Energy a sample", "chip", "energy", "weakest status", "not priced, so not in it", total=False)
    for report in reports:
        missing = sorted({term.name for term in report.unpriced})
        table.add_row(report.chip.name, format_range(report.total), report.status or "–", ", ".join(missing) or "–")
    if published:
        table.add_section()
        for entry in PUBLISHED:
            name = f"{entry.network}, {entry.data}: {entry.conditions}"
            table.add_row(name, format_energy(entry.energy_uj * 1e6), "published", entry.source)
    return Group(table, Text("\n".join(dict.fromkeys(line for report in reports for line in _warnings(report)))))


def sensitivity_table(swings: Sequence[Swing]) -> Table:
    """One row a price: the total at its low and at its high end."""
    table = _table("Total with one price at the end of its range", "price", "low", "nominal", "high", total=False)
    for swing in swings:
        table.add_row(swing.price_name, *(format_energy(pj) for pj in (swing.low, swing.nominal, swing.high)))
    return table


def print_report(report: Report, console: Console | None = None) -> None:
    """Print `report_table`."""
    (console or Console()).print(report_table(report))


def csv_rows(report: Report) -> list[dict[str, Any]]:
    """One row a term, with the keys `COLUMNS`; counts are of one sample, an unknown figure is empty.

    Static power counts microseconds, at a price in pJ a microsecond (µW).
    """
    rows = []
    for term in report.terms:
        amount = None if term.price is None else term.price.amount
        rows.append(
            {
                "network": report.network,
                "layer": term.layer,
                "term": term.name,
                "count": "" if term.count is None else f"{term.count:.10g}",
                "price_pj": "" if amount is None else f"{amount.nominal:.10g}",
                "low_pj": "" if amount is None else f"{amount.low:.10g}",
                "high_pj": "" if amount is None else f"{amount.high:.10g}",
                "status": "unpublished" if term.price is None else term.price.status,
                "source": "" if term.price is None else term.price.source,
            }
        )
    return rows


def write_csv(path: str | Path, *reports: Report) -> Path:
    """Write the rows of reports into one file; returns its path."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list[str](COLUMNS), lineterminator="\n")
        writer.writeheader()
        for report in reports:
            writer.writerows(csv_rows(report))
    return Path(path)


def _terms(report: Report) -> Table:
    table = _table("Terms", "term", "kind", "count", "energy", "price", "status", total=False)
    for name, energy in report.by_term().items():
        own = [term for term in report.terms if term.name == name]
        counts = [term.count for term in own if term.count is not None]
        count = f"{sum(counts):,.6g}" + (" µs" if own[0].kind == "static" else "") if counts else "–"
        statuses: list[Status] = [term.price.status if term.price else "unpublished" for term in own]
        prices = ", ".join(dict.fromkeys(term.price_name for term in own))
        table.add_row(name, own[0].kind, count, format_range(energy), prices, weakest(statuses) or "–")
    return table


def _sums(report: Report) -> Table:
    table = _table("Sums", "what", "energy", "weakest status", total=False)
    table.add_row("compute only", format_range(report.compute_only), "")
    table.add_row("memory included", format_range(report.memory_included), "")
    table.add_row("all that has a price", format_range(report.total), report.status or "–")
    return table


def _small_print(*reports: Report) -> str:
    lines = [line for report in reports for line in report.assumptions]
    for report in reports:
        who = f"{report.implementation}: " if len(reports) > 1 else ""
        missing: dict[str, list[str]] = {}
        for term in report.unpriced:
            missing.setdefault(term.note, []).append(term.name)
        lines += [f"not in any sum: {who}{', '.join(dict.fromkeys(own))} ({why})" for why, own in missing.items()]
    lines += [line for report in reports for line in _warnings(report)]
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def _warnings(report: Report) -> list[str]:
    return [f"warning: {line}" for line in report.warnings]


def _cell(report: Report, kind: Kind) -> str:
    energy = report.of_kind(kind)
    if energy is not None:
        return format_energy(energy.nominal)
    return "–" if any(term.kind == kind for term in report.terms) else ""


def _table(title: str, first: str, *columns: str, total: bool = True) -> Table:
    table = Table(first, *columns, *(["total"] if total else []), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table
