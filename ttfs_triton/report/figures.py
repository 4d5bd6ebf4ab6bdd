"""Pictures of one evaluated network: SVG for a page, and files, PNG or SVG by their ending."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttfs_triton.hardware import Counts, Estimate, Range, Sweep, SweepRow, Swing
from ttfs_triton.report.plots import (
    COLOURS,
    HATCHES,
    INK,
    LINES,
    PAPER,
    accuracy_axis,
    doubling_axis,
    file_figure,
    grid,
    legend_below,
    page_figure,
    value_axis,
)
from ttfs_triton.report.raster import LayerSpikes
from ttfs_triton.wording import energy, energy_unit, weight_bits_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

POINTS = ((64, 4.0), (1024, 2.5), (8192, 1.6))  # neurons of a layer at most, diameter of its points


def raster_svg(layers: Sequence[LayerSpikes]) -> str:
    """A point a spike: time across, a band a layer downwards, neurons inside the band; the first output spike ringed.

    Points are a picture inside the SVG, so its size hardly depends on their number.

    Args:
        layers: as `spikes_of` gives them.
    """
    with page_figure("raster", 1.0 + 0.44 * len(layers)) as drawing:
        axes = drawing.figure.subplots()
        for row, layer in enumerate(layers):
            size = next((size for most, size in POINTS if layer.neurons <= most), 0.9)
            heights = row + 0.08 + 0.84 * (layer.index.double() + 0.5) / max(layer.neurons, 1)
            axes.plot(
                *(layer.time.tolist(), heights.tolist()),
                linestyle="none",
                marker="o",
                markersize=size,
                markeredgewidth=0,
                alpha=1.0 if size > 1 else 0.6,
                color=COLOURS[row % 6],
                rasterized=True,
            )
            axes.axhline(row, color=INK, linewidth=0.5, alpha=0.25)
        end = layers[-1].window + layers[-1].length
        for window in range(1, layers[-1].window + 1):
            axes.axvline(window, color=INK, linewidth=0.5, alpha=0.25)
        _ring_first_spike(axes, layers)
        axes.set(xlim=(0, end), ylim=(len(layers), 0), xlabel="time from the image's start, windows")
        axes.set_yticks([row + 0.5 for row in range(len(layers))], [layer.name for layer in layers])
        axes.xaxis.set_major_locator(_ticks(8))
        axes.tick_params(axis="y", length=0)
    return drawing.svg


def _ring_first_spike(axes: Axes, layers: Sequence[LayerSpikes]) -> None:
    last = layers[-1]
    if not len(last.time):
        return
    first = int(last.time.argmin())
    time = float(last.time[first])
    height = len(layers) - 1 + 0.08 + 0.84 * (float(last.index[first]) + 0.5) / last.neurons
    axes.plot([time], [height], "o", markersize=11, markerfacecolor="none", color=INK, markeredgewidth=1.8, zorder=5)
    axes.annotate(
        "first output spike",
        (time, height),
        (-10, 0),
        textcoords="offset points",
        horizontalalignment="right",
        verticalalignment="center",
    )


def histograms_svg(counts: Counts) -> str | None:
    """Spikes by time in the window, a small picture a layer; None if no layer has a histogram."""
    layers = [layer for layer in counts.layers if sum(layer.histogram)]
    if not layers:
        return None
    columns = 2 if len(layers) <= 8 else 3
    rows = -(-len(layers) // columns)
    with page_figure("histograms", 0.5 + 1.3 * rows) as drawing:
        grid = drawing.figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for axes, layer in zip(grid, layers, strict=False):
            bins = len(layer.histogram)
            shares = [spikes / sum(layer.histogram) for spikes in layer.histogram]
            edges = [place / bins for place in range(bins + 1)]
            axes.stairs(shares, edges, fill=True, color=COLOURS[4 if layer.kind != "readout" else 1])
            _bound_height(axes, shares)
            axes.set_title(layer.name, loc="left", fontsize=11)
            axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
            axes.set_xticklabels(["0", "½", "1"])
            axes.yaxis.set_major_locator(_ticks(2, integer=False))
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        for axes in grid[len(layers) :]:
            axes.set_visible(False)
        for axes in grid[max(0, len(layers) - columns) : len(layers)]:
            axes.tick_params(labelbottom=True)
        drawing.figure.supxlabel("time from the window's start, windows", fontsize=11)
    return drawing.svg


def _bound_height(axes: Axes, shares: Sequence[float]) -> None:
    """A bin that towers over the others is cut off, and its share written beside it."""
    largest, second = [*sorted(shares, reverse=True), 0.0][:2]
    cut = 1.6 * second if 0 < second < largest / 3 else 0.0
    axes.set_ylim(0, cut or 1.08 * largest)
    if cut:
        place = (shares.index(largest) + 0.5) / len(shares)
        left = place > 0.5
        align = "right" if left else "left"
        offset = (-5 if left else 5, 0)
        axes.annotate(
            f"{100 * largest:.0f}%",
            (place, 0.97 * cut),
            offset,
            textcoords="offset points",
            horizontalalignment=align,
            verticalalignment="top",
        )


def energy_svg(estimates: Sequence[Estimate]) -> str | None:
    """Total energy a chip, with its range, open if terms have no price; None unless two chips have a price."""
    totals = priced(estimates)
    if len(totals) < 2:
        return None
    with page_figure("energy", 0.8 + 0.3 * len(totals)) as drawing:
        _chips_on(drawing.figure.subplots(), totals)
    return drawing.svg


def sweep_svg(sweep: Sweep) -> str | None:
    """Accuracy against time steps, a line for each number of weight bits; None without accuracies."""
    if any(row.accuracy is None for row in sweep.rows):
        return None
    with page_figure("sweep", 3.4) as drawing:
        sweep_on(drawing.figure, drawing.figure.subplots(), sweep)
    return drawing.svg


def _ticks(at_most: int, *, integer: bool = True) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(at_most, integer=integer)


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
    with file_figure("draw_layers", path, 1.4 + 0.36 * len(layers) + 0.07 * len(names)) as figure:
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
        legend_below(figure, axes)
        axes.set_title(f"{found.network}, {found.implementation}, on {found.chip.name}: {energy(total.nominal)}")
        grid(axes, "x")
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
    with file_figure("draw_chips", path, 1.6 + 0.36 * len(totals)) as figure:
        axes = figure.subplots()
        _chips_on(axes, totals)
        without = [found.chip.name for found in estimates if found.total is None]
        note = "open: some terms have no price" + (f"; nothing has one: {', '.join(without)}" if without else "")
        axes.set_title(f"{estimates[0].network} ({note})")
    return Path(path)


def priced(estimates: Sequence[Estimate]) -> list[tuple[Estimate, Range]]:
    """Estimates that have a total, with it."""
    return [(found, found.total) for found in estimates if found.total is not None and found.total.nominal > 0]


def _chips_on(axes: Axes, totals: Sequence[tuple[Estimate, Range]]) -> None:
    """Draw totals, a row each: range and nominal value, open if terms are missing."""
    several = len({found.implementation for found, _ in totals}) > 1
    ends, colour = list[float](), COLOURS[4]
    for row, (found, total) in enumerate(totals):
        low = max(total.low, total.nominal * 1e-6)
        ends += [low, total.high]
        if low < total.high:
            axes.plot([low, total.high], [row, row], color=colour, linewidth=4, alpha=0.5)
        fill = PAPER if found.unpriced else colour
        axes.plot([total.nominal], [row], "o", color=colour, markersize=7, markerfacecolor=fill)
    names = [found.chip.name + (f", {found.implementation}" if several else "") for found, _ in totals]
    axes.set(xlabel="energy of an image")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    value_axis(axes, ends)
    grid(axes, "x")


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
    with file_figure("draw_sensitivity", path, 1.6 + 0.36 * len(swings)) as figure:
        axes = figure.subplots()
        names = [swing.price_name for swing in swings]
        for end, colour in (("low", COLOURS[0]), ("high", COLOURS[5])):
            widths = [(getattr(swing, end) - nominal) / size for swing in swings]
            axes.barh(names, widths, left=nominal / size, color=colour, label=f"price at its {end} end")
        axes.axvline(nominal / size, color=INK, linewidth=1)
        axes.invert_yaxis()
        axes.set_xlabel(f"energy a sample, {unit}")
        axes.set_title(f"One price at a time, around {nominal / size:.3g} {unit}")
        legend_below(figure, axes)
        grid(axes, "x")
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
    with file_figure("draw_sweep", path, 3.8 * (1 + with_energy)) as figure:
        axes = figure.subplots(1 + with_energy, 1, squeeze=False)[:, 0]
        sweep_on(figure, axes[0], sweep)
        if with_energy:
            _sweep_lines(axes[1], sweep, lambda row: row.energy_pj or 0.0)
            axes[1].set(xlabel="energy of an image" + (f" on {sweep.chip}" if sweep.chip else ""))
            value_axis(axes[1], [row.energy_pj or 0.0 for row in sweep.rows])
    return Path(path)


def sweep_on(figure: Figure, axes: Axes, sweep: Sweep) -> None:
    """Draw accuracy against time steps, with a legend above, where no line can be."""
    _sweep_lines(axes, sweep, lambda row: row.steps)
    steps = sorted({row.steps for row in sweep.rows})
    doubling_axis(axes, steps)
    axes.set(xlabel="time steps of a window")
    lines, labels = axes.get_legend_handles_labels()
    title, columns = "weight bits", min(6, len(lines))
    place = "outside upper left"
    figure.legend(
        *(lines, labels), loc=place, ncols=columns, frameon=False, title=title, alignment="left", columnspacing=1
    )


def _sweep_lines(axes: Axes, sweep: Sweep, position: Callable[[SweepRow], float]) -> None:
    for place, bits in enumerate(dict.fromkeys(row.weight_bits for row in sweep.rows)):
        rows = sorted((row for row in sweep.rows if row.weight_bits == bits), key=lambda row: row.steps)
        colour, marker = LINES[place % len(LINES)]
        # Nothing wrong is less than half an image wrong: a scale of errors has no place for 0.
        accuracies = [min(row.accuracy or 0.0, 1 - 0.5 / sweep.samples) for row in rows]
        label = weight_bits_label(bits)
        axes.plot([position(row) for row in rows], accuracies, color=colour, marker=marker, label=label)
    accuracy_axis(axes, [row.accuracy or 0.0 for row in sweep.rows], sweep.samples)


def _require_total(function: str, found: Estimate) -> Range:
    if found.total is None:
        raise ValueError(f"{function}: estimate must have a price; got none on {found.chip.name}. Choose another chip.")
    return found.total
