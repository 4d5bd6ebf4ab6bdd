"""Rows of a sweep: figures of an evaluation.json and of the training before it; the HTML page of all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttfs_triton.atomic import write_text
from ttfs_triton.energy import Counts
from ttfs_triton.evaluate.figures import (
    DEADLINE_AXIS,
    LINES,
    PAPER,
    accuracy_axis,
    legend_below,
    lines_svg,
    page_svg,
    value_axis,
)
from ttfs_triton.evaluate.page import render
from ttfs_triton.evaluate.tables import pairs_table
from ttfs_triton.sweep import FAULTS, GRID, TARGETS, TRAINING, read_point
from ttfs_triton.table import Table
from ttfs_triton.wording import energy, interval, number, percent, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FREE = "free"
"""Point at which a network is measured as given, without training."""

Row = dict[str, Any]
"""Cells by column, see `row_of`."""

SUMS = {"total": "total_uj", "memory_included": "with_memory_uj", "compute_only": "arithmetic_uj"}
"""Sums of an energy in evaluation.json, and their names in columns."""


def row_of(identity: Row, figures: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> Row:
    """A row of the table, from evaluation.json and the summary.json of the run that trained the point.

    Unknown cells are None. Energies are in microjoules at nominal prices; columns "dense_…" have the dense ANN's on
    `chip`. Column "deadline D" has the accuracy if every image is decided D windows after its start.
    """
    simulation, counts = figures["simulation"], Counts.from_dict(figures["counts"])
    total, grid = counts.total(), figures["network"].get("grid") or {}
    spiking, dense, *_ = figures["comparison"]
    target: Mapping[str, Any] = (summary or {}).get("target") or {}
    return {
        **identity,
        **{key: grid.get(key) for key in GRID},
        **{key: simulation["faults"][key] for key in FAULTS},
        **{key: figures[key] for key in ("images", "accuracy", "first_spike_accuracy")},
        **{f"simulated_{key}": simulation[key] for key in ("accuracy", "first_spike_accuracy")},
        "validation_accuracy": (summary or {}).get("val_accuracy"),
        "epochs": (summary or {}).get("epochs"),
        **{"target": target.get("kind"), "goal": target.get("goal", {}).get("network")},
        **{"cost": target.get("test", {}).get("network"), "reached": target.get("reached")},
        "sparsity": figures["sparsity"],
        "spikes": sum(layer.spikes for layer in counts.layers if layer.kind != "readout") / counts.samples,
        **{key: total[key] / counts.samples for key in ("synaptic_operations", "dense_macs")},
        "steps": simulation["steps"],
        "chip": spiking["chip"]["name"],
        **{column: microjoules(spiking, key) for key, column in SUMS.items()},
        **{f"dense_{column}": microjoules(dense, key) for key, column in SUMS.items()},
        **{f"{at['chip']['name']}: {SUMS[key]}": microjoules(at, key) for at in figures["energy"] for key in SUMS},
        **{f"deadline {at['deadline']:g}": at["accuracy"] for at in (figures["deadlines"] or {}).get("rows", ())},
        "weights_sha256": figures["weights_sha256"],
        **{key: figures["about"][key] for key in ("device", "date")},
    }


def microjoules(estimate: Mapping[str, Any], key: str) -> float | None:
    """A sum of an estimate's energies; None if it is unknown."""
    amount = estimate["energy_pj"][key]
    return None if amount is None else amount["nominal"] * 1e-6


def label(row: Row) -> str:
    """A point in words, such as "target sparsity=0.1, reached 0.27" or "time steps=4, calibrated"."""
    words = ["as given" if row["point"] == FREE else row["point"].replace("_", " ").replace("+", ", ")]
    words += [f"reached {row['cost']:.2g}"] if row["reached"] is False else []
    words += [] if row["trained"] else ["calibrated"]
    words += [f"{key.replace('_', ' ')} {row[key]:g}" for key in FAULTS if row[key]]
    return ", ".join(filter(None, words))


Rows = Sequence[Row]
Lines = dict[str, list[tuple[float, float]]]


def write_frontier_page(path: Path, rows: Rows, about: Mapping[str, str]) -> None:
    """Write the page of a frontier; `about` holds date, device, versions and command."""
    text = render(
        "sweep.html",
        "ttfs_triton.sweep",
        rows=rows,
        figures=[(svg, f"Accuracy against {what}.") for svg, what in _figures(rows) if svg is not None],
        points=points_table(rows),
        steps=sorted({row["steps"] for row in rows if row["time_steps"] is None}),
        facts=pairs_table("How this page was made", about.items()),
    )
    write_text(path, text)


