"""Estimates as pictures, PNG or SVG by the ending of the file; needs the extra `plot`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ttfs_triton.hardware.energy.prices import Range
from ttfs_triton.hardware.energy.report import Report
from ttfs_triton.hardware.energy.sensitivity import Swing
from ttfs_triton.report.style import INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito colours, which differ for the colour-blind and in print; hatches tell terms apart beyond eight.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7A7A7A")
HATCHES = ("", "///", "...")
UNITS = (("pJ", 1.0), ("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9), ("J", 1e12))


def draw_layers(report: Report, path: str | Path) -> Path:
    """A bar a layer, stacked by term, at nominal prices.

    Args:
        report: with at least one price.
        path: ends in .png, .svg or what else matplotlib writes.
    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: nothing in the report has a price.
    """
    priced = [(term, term.energy) for term in report.terms if term.energy is not None]
    total = _require_total("draw_layers", report)
    layers, names = (
        list(dict.fromkeys(values)) for values in zip(*((t.layer, t.name) for t, _ in priced), strict=True)
    )
    unit, size = _unit(max(energy.nominal for energy in report.by_layer().values() if energy is not None))
    with _axes("draw_layers", path, height=1.6 + 0.34 * max(len(layers), len(names) // 2)) as axes:
        left = dict.fromkeys(layers, 0.0)
        for index, name in enumerate(names):
            own = {layer: sum(e.nominal for t, e in priced if (t.layer, t.name) == (layer, name)) for layer in layers}
            axes.barh(
                layers,
                [own[layer] / size for layer in layers],
                left=[left[layer] / size for layer in layers],
                label=name,
                color=COLOURS[index % len(COLOURS)],
                hatch=HATCHES[index // len(COLOURS) % len(HATCHES)],
                edgecolor="white",
                linewidth=0.5,
            )
            left = {layer: left[layer] + own[layer] for layer in layers}
        axes.invert_yaxis()
        axes.set_xlabel(f"energy a sample, {unit}")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        unit, size = _unit(total.nominal)
        axes.set_title(
            f"{report.network}, {report.implementation}, on {report.chip.name}: {total.nominal / size:.3g} {unit}"
        )
        _grid(axes)
    return Path(path)


def draw_chips(reports: Sequence[Report], path: str | Path) -> Path:
    """Total energies with their ranges on a logarithmic axis; open markers lack terms that have no price.

    Args:
        reports: one or several, of any chips or ways of computing; those without any price are named, not drawn.
        path: as for `draw_layers`.
    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: nothing in the reports has a price.
    """
    totals = [(report, report.total) for report in reports if report.total is not None and report.total.nominal > 0]
    if not totals:
        raise ValueError(f"draw_chips: reports must have a price; got {len(reports)} without. Choose other chips.")
    unit, size = _unit(min(total.nominal for _, total in totals))
    several = len({report.implementation for report in reports}) > 1
    names = [report.chip.name + (f", {report.implementation}" if several else "") for report, _ in totals]
    with _axes("draw_chips", path, height=1.6 + 0.36 * len(totals)) as axes:
        for row, (report, total) in enumerate(totals):
            low, high = max(total.low, total.nominal * 1e-6), total.high
            axes.plot([low / size, high / size], [row, row], color=COLOURS[0], linewidth=3, alpha=0.4)
            fill = "white" if report.unpriced else COLOURS[0]
            axes.plot([total.nominal / size], [row], "o", color=COLOURS[0], markerfacecolor=fill)
        axes.set(xscale="log", xlabel=f"energy a sample, {unit}", yticks=range(len(names)), yticklabels=names)
        axes.invert_yaxis()
        without = [report.chip.name for report in reports if report.total is None]
        note = "open: some terms have no price" + (f"; nothing has one: {', '.join(without)}" if without else "")
        axes.set_title(f"{reports[0].network} ({note})")
        _grid(axes)
    return Path(path)


def draw_sensitivity(swings: Sequence[Swing], path: str | Path) -> Path:
    """Tornado: how far each price moves the total within its range, the widest on top.

    Args:
        swings: of `sensitivity`.
        path: as for `draw_layers`.
    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: there are no swings.
    """
    if not swings:
        raise ValueError("draw_sensitivity: swings must not be empty; got none. Give sensitivity a spread.")
    nominal = swings[0].nominal
    unit, size = _unit(nominal)
    with _axes("draw_sensitivity", path, height=1.4 + 0.36 * len(swings)) as axes:
        names = [swing.price_name for swing in swings]
        for end, colour in (("low", COLOURS[0]), ("high", COLOURS[5])):
            widths = [(getattr(swing, end) - nominal) / size for swing in swings]
            axes.barh(names, widths, left=nominal / size, color=colour, label=f"price at its {end} end")
        axes.axvline(nominal / size, color=INK, linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel(f"energy a sample, {unit}")
        axes.set_title(f"One price at a time, around {nominal / size:.3g} {unit}")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        _grid(axes)
    return Path(path)


def draw_accuracy(points: Sequence[tuple[str, Report, float]], path: str | Path) -> Path:
    """Accuracy against energy, a labelled point each: time steps, weight bits or networks.

    Args:
        points: (label, report, accuracy in [0, 1]).
        path: as for `draw_layers`.
    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: there are no points, or nothing in one of them has a price.
    """
    if not points:
        raise ValueError("draw_accuracy: points must not be empty; got none.")
    totals = [_require_total("draw_accuracy", report) for _, report, _ in points]
    unit, size = _unit(min(total.nominal for total in totals))
    with _axes("draw_accuracy", path, height=4.5) as axes:
        for (label, _, accuracy), total in zip(points, totals, strict=True):
            axes.plot([total.low / size, total.high / size], [accuracy] * 2, color=COLOURS[0], linewidth=3, alpha=0.3)
            axes.plot([total.nominal / size], [accuracy], "o", color=COLOURS[0])
            axes.annotate(label, (total.nominal / size, accuracy), (5, 5), textcoords="offset points", fontsize=9)
        axes.set(xscale="log", xlabel=f"energy a sample, {unit}", ylabel="accuracy")
        axes.yaxis.set_major_formatter("{x:.1%}")
        axes.set_title(", ".join(dict.fromkeys(report.chip.name for _, report, _ in points)))
        _grid(axes)
    return Path(path)


@contextmanager
def _axes(function: str, path: str | Path, height: float) -> Iterator[Axes]:
    """Axes of a figure that is written to `path` in the end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError(f"{function}: matplotlib must be installed; found none. pip install 'ttfs-triton[plot]'")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.subplots()
        yield axes
        figure.savefig(path, dpi=150, metadata={"Date": None} if Path(path).suffix == ".svg" else None)


def _require_total(function: str, report: Report) -> Range:
    total = report.total
    if total is None:
        raise ValueError(f"{function}: report must have a price; got none on {report.chip.name}. Choose another chip.")
    return total


def _unit(pj: float) -> tuple[str, float]:
    return next((entry for entry in UNITS if pj < 999.5 * entry[1]), UNITS[-1])


def _grid(axes: Axes) -> None:
    axes.grid(axis="x", color=INK, linewidth=0.5, alpha=0.15)
    axes.set_axisbelow(True)
