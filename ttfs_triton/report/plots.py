"""Estimates and sweeps as pictures, PNG or SVG by the ending of the file; needs the extra `plot`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ttfs_triton.hardware import Estimate, Range, Sweep, SweepRow, Swing
from ttfs_triton.wording import energy, energy_unit, weight_bits_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#222222"
# How all our pictures look, in files and on pages.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ttfs-triton",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
# Okabe-Ito colours, which differ for the colour-blind and in print; hatches and markers tell apart beyond them.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7A7A7A")
ACCURACIES = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
HATCHES = ("", "///", "...")
LINES = tuple(
    zip(("#0072B2", "#C24E00", "#009E73", "#CC79A7", "#7A7A7A", "#E69F00", "#56B4E9"), "os^DvPX", strict=True)
)


def draw_layers(found: Estimate, path: str | Path) -> Path:
    """A bar a layer, stacked by term, at nominal prices.

    Args:
        found: with at least one price.
        path: ends in .png, .svg or what else matplotlib writes.
    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: nothing in the estimate has a price.
    """
    terms = [(term, term.energy) for term in found.terms if term.energy is not None]
    total = _require_total("draw_layers", found)
    layers, names = (list(dict.fromkeys(values)) for values in zip(*((t.layer, t.name) for t, _ in terms), strict=True))
    unit, size = energy_unit(max(amount.nominal for amount in found.by_layer().values() if amount is not None))
    with _figure("draw_layers", path, height=1.4 + 0.36 * len(layers) + 0.07 * len(names)) as figure:
        axes = figure.subplots()
        left = dict.fromkeys(layers, 0.0)
        for index, name in enumerate(names):
            own = {layer: sum(e.nominal for t, e in terms if (t.layer, t.name) == (layer, name)) for layer in layers}
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
        _legend_below(figure, axes)
        axes.set_title(f"{found.network}, {found.implementation}, on {found.chip.name}: {energy(total.nominal)}")
        _grid(axes, "x", INK)
    return Path(path)


def draw_chips(estimates: Sequence[Estimate], path: str | Path) -> Path:
    """Total energies with their ranges on a logarithmic axis; open markers lack terms that have no price.

    Args:
        estimates: one or several, of any chips or ways of computing; those without any price are named, not drawn.
        path: as for `draw_layers`.
    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: nothing in the estimates has a price.
    """
    totals = priced(estimates)
    if not totals:
        raise ValueError(f"draw_chips: estimates must have a price; got {len(estimates)} without. Choose other chips.")
    with _figure("draw_chips", path, height=1.6 + 0.36 * len(totals)) as figure:
        axes = figure.subplots()
        chips_on(axes, totals, ink=INK, paper="white", colour=COLOURS[0])
        without = [found.chip.name for found in estimates if found.total is None]
        note = "open: some terms have no price" + (f"; nothing has one: {', '.join(without)}" if without else "")
        axes.set_title(f"{estimates[0].network} ({note})")
    return Path(path)


def priced(estimates: Sequence[Estimate]) -> list[tuple[Estimate, Range]]:
    """Estimates that have a total, with it."""
    return [(found, found.total) for found in estimates if found.total is not None and found.total.nominal > 0]


def chips_on(axes: Axes, totals: Sequence[tuple[Estimate, Range]], *, ink: str, paper: str, colour: str) -> None:
    """Draw totals, a row each: range and nominal value, open if terms are missing."""
    several = len({found.implementation for found, _ in totals}) > 1
    ends: list[float] = []
    for row, (found, total) in enumerate(totals):
        low = max(total.low, total.nominal * 1e-6)
        ends += [low, total.high]
        if low < total.high:
            axes.plot([low, total.high], [row, row], color=colour, linewidth=4, alpha=0.5)
        fill = paper if found.unpriced else colour
        axes.plot([total.nominal], [row], "o", color=colour, markersize=7, markerfacecolor=fill)
    names = [found.chip.name + (f", {found.implementation}" if several else "") for found, _ in totals]
    axes.set(xlabel="energy of an image")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    energy_axis(axes, ends)
    _grid(axes, "x", ink)


def energy_axis(axes: Axes, amounts: Sequence[float]) -> None:
    """Picojoules to the right, in units that read well; far apart, say 1 nJ and 1 µJ, on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if max(amounts) < 3 * min(amounts):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        decades = math.log10(high / low)
        steps, ticks = ((1, 2, 5) if decades < 1.3 else (1,)), max(2, min(6, int(decades)))
        axes.xaxis.set_major_locator(LogLocator(10, subs=steps, numticks=6 if decades < 1.3 else ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: energy(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


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
    unit, size = energy_unit(nominal)
    with _figure("draw_sensitivity", path, height=1.6 + 0.36 * len(swings)) as figure:
        axes = figure.subplots()
        names = [swing.price_name for swing in swings]
        for end, colour in (("low", COLOURS[0]), ("high", COLOURS[5])):
            widths = [(getattr(swing, end) - nominal) / size for swing in swings]
            axes.barh(names, widths, left=nominal / size, color=colour, label=f"price at its {end} end")
        axes.axvline(nominal / size, color=INK, linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel(f"energy a sample, {unit}")
        axes.set_title(f"One price at a time, around {nominal / size:.3g} {unit}")
        _legend_below(figure, axes)
        _grid(axes, "x", INK)
    return Path(path)


def draw_sweep(sweep: Sweep, path: Path | str) -> Path:
    """Accuracy against time steps, and against energy if it was priced; a line for each number of weight bits.

    Args:
        sweep: with accuracies.
        path: as for `draw_layers`.
    Raises:
        ValueError: a sweep over samples without labels.
        RuntimeError: matplotlib is not installed.
    """
    if any(row.accuracy is None for row in sweep.rows):
        raise ValueError("draw_sweep: sweep must have accuracies; got none. Give labels with the batches.")
    with_energy = all(row.energy_pj is not None for row in sweep.rows)
    with _figure("draw_sweep", path, height=3.8 * (1 + with_energy)) as figure:
        axes = figure.subplots(1 + with_energy, 1, squeeze=False)[:, 0]
        sweep_on(figure, axes[0], sweep, ink=INK)
        if with_energy:
            _sweep_lines(axes[1], sweep, lambda row: row.energy_pj or 0.0, ink=INK)
            axes[1].set(xlabel="energy of an image" + (f" on {sweep.chip}" if sweep.chip else ""))
            energy_axis(axes[1], [row.energy_pj or 0.0 for row in sweep.rows])
    return Path(path)


def sweep_on(figure: Figure, axes: Axes, sweep: Sweep, *, ink: str) -> None:
    """Draw accuracy against time steps, with a legend above, where no line can be."""
    _sweep_lines(axes, sweep, lambda row: row.steps, ink=ink)
    steps = sorted({row.steps for row in sweep.rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(number) for number in steps])
    axes.minorticks_off()
    axes.set(xlabel="time steps of a window")
    lines, labels = axes.get_legend_handles_labels()
    title, columns = "weight bits", min(6, len(lines))
    place = "outside upper left"
    figure.legend(
        *(lines, labels), loc=place, ncols=columns, frameon=False, title=title, alignment="left", columnspacing=1
    )


def _sweep_lines(axes: Axes, sweep: Sweep, position: Callable[[SweepRow], float], *, ink: str) -> None:
    for place, bits in enumerate(dict.fromkeys(row.weight_bits for row in sweep.rows)):
        rows = sorted((row for row in sweep.rows if row.weight_bits == bits), key=lambda row: row.steps)
        colour, marker = LINES[place % len(LINES)]
        # Nothing wrong is less than half an image wrong: a scale of errors has no place for 0.
        accuracies = [min(row.accuracy or 0.0, 1 - 0.5 / sweep.samples) for row in rows]
        label = weight_bits_label(bits)
        axes.plot([position(row) for row in rows], accuracies, color=colour, marker=marker, label=label)
    accuracy_axis(axes, [row.accuracy or 0.0 for row in sweep.rows], sweep.samples)
    _grid(axes, "y", ink)


def accuracy_axis(axes: Axes, accuracies: Sequence[float], samples: int) -> None:
    """Accuracies upwards; errors of different sizes, say 1 % and 90 %, on a logarithmic scale of errors.

    Args:
        axes: with the lines.
        accuracies: all that are drawn, shares.
        samples: that they are shares of.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_ylabel("accuracy")
    errors = [max(1 - accuracy, 0.5 / samples) for accuracy in accuracies]
    if max(errors) > 10 * min(errors):
        axes.set_yscale("function", functions=(_by_error, _from_error))
        axes.set_ylim(1 - 1.1 * max(errors), 1 - min(errors) / 1.1)
        axes.yaxis.set_major_locator(FixedLocator(ACCURACIES))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")


def _by_error(accuracy: Any) -> Any:
    return -np.log10(np.maximum(1 - np.asarray(accuracy, dtype=float), 1e-9))


def _from_error(height: Any) -> Any:
    return 1 - 10.0 ** -np.asarray(height)


@contextmanager
def _figure(function: str, path: str | Path, *, height: float, width: float = 6.5) -> Iterator[Figure]:
    """A figure that is written to `path` in the end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError(f"{function}: matplotlib must be installed; found none. pip install 'ttfs-triton[plot]'")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=150, metadata={"Date": None} if Path(path).suffix == ".svg" else None)


def _require_total(function: str, found: Estimate) -> Range:
    if found.total is None:
        raise ValueError(f"{function}: estimate must have a price; got none on {found.chip.name}. Choose another chip.")
    return found.total


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Where no bar can be."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9)


def _grid(axes: Axes, axis: Literal["x", "y"], ink: str) -> None:
    axes.grid(axis=axis, color=ink, linewidth=0.5, alpha=0.15)
    axes.set_axisbelow(True)
