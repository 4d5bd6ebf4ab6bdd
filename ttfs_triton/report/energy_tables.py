"""Estimates as tables, for terminal, page and card, and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ttfs_triton.atomic import write_text
from ttfs_triton.hardware import Chip, Comparison, Estimate, Term
from ttfs_triton.hardware.energy.estimate import TermKind
from ttfs_triton.hardware.energy.prices import weakest
from ttfs_triton.report.tables import Table, on_terminal
from ttfs_triton.wording import csv_text, duration, energy, energy_range, ratio

COLUMNS = ("network", "chip", "layer", "term", "count", "price_pj", "low_pj", "high_pj", "status", "source")
KINDS: tuple[TermKind, ...] = ("compute", "memory", "communication", "static")

NO_PRICE = "no published price"


def why_missing(*estimates: Estimate) -> dict[str, list[str]]:
    """Names of the terms that are in no sum, by reason: no published price first, then no count."""
    why: dict[str, list[str]] = {NO_PRICE: []}
    for found in estimates:
        for term in found.unpriced:
            stated = found.chip.prices.get(term.price_name)
            names = why.setdefault(NO_PRICE if stated is None or stated.amount is None else term.note, [])
            if term.name not in names:
                names.append(term.name)
    return {reason: names for reason, names in why.items() if names}


def not_in_it(found: Estimate) -> str:
    """Terms that are in no sum, in words, with the reason unless it is a price that nobody published."""
    parts = [", ".join(names) + ("" if why == NO_PRICE else f" ({why})") for why, names in why_missing(found).items()]
    return "; ".join(parts) or "nothing"


def capacity_unpublished(chip: Chip) -> bool:
    """Whether nobody published how many neurons or synapses a chip holds, and so how many chips a network needs."""
    return "synop" in chip.prices and chip.capacity.neurons is None and chip.capacity.synapses is None


def chips_table(estimates: Sequence[Estimate]) -> Table:
    """One row a chip."""
    rows = []
    for found in estimates:
        missing = not_in_it(found) + ("; capacity not published" if capacity_unpublished(found.chip) else "")
        cells = (energy_range(found.total), duration(found.latency_us), found.status or "–", missing)
        rows.append((found.chip.name, *cells))
    headers = ("chip", "energy", "latency", "weakest status", "what is missing")
    if all(found.latency_us is None for found in estimates):
        headers, rows = headers[:2] + headers[3:], [row[:2] + row[3:] for row in rows]
    caption = "Energy of an image at nominal prices; in brackets: all prices at their low end, all at their high end"
    return Table(caption, headers, tuple(rows), (len(headers) - 1,))


def comparison_table(comparison: Comparison) -> Table:
    """One row for each way of computing the network, with its ratios to the first one; memory comes first."""
    first, rows = comparison.estimates[0], []
    for found in comparison.estimates:
        cells = list[str]()
        for measure in ("memory_included", "compute_only"):
            amount, own = getattr(found, measure), getattr(first, measure)
            times = "–"
            if amount is not None and own is not None and own.nominal > 0:
                times = f"× {ratio(amount.nominal / own.nominal)}"
            cells += [energy_range(amount), times]
        rows.append((found.implementation, *cells, energy_range(found.total), found.status or "–"))
    sums = ("memory included", "ratio", "compute only", "ratio", "all that has a price")
    headers = ("computed as", *sums, "weakest status")
    return Table(f"Energy of an image on {first.chip.name}", headers, tuple(rows))


def break_even(comparison: Comparison) -> list[str]:
    """The verdict against the dense ANN and the break-even points, in sentences."""
    points = (comparison.firing_share, *comparison.rates.values())
    return [*comparison.verdict.sentences(), *(f"{point.text[:1].upper()}{point.text[1:]}." for point in points)]


def layers_table(found: Estimate) -> Table:
    """Layers against kinds of operations; sums in the last row."""
    parts = {
        layer: replace(found, terms=tuple(term for term in found.terms if term.layer == layer))
        for layer in found.by_layer()
    }
    rows = [
        (name, *(_cell(part, kind) for kind in KINDS), energy_range(part.total))
        for name, part in (*parts.items(), ("all", found))
    ]
    caption = f"{found.network}, {found.implementation}, on {found.chip.name}: energy of an image"
    return Table(caption, ("layer", *KINDS, "total"), tuple(rows))


def _cell(found: Estimate, kind: TermKind) -> str:
    amount = found.of_kind(kind)
    if amount is not None:
        return energy(amount.nominal)
    return "–" if any(term.kind == kind for term in found.terms) else ""


def terms_table(found: Estimate) -> Table:
    """One row a kind of operation, over all layers; sums in the last rows."""
    rows = []
    for name, amount in found.by_term().items():
        own = [term for term in found.terms if term.name == name]
        counts = [term.count for term in own if term.count is not None]
        count = f"{sum(counts):,.6g}" + (" µs" if own[0].kind == "static" else "") if counts else "–"
        prices = ", ".join(dict.fromkeys(term.price_name.replace("_", " ") for term in own))
        status = weakest(term.status for term in own) or "–"
        rows.append((name, own[0].kind, count, energy_range(amount), prices, status))
    sums = {"compute only": found.compute_only, "memory included": found.memory_included, "all priced": found.total}
    rows += [(name, "sum", "", energy_range(amount), "", "") for name, amount in sums.items()]
    caption = f"Terms and their sums; weakest status {found.status or '–'}"
    return Table(caption, ("term", "kind", "count", "energy", "price", "status"), tuple(rows), (4,))


def prices_table(estimates: Sequence[Estimate]) -> Table:
    """Every price that was used on one chip, with its source."""
    found: dict[tuple[str, str], list[Term]] = {}
    for term in (term for each in estimates for term in each.terms):
        found.setdefault((term.price_name, term.price.source if term.price else "–"), []).append(term)
    rows = []
    for (name, source), own in found.items():
        texts = dict.fromkeys(str(term.price).partition(",")[0] if term.price else "unpublished" for term in own)
        rows.append((name.replace("_", " "), "; ".join(texts), weakest(term.status for term in own) or "–", source))
    return Table("Prices", ("price of", "one costs", "status", "source"), tuple(rows), (1, 3))


def small_print(*estimates: Estimate) -> list[str]:
    """Assumptions, excluded terms and warnings, in sentences."""
    lines = [line for found in estimates for line in found.assumptions]
    for found in estimates:
        who = f"{found.implementation}: " if len(estimates) > 1 else ""
        lines += [f"excluded: {who}{', '.join(names)} ({why})" for why, names in why_missing(found).items()]
    lines += [f"warning: {line}" for found in estimates for line in found.warnings]
    return list(dict.fromkeys(lines))


def print_estimate(found: Estimate, console: Console | None = None) -> None:
    """Print one estimate: layers, terms, sums, and what they depend on."""
    _print(console, small_print(found), layers_table(found), terms_table(found))


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison: the table, break-even points, and what they depend on."""
    _print(console, break_even(comparison) + small_print(*comparison.estimates), comparison_table(comparison))


