"""The HTML page of a sweep: cheapest points near the given network's accuracy, curves, and all points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ttfs_triton.atomic import write_text
from ttfs_triton.commands.sweep import FAULTS
from ttfs_triton.evaluate.page import render
from ttfs_triton.evaluate.tables import pairs_table
from ttfs_triton.sweep.figures import Rows, label, memory_chip, of_networks, sections
from ttfs_triton.sweep.table import FREE, FrontierRow
from ttfs_triton.table import Table
from ttfs_triton.wording import energy, interval, number, percent, ratio

NEAR = 0.01
"""A point is near the given network if its accuracy is lower by at most this share of the images."""
Columns = dict[str, Callable[[FrontierRow], str]]


def write_frontier_page(path: Path, rows: Rows, about: Mapping[str, str]) -> None:
    """Write the page of a frontier; `about` holds date, device, versions and command. Raises as `write_page` does."""
    networks = of_networks(rows)
    text = render(
        "sweep.html",
        "ttfs_triton.sweep",
        networks=networks,
        cheapest=cheapest_table(rows),
        curves=sections(rows),
        points=points_table(networks),
        details=[table for table in (faults_table(rows), deadlines_table(rows)) if table.rows],
        steps=sorted({row.steps for row in rows if row.steps and row.time_steps is None}),
        missed=[f"{row.network}, {label(row)}" for row in networks if row.reached is False],
        facts=pairs_table("How this page was made", about.items()),
    )
    write_text(path, text)


def cheapest_table(rows: Rows) -> Table:
    """For each network, its cheapest points of nearly the same accuracy, by operations and by energy; and the verdict.

    The verdict is the point with the least energy that costs less than the dense ANN, both with memory and by
    arithmetic alone, and whose operations all have prices.
    """
    chip, networks = memory_chip(rows), of_networks(rows)
    ways: dict[str, Callable[[FrontierRow], float | None]] = {"fewest operations": lambda row: row.synaptic_operations}
    caption = f"Points at most {100 * NEAR:g} point less accurate than the network as given. "
    if chip is None:
        caption += "None of the chips prices memory."
    else:
        ways["least energy, memory included"] = lambda row: row.picojoules(chip, "with_memory")
        ways["least energy, arithmetic alone"] = lambda row: row.picojoules(chip, "arithmetic")
        ways["cheaper than the dense ANN"] = lambda row: (
            row.picojoules(chip, "with_memory") if _cheaper(row, chip) else None
        )
        caption += f"Energies on {chip}; × is the ratio to the dense ANN. A point is cheaper if it is so with "
        caption += "memory and by arithmetic alone."
    measures: Columns = {
        "accuracy": lambda row: percent(row.accuracy),
        "operations": lambda row: number(row.synaptic_operations),
        "energy, memory included": lambda row: energy(row.picojoules(chip, "with_memory")),
        "×": lambda row: ratio(row.over_dense(chip, "with_memory")),
        "arithmetic alone": lambda row: energy(row.picojoules(chip, "arithmetic")),
        " ×": lambda row: ratio(row.over_dense(chip, "arithmetic")),
    }
    lines, several = [], len({row.network for row in networks}) > 1
    for free in (row for row in networks if row.point == FREE):
        near = [row for row in networks if row.network == free.network and free.accuracy - row.accuracy < NEAR + 1e-9]
        found: list[tuple[str, FrontierRow | None]] = [("as given", free)]
        for what, cost in ways.items():
            priced = [row for row in near if cost(row) is not None]
            best = min(priced, key=lambda row: (cost(row), row.point != FREE), default=None)
            found.append((f"{what}: {'none' if best is None else label(best)}", best))
        for name, row in found:
            cells = ["–" if row is None else cell(row) for cell in measures.values()]
            lines.append((*([free.network] if several else []), name, *cells))
    headers = (*(["network"] if several else []), "point", *map(str.strip, measures))
    return Table(caption, headers, tuple(lines), (headers.index("point"),))


def _cheaper(row: FrontierRow, chip: str) -> bool:
    found = row.on_chip(chip)
    ratios = [row.over_dense(chip, measure) for measure in ("with_memory", "arithmetic")]
    return found is not None and not found.missing and all(each is not None and each < 1 for each in ratios)


def points_table(networks: Rows) -> Table:
    """Table of all points, one row for each."""
    chip, caption = memory_chip(networks), "Points"
    columns: Columns = {
        "accuracy (95% interval)": _accuracy,
        "by first spike": lambda row: percent(row.first_spike_accuracy),
        "target": _target,
        "activity": lambda row: "–" if row.sparsity is None else f"{row.sparsity:.4f}",
        "operations": lambda row: number(row.synaptic_operations),
    }
    if chip is not None:
        columns["× with memory"] = lambda row: _with_memory(row, chip)
        columns["× arithmetic"] = lambda row: ratio(row.over_dense(chip, "arithmetic"))
        caption = f"× is the ratio to the dense ANN on {chip}; in brackets, at 4 to 128 time steps a window."
    columns["simulated alike"] = lambda row: "" if row.same_decisions is None else f"{row.same_decisions:,}"
    return _table(caption, networks, columns)


def _accuracy(row: FrontierRow) -> str:
    low, high = interval(row.accuracy, row.images)
    return f"{percent(row.accuracy)} ({percent(low, 1)} to {percent(high, 1)})"


def _with_memory(row: FrontierRow, chip: str) -> str:
    """The ratio with memory, and its range over numbers of time steps unless a grid fixes the steps."""
    text, found = ratio(row.over_dense(chip, "with_memory")), row.on_chip(chip)
    if found is None or found.least_ratio is None or row.time_steps is not None:
        return text
    return f"{text} ({ratio(found.least_ratio)} to {ratio(found.most_ratio)})"


def _target(row: FrontierRow) -> str:
    """Cost and goal of a target; a sparsity target shows no cost, because activity has its own column."""
    if row.cost is None or row.goal is None:
        return ""
    got = "" if row.target == "sparsity" else f"{row.cost:.4g} of "
    return f"{got}{row.goal:g}" + ("" if row.reached else ", not reached")


def faults_table(rows: Rows) -> Table:
    """Table of simulations with faults, one row for each."""
    columns: Columns = {name.replace("_", " "): lambda row, name=name: f"{getattr(row, name):g}" for name in FAULTS} | {
        "steps": lambda row: str(row.steps or "–"),
        "bits": lambda row: str(row.weight_bits or "float") if row.time_steps else "8",
        "accuracy": lambda row: percent(row.accuracy),
        "by first spike": lambda row: percent(row.first_spike_accuracy),
    }
    return _table("Faults, simulated", [row for row in rows if row.kind == "faults"], columns)


def deadlines_table(rows: Rows) -> Table:
    """Table of decisions by deadline, one row for each deadline."""
    columns: Columns = {
        "deadline": lambda row: f"{row.deadline:.2f}",
        "mean decision time": lambda row: "–" if row.decision_time is None else f"{row.decision_time:.3f}",
        "accuracy": lambda row: percent(row.accuracy),
    }
    deadlines = [row for row in rows if row.kind == "deadline"]
    return _table("Deadlines, in windows from the image's start", deadlines, columns)


def _table(caption: str, rows: Rows, columns: Columns) -> Table:
    """A table with one row for each frontier row, and a column for the network if there are several."""
    several = len({row.network for row in rows}) > 1
    named: Columns = {"network": lambda row: row.network} if several else {}
    return Table.of(caption, rows, named | {"point": label} | columns, (1,) if several else ())