def points_table(rows: Rows) -> Table:
    """Table of all rows."""
    columns: dict[str, Callable[[Row], str]] = {
        "network": lambda row: row["network"],
        "point": label,
        "accuracy": lambda row: percent(row["accuracy"]),
        "95% interval": lambda row: " to ".join(percent(end, 1) for end in interval(row["accuracy"], row["images"])),
        "by first spike": lambda row: percent(row["first_spike_accuracy"]),
        "simulated": lambda row: percent(row["simulated_accuracy"]),
        "target": lambda row: "" if row["goal"] is None else f"{row['cost']:.4g} of {row['goal']:g}",
        "activity": lambda row: f"{row['sparsity']:.4f}",
        "operations": lambda row: number(row["synaptic_operations"]),
        "× with memory": lambda row: ratio(_over_dense(row, "with_memory_uj")),
        "× arithmetic": lambda row: ratio(_over_dense(row, "arithmetic_uj")),
    }
    caption = f"× is the ratio of the simulation's energy to the dense ANN's on {rows[0]['chip']}."
    return Table.of(caption, rows, columns, (1,))


def _over_dense(row: Row, measure: str) -> float | None:
    spiking, dense = row[measure], row[f"dense_{measure}"]
    return spiking / dense if spiking is not None and dense else None


def _figures(rows: Rows) -> Iterator[tuple[str | None, str]]:
    """Figures as (SVG, name of the horizontal axis); SVG is None with fewer than two points."""
    plain = [row for row in rows if not any(row[key] for key in FAULTS)]
    images = rows[0]["images"]
    for column, words in (
        ("synaptic_operations", "synaptic operations of an image"),
        ("with_memory_uj", "energy of an image, memory included"),
        ("arithmetic_uj", "energy of an image, arithmetic alone"),
    ):
        yield _scatter(plain, column, words), words
    for across in ("time_steps", "weight_bits", *FAULTS):
        words, on_grid = across.replace("_", " "), across in GRID
        free = [row for row in plain if on_grid and row["point"] == FREE and not row["time_steps"]]
        levels = {f"{row['network']} without a grid": row["accuracy"] for row in free}
        lines = _curves(plain if on_grid else rows, across, "accuracy" if on_grid else "simulated_accuracy")
        yield lines_svg(f"sweep-{across}", lines, words, images, doubling=on_grid, levels=levels), words
    lines = Lines()
    for row in plain:
        points = [(float(name[9:]), right) for name, right in row.items() if name.startswith("deadline ")]
        lines |= {f"{row['network']}, {label(row)}": points} if points else {}
    yield lines_svg("sweep-deadline", lines, DEADLINE_AXIS, images), "the deadline"


def _curves(rows: Rows, across: str, accuracy: str) -> Lines:
    """Curves of rows that differ in one column alone: points (value of the column, accuracy), by the curve's name."""
    lines = Lines()
    for row in rows:
        if row[across] is not None:
            common = "+".join(part for part in row["point"].split("+") if not part.startswith(f"{across}="))
            name = f"{row['network']}, {label(row | {'point': common, across: 0})}"
            lines.setdefault(name, []).append((row[across], row[accuracy]))
    return {name: points for name, points in lines.items() if any(value for value, _ in points)}


def _kinds(row: Row) -> set[str]:
    """Keys that a row's point sets, except those in `TRAINING`."""
    return set() if row["point"] == FREE else {*read_point(row["point"])} - {*TRAINING}


def _scatter(rows: Rows, column: str, title: str) -> str | None:
    """Scatter plot of accuracy against a cost, with lines at the dense ANNs' costs; None with fewer than two points.

    Markers are filled for trained points, open for calibrated ones. A line joins the points that were trained for one
    target alone; the goal stands beside its cheapest point.
    """
    priced = sorted((row for row in rows if row[column]), key=lambda row: row[column])
    if len(priced) < 2:
        return None
    networks = list(dict.fromkeys(row["network"] for row in rows))
    dense = {row["network"]: row[f"dense_{column}"] for row in priced if row.get(f"dense_{column}")}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.margins(0.12, 0.08)
        for (colour, marker), network in zip(LINES * len(networks), networks, strict=False):
            points = [row for row in priced if row["network"] == network]
            for target in TARGETS:
                if alone := [row for row in points if _kinds(row) == {target}]:
                    joined = [(row[column], row["accuracy"]) for row in points if row["point"] == FREE or row in alone]
                    axes.plot(*zip(*joined, strict=True), color=colour, linewidth=1.2, alpha=0.6)
                    goal, place = f"{alone[0]['goal']:g}", (alone[0][column], alone[0]["accuracy"])
                    axes.annotate(goal, place, (0, -14), textcoords="offset points", fontsize=9)
            for row in points:
                x, shares = row[column], interval(row["accuracy"], row["images"])
                axes.plot([x, x], shares, color=colour, linewidth=1, alpha=0.35)
                size, fill = 9 if row["point"] == FREE else 6, colour if row["trained"] else PAPER
                axes.plot([x], [row["accuracy"]], marker, color=colour, markersize=size, markerfacecolor=fill)
            axes.plot([], [], marker, color=colour, label=network)
            if network in dense:
                axes.axvline(dense[network], color=colour, linestyle="--", linewidth=1.2)
        accuracy_axis(axes, [row["accuracy"] for row in priced], rows[0]["images"])
        values, unit = [*(row[column] for row in priced), *dense.values()], column in SUMS.values()
        value_axis(axes, values, (lambda value: energy(value * 1e6)) if unit else number)
        axes.set_xlabel(title)
        if len(networks) > 1:
            legend_below(figure, axes, columns=2)

    return page_svg(f"sweep-{column}", 4.4, draw)
