"""The page of a frontier: its curves, what is cheapest near the best accuracy, and all points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttfs_triton.atomic import write_text
from ttfs_triton.report.frontier_figures import label, memory_chip, of_networks, sections
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
    """Everything that the template names."""
    networks = of_networks(rows)
    versions = about.get("versions", {})
    facts = {key: value for key, value in about.items() if isinstance(value, str | int)}
    facts |= {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())} if versions else {}
    return {
        "names": list(dict.fromkeys(row.network for row in networks)),
        "networks": networks,
        "trained": sum(row.folder is not None for row in networks),
        "cheapest": cheapest_table(rows),
        "verdicts": verdicts(rows),
        "curves": sections(rows),
        "points": points_table(networks),
        "details": [table for table in (faults_table(rows), deadlines_table(rows)) if table.rows],
        "steps": sorted({row.steps for row in rows if row.steps and row.time_steps is None}),
        "missed": [f"{row.network}, {label(row)}" for row in networks if row.reached is False],
        "facts": pairs_table("How this page was made", facts.items()),
    }


def near(rows: Rows) -> dict[str, list[FrontierRow]]:
    """The points of each network that lose less than `NEAR`: itself first."""
    networks = of_networks(rows)
    found = {}
    for free in (row for row in networks if row.point == FREE):
        least = free.accuracy - NEAR
        own = [row for row in networks if row.network == free.network and row.accuracy >= least]
        found[free.network] = sorted(own, key=lambda row: row.point != FREE)
    return found


def cheapest_table(rows: Rows) -> Table:
    """For each network the fewest operations and the least energy that a point near it has."""
    chip, lines = memory_chip(rows), []
    ways: dict[str, Callable[[FrontierRow], float | None]] = {"fewest operations": lambda row: row.synaptic_operations}
    if chip is not None:
        ways["least energy, memory included"] = lambda row: row.picojoules(chip, "with_memory")
        ways["least energy, arithmetic alone"] = lambda row: row.picojoules(chip, "arithmetic")
    for name, own in near(rows).items():
        lines.append((name, "as given", *_figures(own[0], chip)))
        for what, cost in ways.items():
            priced = [(amount, place) for place, row in enumerate(own) if (amount := cost(row)) is not None]
            if priced:
                best = own[min(priced)[1]]
                lines.append((name, f"{what}: {label(best)}", *_figures(best, chip)))
    where = f" Energies on {chip}; × is over the dense ANN." if chip else ""
    headers = ("network", "point", "accuracy", "operations", "energy, memory included", "×", "arithmetic alone", "×")
    return _table(f"Points at most {100 * NEAR:g} point below the network as given.{where}", headers, lines)


def _figures(row: FrontierRow, chip: str | None) -> tuple[str, ...]:
    """Accuracy, operations, energies and ratios of a row."""
    cells = [percent(row.accuracy), number(row.synaptic_operations)]
    for measure in ("with_memory", "arithmetic"):
        known = chip is not None
        cells.append(energy(row.picojoules(chip, measure) if known else None))
        cells.append(ratio(row.over_dense(chip, measure) if known else None))
    return tuple(cells)


def verdicts(rows: Rows) -> list[str]:
    """Whether any point near a network is cheaper than the dense ANN: with memory and by arithmetic alone, both."""
    chip = memory_chip(rows)
    if chip is None:
        return ["No chip here prices memory, so nothing is said about which is cheaper, the network or its dense ANN."]
    lines = []
    for name, own in near(rows).items():
        whole = [row for row in own if (found := row.on_chip(chip)) is not None and not found.missing]
        ratios = [(row, row.over_dense(chip, "with_memory"), row.over_dense(chip, "arithmetic")) for row in whole]
        both = [(memory, alone, row) for row, memory, alone in ratios if memory and alone and max(memory, alone) < 1]
        if not both:
            lines.append(
                f"{name}: no point near it costs less than the dense ANN on {chip}, both with memory and by arithmetic "
                "alone."
            )
            continue
        memory, alone, best = min(both, key=lambda found: found[0])
        others = _at_other_steps(best, chip, ", {} to {} at 4 to 128 steps")
        lines.append(
            f"{name}: {label(best)} costs less than the dense ANN on {chip}, with memory (× {ratio(memory)}{others}) "
            f"and by arithmetic alone (× {ratio(alone)})."
        )
    return lines


def _at_other_steps(row: FrontierRow, chip: str, words: str) -> str:
    """The ratio with memory at the best and the worst number of steps, in words; nothing where a grid fixes them."""
    found = row.on_chip(chip)
    if found is None or found.least_ratio is None or row.time_steps is not None:
        return ""
    return words.format(ratio(found.least_ratio), ratio(found.most_ratio))


def points_table(networks: Rows) -> Table:
    """One row a point."""
    chip, lines = memory_chip(networks), []
    for row in networks:
        low, high = interval(row.accuracy, row.images)
        ratios = ("–", "–")
        if chip is not None:
            memory, alone = (ratio(row.over_dense(chip, measure)) for measure in ("with_memory", "arithmetic"))
            ratios = (memory + _at_other_steps(row, chip, " ({} to {})"), alone)
        lines.append(
            (
                *(row.network, label(row), f"{percent(row.accuracy)} ({percent(low, 1)} to {percent(high, 1)})"),
                *(percent(row.first_spike_accuracy), _target(row)),
                "–" if row.sparsity is None else f"{row.sparsity:.4f}",
                *(number(row.synaptic_operations), *ratios),
                "" if row.same_decisions is None else f"{row.same_decisions:,}",
            )
        )
    headers = (
        *("network", "point", "accuracy (95% interval)", "by first spike", "target", "sparsity"),
        *("operations", "× with memory", "× arithmetic", "simulated alike"),
    )
    caption = "Points"
    if chip is not None:
        caption = f"× is over the dense ANN on {chip}, in brackets at 4 to 128 time steps a window."
    return _table(caption, headers, lines)


def _target(row: FrontierRow) -> str:
    """What was reached of what was trained for; what a target of sparsity reached has a column of its own."""
    if row.cost is None or row.goal is None:
        return ""
    got = "" if row.target == "sparsity" else f"{row.cost:.4g} of "
    return f"{got}{row.goal:g}" + ("" if row.reached else ", not reached")


def faults_table(rows: Rows) -> Table:
    """One row a fault that a network met."""
    lines = [
        (
            *(row.network, label(row), *(f"{getattr(row, name):g}" for name in FAULTS), str(row.steps or "–")),
            weight_bits_label(row.weight_bits) if row.time_steps else "8",
            *(percent(row.accuracy), percent(row.first_spike_accuracy)),
        )
        for row in rows
        if row.kind == "faults"
    ]
    kinds = (name.replace("_", " ") for name in FAULTS)
    return _table(
        "Faults, simulated", ("network", "point", *kinds, "steps", "bits", "accuracy", "by first spike"), lines
    )


def deadlines_table(rows: Rows) -> Table:
    """One row a deadline."""
    lines = [
        (
            *(row.network, label(row), f"{row.deadline:.2f}"),
            "–" if row.decision_time is None else f"{row.decision_time:.3f}",
            percent(row.accuracy),
        )
        for row in rows
        if row.kind == "deadline"
    ]
    headers = ("network", "point", "deadline", "mean decision time", "accuracy")
    return _table("Deadlines, in windows from the image's start", headers, lines)


def _table(caption: str, headers: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> Table:
    """Rows of networks and points; of one network alone, whose name is the page's, rows of points."""
    if len({line[0] for line in lines}) > 1:
        return Table(caption, headers, tuple(lines), (1,))
    return Table(caption, headers[1:], tuple(line[1:] for line in lines))
