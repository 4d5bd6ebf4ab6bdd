"""The page of a frontier: its curves, what is cheapest near the best accuracy, and all points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttfs_triton.atomic import write_text
from ttfs_triton.report import frontier_figures as figures
from ttfs_triton.report.frontier_curves import curves
from ttfs_triton.report.frontier_table import FAULTS, FREE, FrontierRow
from ttfs_triton.report.page import render
from ttfs_triton.report.tables import Table, pairs_table
from ttfs_triton.wording import energy, interval, number, percent, ratio, weight_bits_label

NEAR = 0.01
"""How much less accurate than the network as given a point may be to count as near it."""
Rows = Sequence[FrontierRow]


def write_frontier_page(path: Path, rows: Rows, about: Mapping[str, Any]) -> Path:
    """Write the page: whole, or not at all.

    Args:
        path: of the HTML file; its folder must exist. A file that is there is replaced.
        rows: of the frontier, at least one.
        about: date, device, versions, command.
    Raises:
        RuntimeError: matplotlib is not installed.
        OSError: the file cannot be written; the old one, if any, is untouched.
    """
    write_text(path, render("frontier.html", lambda: page_context(rows, about)))
    return path


def page_context(rows: Rows, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template names.

    Args:
        rows, about: as of `write_frontier_page`.
    """
    networks = figures.of_networks(rows)
    names = list(dict.fromkeys(row.network for row in networks))
    trained = sum(row.folder is not None for row in networks)
    versions = about.get("versions", {})
    facts = {key: value for key, value in about.items() if isinstance(value, str | int)}
    facts |= {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())} if versions else {}
    return {
        "title": f"Frontier of {', '.join(names)}",
        "subtitle": f"{len(networks)} points, {trained} of them trained, on {number(networks[0].images)} test images",
        "cheapest": cheapest_table(rows),
        "verdicts": verdicts(rows),
        "curves": curves(rows),
        "points": points_table(networks),
        "details": [table for table in (faults_table(rows), deadlines_table(rows)) if table.rows],
        "limits": limits(rows),
        "facts": pairs_table("How this page was made", facts.items()),
    }


def _free(rows: Rows) -> dict[str, FrontierRow]:
    """The row of each network as given."""
    return {row.network: row for row in figures.of_networks(rows) if row.point == FREE}


def near(rows: Rows) -> dict[str, list[FrontierRow]]:
    """The points of each network that lose less than `NEAR`, itself included."""
    return {
        name: [row for row in figures.of_networks(rows) if row.network == name and row.accuracy >= free.accuracy - NEAR]
        for name, free in _free(rows).items()
    }


def cheapest_table(rows: Rows) -> Table:
    """For each network the fewest operations and the least energy that a point near it has."""
    chip, lines = figures.memory_chip(rows), []
    for name, own in near(rows).items():
        free = _free(rows)[name]
        lines.append((name, "as given", *_figures(free, chip)))
        ways = [("fewest operations", lambda row: row.synaptic_operations)]
        if chip is not None:
            ways += [
                ("least energy, memory included", lambda row: _energy(row, chip, "with_memory")),
                ("least energy, arithmetic alone", lambda row: _energy(row, chip, "arithmetic")),
            ]
        for what, cost in ways:
            priced = [row for row in own if cost(row) is not None]
            if priced:
                best = min(priced, key=cost)
                lines.append((name, f"{what}: {figures.label(best)}", *_figures(best, chip)))
    where = f" Energies on {chip}; × is over the dense ANN." if chip else ""
    return Table(
        f"Points at most {100 * NEAR:g} point below the network as given.{where}",
        ("network", "point", "accuracy", "operations", "energy, memory included", "×", "arithmetic alone", "×"),
        tuple(lines),
        (1,),
    )


def _figures(row: FrontierRow, chip: str | None) -> tuple[str, ...]:
    """Accuracy, operations, energies and ratios of a row."""
    cells = [percent(row.accuracy), number(row.synaptic_operations)]
    for measure in ("with_memory", "arithmetic"):
        own, dense = (None if chip is None else _energy(row, chip, name) for name in (measure, f"dense_{measure}"))
        cells += [energy(own), ratio(own / dense if own is not None and dense else None)]
    return tuple(cells)


def _energy(row: FrontierRow, chip: str, measure: str) -> float | None:
    """Picojoules."""
    found = figures.on_chip(row, chip)
    amount = None if found is None else getattr(found, measure)
    return None if amount is None else amount * 1e6


