"""Tables of counts and energies for page, card and terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from ttfs_triton.energy import Comparison, Counts, Estimate, Term
from ttfs_triton.energy.chip import energy_range, weakest
from ttfs_triton.energy.estimate import TermKind
from ttfs_triton.evaluate.deadline import DeadlineRow
from ttfs_triton.table import Cell, Table, print_whole
from ttfs_triton.wording import duration, energy, number, percent, ratio


def operations_counted(network: Mapping[str, Any]) -> str:
    """How an evaluation counts a network's operations, from the network's configuration."""
    return "on its grid" if network.get("grid") else "closed form"


def operations_table(counts: Counts, how: str) -> Table:
    """Table of synaptic operations and of the dense ANN's multiply-accumulates, by layer; sums in the last row."""
    total, rows = counts.total(), list[Sequence[Cell]]()
    titles = {"synaptic_operations": "synaptic operations", "analog_macs": "MACs", "dense_macs": "dense MACs"}
    if not total["analog_macs"]:
        del titles["analog_macs"]
    for name, row in [*((layer.name, vars(layer)) for layer in counts.layers), ("all", total)]:
        done = row["synaptic_operations"] + row["analog_macs"]
        share = done / row["dense_macs"] if row["dense_macs"] else float("nan")
        rows.append((name, share, *(number(row[key] / counts.samples) for key in titles)))
    return Table(f"Operations of an image, {how}", ("layer", "of dense", *titles.values()), tuple(rows))


def deadline_table(rows: Sequence[DeadlineRow]) -> Table:
    """Table of accuracies by deadline."""
    headers = ("deadline", "accuracy", "fired by then", "mean decision time")
    cells = [(f"{row.deadline:.2f}", percent(row.accuracy), percent(row.decided), f"{row.time:.3f}") for row in rows]
    return Table("Decisions by a deadline in windows; closed form, on a grid in its steps", headers, cells)


def pairs_table(
    caption: str, pairs: Iterable[tuple[str, object]], headers: tuple[str, str] = ("what", "value")
) -> Table:
    """Table of names and values."""
    return Table(caption, headers, tuple((name, str(value)) for name, value in pairs), (1,))


KINDS: tuple[TermKind, ...] = ("compute", "memory", "communication", "static")

NO_PRICE = "no published price"


def why_missing(*estimates: Estimate) -> dict[str, list[str]]:
    """Names of the terms that are in no sum, by reason; the reason "no published price" is first."""
    why: dict[str, list[str]] = {NO_PRICE: []}
    for estimate in estimates:
        for term in estimate.unpriced:
            stated = estimate.chip.prices.get(term.price_name)
            names = why.setdefault(NO_PRICE if stated is None or stated.amount is None else term.note, [])
            if term.name not in names:
                names.append(term.name)
    return {reason: names for reason, names in why.items() if names}


def not_in_it(estimate: Estimate) -> str:
    """Terms that are in no sum, as text, with the reason unless it is an unpublished price; "nothing" without any."""
    parts = [
        ", ".join(names) + ("" if why == NO_PRICE else f" ({why})") for why, names in why_missing(estimate).items()
    ]
    return "; ".join(parts) or "nothing"


def chips_table(estimates: Sequence[Estimate]) -> Table:
    """Table of estimates, one row per chip."""
    rows = []
    for estimate in estimates:
        cells = (energy_range(estimate.total), duration(estimate.latency_us), estimate.status or "–")
        rows.append((estimate.chip.name, *cells, not_in_it(estimate)))
    headers = ("chip", "energy", "latency", "weakest status", "what is missing")
    if all(estimate.latency_us is None for estimate in estimates):
        headers, rows = headers[:2] + headers[3:], [row[:2] + row[3:] for row in rows]
    caption = "Energy of an image at nominal prices; in brackets: all prices at their low end, all at their high end"
    return Table(caption, headers, tuple(rows), (len(headers) - 1,))


def comparison_table(comparison: Comparison) -> Table:
    """Table with one row per way of computing the network; ratios are to the first row."""
    first, rows = comparison.estimates[0], []
    for estimate in comparison.estimates:
        cells = list[str]()
        for measure in ("memory_included", "compute_only"):
            amount, network = getattr(estimate, measure), getattr(first, measure)
            cells += [energy_range(amount), f"× {ratio(amount.nominal / network.nominal)}"]
        rows.append((estimate.implementation, *cells, energy_range(estimate.total), estimate.status or "–"))
    sums = ("memory included", "ratio", "compute only", "ratio", "all priced operations")
    headers = ("computed as", *sums, "weakest status")
    return Table(f"Energy of an image on {first.chip.name}", headers, tuple(rows))