def print_chips(estimates: Sequence[Estimate], console: Console | None = None) -> None:
    """Print estimates on several chips, and warnings."""
    warnings = [f"warning: {line}" for found in estimates for line in found.warnings]
    _print(console, list(dict.fromkeys(warnings)), chips_table(estimates))


def _print(console: Console | None, lines: Sequence[str], *tables: Table) -> None:
    (console or Console()).print(*map(on_terminal, tables), Text("\n".join(f"- {line}" for line in lines)), sep="\n")


def csv_rows(found: Estimate) -> list[dict[str, Any]]:
    """One row a term, with the keys `COLUMNS`; counts are of one sample, an unknown figure is empty.

    Static power counts microseconds, at a price in pJ a microsecond (µW).
    """
    rows = []
    for term in found.terms:
        amount = None if term.price is None else term.price.amount
        prices = (None, None, None) if amount is None else (amount.nominal, amount.low, amount.high)
        figures = ("" if value is None else f"{value:.10g}" for value in (term.count, *prices))
        source = "" if term.price is None else term.price.source
        cells = (found.network, found.chip.name, term.layer, term.name, *figures, term.status, source)
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def write_csv(path: str | Path, *estimates: Estimate) -> Path:
    """Write the rows of estimates into one file; returns its path."""
    write_text(Path(path), csv_text([row for found in estimates for row in csv_rows(found)]))
    return Path(path)