def verdicts(rows: Rows) -> list[str]:
    """Whether any point near a network is cheaper than the dense ANN: with memory and by arithmetic alone, both."""
    chip = figures.memory_chip(rows)
    if chip is None:
        return ["No chip here prices memory, so nothing is said about which is cheaper, the network or its dense ANN."]
    lines = []
    for name, own in near(rows).items():
        whole = [row for row in own if (found := figures.on_chip(row, chip)) is not None and not found.missing]
        ratios = [(row, _ratio(row, chip, "with_memory"), _ratio(row, chip, "arithmetic")) for row in whole]
        both = [(with_memory, alone, row) for row, with_memory, alone in ratios if with_memory and alone]
        both = [found for found in both if max(found[:2]) < 1]
        if not both:
            lines.append(
                f"{name}: no point near it costs less than the dense ANN on {chip}, both with memory and by arithmetic "
                "alone."
            )
            continue
        with_memory, alone, best = min(both, key=lambda found: found[0])
        lines.append(
            f"{name}: {figures.label(best)} costs less than the dense ANN on {chip}, with memory "
            f"(× {ratio(with_memory)}{_steps(best, chip)}) and by arithmetic alone (× {ratio(alone)})."
        )
    return lines


def _ratio(row: FrontierRow, chip: str, measure: str) -> float | None:
    own, dense = _energy(row, chip, measure), _energy(row, chip, f"dense_{measure}")
    return own / dense if own is not None and dense else None


def _steps(row: FrontierRow, chip: str) -> str:
    """What the choice of time steps makes of the ratio with memory: nothing where a grid fixes them."""
    found = figures.on_chip(row, chip)
    if found is None or found.least_ratio is None or row.time_steps is not None:
        return ""
    return f", {ratio(found.least_ratio)} to {ratio(found.most_ratio)} at 4 to 128 steps"


def points_table(networks: Rows) -> Table:
    """One row a point."""
    chip = figures.memory_chip(networks)
    lines = []
    for row in networks:
        low, high = interval(row.accuracy, row.images)
        wanted = "" if row.goal is None else f"{row.goal:g}"
        got = "" if row.cost is None else f"{row.cost:.4g}" + ("" if row.reached else ", not reached")
        alike = "" if row.same_decisions is None else f"{row.same_decisions:,} of {row.images:,}"
        lines.append(
            (
                row.network,
                figures.label(row),
                percent(row.accuracy),
                f"{percent(low, 2)} to {percent(high, 2)}",
                percent(row.first_spike_accuracy),
                wanted,
                got,
                "–" if row.sparsity is None else f"{row.sparsity:.4f}",
                number(row.synaptic_operations),
                "–" if chip is None else ratio(_ratio(row, chip, "with_memory")) + _steps(row, chip),
                "–" if chip is None else ratio(_ratio(row, chip, "arithmetic")),
                str(row.steps or "–"),
                alike,
            )
        )
    return Table(
        f"Ratios are to the dense ANN on {chip}, at so many time steps a window." if chip else "Points",
        (
            *("network", "point", "accuracy", "95% interval", "by first spike", "wanted", "got", "sparsity"),
            *("operations", "× with memory", "× arithmetic", "steps", "simulated alike"),
        ),
        tuple(lines),
        (1,),
    )


def faults_table(rows: Rows) -> Table:
    """One row a fault that a network met."""
    own = [row for row in rows if row.kind == "faults"]
    return Table(
        "Faults, simulated",
        (
            "network",
            "point",
            *(name.replace("_", " ") for name in FAULTS),
            "steps",
            "bits",
            "accuracy",
            "by first spike",
        ),
        tuple(
            (
                row.network,
                figures.label(row),
                *(f"{getattr(row, name):g}" for name in FAULTS),
                str(row.steps or "–"),
                weight_bits_label(row.weight_bits) if row.time_steps else "8",
                percent(row.accuracy),
                percent(row.first_spike_accuracy),
            )
            for row in own
        ),
        (1,),
    )


def deadlines_table(rows: Rows) -> Table:
    """One row a deadline."""
    return Table(
        "Deadlines, in windows from the image's start",
        ("network", "point", "deadline", "mean decision time", "accuracy"),
        tuple(
            (
                row.network,
                figures.label(row),
                f"{row.deadline:.2f}",
                "–" if row.decision_time is None else f"{row.decision_time:.3f}",
                percent(row.accuracy),
            )
            for row in rows
            if row.kind == "deadline"
        ),
        (1,),
    )


def limits(rows: Rows) -> list[str]:
    """What the figures do not say, in sentences."""
    lines = [
        "Each point is one run with one seed, its epoch chosen on validation images and its test images scored once. "
        "Choosing the best of the points above by their test images is a choice by test images.",
        "Energies are estimates: exact counts times published prices, of neurons that rest behind their spikes. "
        "Nothing was measured on a chip.",
    ]
    steps = sorted({row.steps for row in rows if row.steps and row.time_steps is None})
    if steps:
        lines.append(
            f"Networks without a grid are priced and simulated at {', '.join(map(str, steps))} time steps a window, "
            "those on a grid at their own."
        )
    missed = [f"{row.network}, {figures.label(row)}" for row in rows if row.kind == "network" and row.reached is False]
    if missed:
        lines.append(f"Targets that were not reached within 2 %: {'; '.join(missed)}.")
    return lines