def layers_table(estimate: Estimate) -> Table:
    """Table of energies, one row per layer, one column per kind of operation; sums in the last row."""
    rows = [
        (name, *(_cell(part, kind) for kind in KINDS), energy_range(part.total))
        for name, part in (*estimate.parts("layer").items(), ("all", estimate))
    ]
    caption = f"{estimate.network}, {estimate.implementation}, on {estimate.chip.name}: energy of an image"
    return Table(caption, ("layer", *KINDS, "total"), tuple(rows))


def _cell(estimate: Estimate, kind: TermKind) -> str:
    amount = estimate.of_kind(kind)
    if amount is not None:
        return energy(amount.nominal)
    return "–" if any(term.kind == kind for term in estimate.terms) else ""


def terms_table(estimate: Estimate) -> Table:
    """Table of energies, one row per operation over all layers; sums in the last rows."""
    rows = []
    for name, part in estimate.parts("name").items():
        kind, counts = part.terms[0].kind, [term.count for term in part.terms if term.count is not None]
        prices = ", ".join(dict.fromkeys(term.price_name.replace("_", " ") for term in part.terms))
        count = f"{sum(counts):,.6g}" + (" µs" if prices == "leakage power" else "") if counts else "–"
        status = weakest(term.status for term in part.terms) or "–"
        rows.append((name, kind, count, energy_range(part.total), prices, status))
    sums = {
        "compute only": estimate.compute_only,
        "memory included": estimate.memory_included,
        "all priced": estimate.total,
    }
    rows += [(name, "sum", "", energy_range(amount), "", "") for name, amount in sums.items()]
    caption = f"Terms and their sums; weakest status {estimate.status or '–'}"
    return Table(caption, ("term", "kind", "count", "energy", "price", "status"), tuple(rows), (4,))


def prices_table(estimates: Sequence[Estimate]) -> Table:
    """Table of all prices used on one chip, with their sources."""
    uses: dict[tuple[str, str], list[Term]] = {}
    for term in (term for estimate in estimates for term in estimate.terms):
        uses.setdefault((term.price_name, term.price.source if term.price else "–"), []).append(term)
    rows = []
    for (name, source), terms in uses.items():
        texts = dict.fromkeys(str(term.price).partition(",")[0] if term.price else "unpublished" for term in terms)
        rows.append((name.replace("_", " "), "; ".join(texts), weakest(term.status for term in terms) or "–", source))
    return Table("Prices", ("price of", "one costs", "status", "source"), tuple(rows), (1, 3))


def small_print(*estimates: Estimate) -> list[str]:
    """Assumptions, excluded terms and warnings, in sentences."""
    lines = [line for estimate in estimates for line in estimate.assumptions]
    for estimate in estimates:
        who = f"{estimate.implementation}: " if len(estimates) > 1 else ""
        lines += [f"excluded: {who}{', '.join(names)} ({why})" for why, names in why_missing(estimate).items()]
    lines += [f"warning: {line}" for estimate in estimates for line in estimate.warnings]
    return list(dict.fromkeys(lines))


def print_estimate(estimate: Estimate) -> None:
    """Print one estimate: layers, terms, sums, assumptions and warnings."""
    _print(small_print(estimate), layers_table(estimate), terms_table(estimate))


def print_comparison(comparison: Comparison, told: Sequence[str] = ()) -> None:
    """Print a comparison: table, verdict, break-even point, assumptions and warnings, except lines in `told`."""
    lines = [*comparison.sentences, *(line for line in small_print(*comparison.estimates) if line not in told)]
    _print(lines, comparison_table(comparison))


def print_chips(estimates: Sequence[Estimate], told: Sequence[str] = ()) -> None:
    """Print the table of estimates on several chips, and their warnings, except lines in `told`."""
    warnings = dict.fromkeys(f"warning: {line}" for estimate in estimates for line in estimate.warnings)
    _print([line for line in warnings if line not in told], chips_table(estimates))


def _print(lines: Sequence[str], *tables: Table) -> None:
    print_whole(*tables, *(Text(f"- {line}") for line in lines))
