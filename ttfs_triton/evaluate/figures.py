"""Figures as SVG for pages, with matplotlib (extra `plot`): styles and axes; figures of one evaluated network."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ttfs_triton.energy import Counts, Estimate, LayerCounts
from ttfs_triton.wording import energy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ttfs_triton.evaluate.measure import LayerSpikes

Draw = Callable[["Figure"], object]

INK, PAPER = "#223344", "#fefdfc"  # a page replaces them by its text and background colours
PAGE_WIDTH = 5.0  # inches; a phone shows a page's figures about 4.5 wide
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a name with a dollar sign is not a formula
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
    "svg.fonttype": "none",  # text stays text: small, sharp, in the page's font
    "font.family": "sans-serif",
    "savefig.transparent": True,
    "savefig.dpi": 200,
}
# Okabe-Ito colours, distinct for the colour-blind and in print; markers of lines differ too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7A7A7A")
LINES = tuple(
    zip(("#0072B2", "#C24E00", "#009E73", "#CC79A7", "#7A7A7A", "#E69F00", "#56B4E9"), "os^DvPX", strict=True)
)
ACCURACIES = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)


def page_svg(name: str, height: float, draw: Draw) -> str:
    """The figure that `draw` draws, as SVG text for a page; `name` keeps its identifiers unique on the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    text = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(PAGE_WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _for_page(text.getvalue())


def require_matplotlib(function: str) -> None:
    """RuntimeError if matplotlib is not installed; the message names `function`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError(f"{function}: matplotlib must be installed; got none. Run: pip install 'ttfs-triton[plot]'.")


def _for_page(svg: str) -> str:
    """The SVG in the page's colours, without headers, metadata, styles, sizes and group identifiers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    head, end, rest = svg.partition(">")
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    svg = head.replace("<svg", '<svg aria-hidden="true" focusable="false"') + end + rest
    return svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)")


def accuracy_axis(axes: Axes, accuracies: Sequence[float], samples: int) -> None:
    """Make accuracy the vertical axis, with a logarithmic scale of errors if they are far apart, as 1 % and 90 %."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_ylabel("accuracy")
    errors = [max(1 - accuracy, 0.5 / samples) for accuracy in accuracies]
    if max(errors) > 10 * min(errors):
        by_error: Any = lambda accuracy: -np.log10(np.maximum(1 - np.asarray(accuracy, dtype=float), 1e-9))  # noqa: E731
        axes.set_yscale("function", functions=(by_error, lambda height: 1 - 10.0 ** -np.asarray(height)))
        axes.set_ylim(1 - 1.1 * max(errors), 1 - min(errors) / 1.1)
        axes.yaxis.set_major_locator(FixedLocator(ACCURACIES))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    grid(axes, "y")


def value_axis(axes: Axes, values: Sequence[float], wording: Callable[[float], str] = energy) -> None:
    """Make values the horizontal axis, labelled by `wording`; logarithmic if they are far apart, as 1 nJ and 1 µJ."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if max(values) < 3 * min(values):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        decades = math.log10(high / low)
        subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 0.6 else (1, 2, 5) if decades < 1.6 else (1,)
        ticks = 6 if decades < 1.6 else max(2, min(6, int(decades)))
        axes.xaxis.set_major_locator(LogLocator(10, subs=subs, numticks=ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """Add a legend below the axes, where it covers no data."""
    options: dict[str, Any] = {"loc": "outside lower left", "alignment": "left", "frameon": False, "fontsize": 9}
    figure.legend(*axes.get_legend_handles_labels(), ncols=columns, **options)


def grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Add thin grid lines behind the data."""
    axes.grid(axis=axis, color=INK, linewidth=0.5, alpha=0.15)
    axes.set_axisbelow(True)


# ---- one evaluated network

DEADLINE_AXIS = "deadline, windows from the image's start"
POINTS = ((64, 4.0), (1024, 2.5), (8192, 1.6))  # (most neurons of a layer, diameter of its points)


def raster_svg(layers: Sequence[LayerSpikes]) -> str:
    """Spike raster: time across, one band per layer, one point per spike; a ring marks the first output spike.

    The points are one bitmap inside the SVG, so that the file's size hardly depends on the number of spikes.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, layer in enumerate(layers):
            size = next((size for most, size in POINTS if layer.neurons <= most), 0.9)
            axes.plot(
                *(layer.time.tolist(), _heights(row, layer)),
                linestyle="none",
                marker="o",
                markersize=size,
                markeredgewidth=0,
                alpha=1.0 if size > 1 else 0.6,
                color=COLOURS[row % 6],
                rasterized=True,
            )
            axes.axhline(row, color=INK, linewidth=0.5, alpha=0.25)
        last = layers[-1]
        for window in range(1, last.window + 1):
            axes.axvline(window, color=INK, linewidth=0.5, alpha=0.25)
        if len(last.time):
            first = int(last.time.argmin())
            place = float(last.time[first]), _heights(len(layers) - 1, last)[first]
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.8, "zorder": 5}
            axes.plot(*place, "o", color=INK, **ring)
            axes.annotate("first output spike", place, (-10, 0), textcoords="offset points", ha="right", va="center")
        axes.set(xlim=(0, last.window + 1), ylim=(len(layers), 0))
        axes.set(xlabel="time from the image's start, windows")
        axes.set_yticks([row + 0.5 for row in range(len(layers))], [layer.name for layer in layers])
        axes.locator_params("x", nbins=8, integer=True)
        axes.tick_params(axis="y", length=0)

    return page_svg("raster", 1.0 + 0.44 * len(layers), draw)


def _heights(row: int, layer: LayerSpikes) -> list[float]:
    """Vertical positions of a layer's spikes inside the layer's band."""
    return (row + 0.08 + 0.84 * (layer.index.double() + 0.5) / max(layer.neurons, 1)).tolist()


def histograms_svg(counts: Counts) -> str | None:
    """Histograms of spike times in the window, one per layer; None if no layer has a histogram."""
    layers = [layer for layer in counts.layers if sum(layer.histogram)]
    if not layers:
        return None
    columns = 2 if len(layers) <= 8 else 3
    rows = -(-len(layers) // columns)

    def draw(figure: Figure) -> None:
        pictures = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
        for place, axes in enumerate(pictures):
            axes.set_visible(place < len(layers))
            axes.tick_params(labelbottom=place + columns >= len(layers))
        for axes, layer in zip(pictures, layers, strict=False):
            _histogram(axes, layer)
        figure.supxlabel("time from the window's start, windows", fontsize=11)

    return page_svg("histograms", 0.5 + 1.3 * rows, draw)


def _histogram(axes: Axes, layer: LayerCounts) -> None:
    """Histogram of a layer's spike times; a bin far above the others is cut off and labelled with its share."""
    bins = len(layer.histogram)
    shares = [spikes / sum(layer.histogram) for spikes in layer.histogram]
    edges = [place / bins for place in range(bins + 1)]
    axes.stairs(shares, edges, fill=True, color=COLOURS[4 if layer.kind != "readout" else 1])
    axes.set_title(layer.name, loc="left", fontsize=11)
    axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
    axes.set_xticklabels(["0", "½", "1"])
    largest, second = [*sorted(shares, reverse=True), 0.0][:2]
    cut = 1.6 * second if 0 < second < largest / 3 else 0.0
    axes.set_ylim(0, cut or 1.08 * largest)
    if cut:
        place = (shares.index(largest) + 0.5) / bins
        align, offset = ("right", -5) if place > 0.5 else ("left", 5)
        text = f"{100 * largest:.0f}%"
        axes.annotate(text, (place, 0.97 * cut), (offset, 0), textcoords="offset points", ha=align, va="top")
    axes.locator_params("y", nbins=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def energy_svg(estimates: Sequence[Estimate]) -> str | None:
    """Total energies with ranges, by chip; open markers if terms have no price. None unless two chips have prices."""
    totals = [(estimate, total) for estimate in estimates if (total := estimate.total) and total.nominal > 0]
    if len(totals) < 2:
        return None

    def draw(figure: Figure) -> None:
        axes, ends, names, colour = figure.subplots(), list[float](), list[str](), COLOURS[4]
        for row, (estimate, total) in enumerate(totals):
            low = max(total.low, total.nominal * 1e-6)
            ends += [low, total.high]
            if low < total.high:
                axes.plot([low, total.high], [row, row], color=colour, linewidth=4, alpha=0.5)
            fill = PAPER if estimate.unpriced else colour
            axes.plot([total.nominal], [row], "o", color=colour, markersize=7, markerfacecolor=fill)
            names.append(estimate.chip.name)
        axes.set(xlabel="energy of an image")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        value_axis(axes, ends)
        grid(axes, "x")

    return page_svg("energy", 0.8 + 0.3 * len(totals), draw)


def lines_svg(
    name: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    images: int,
    *,
    doubling: bool = False,
    levels: Mapping[str, float] | None = None,
) -> str | None:
    """Accuracy against a value: lines through points; None with fewer than two values.

    Args:
        name: name of the figure, unique on the page.
        lines: points (value, accuracy) by name of the line; it is dashed if its name contains "calibrated".
        title: name of the horizontal axis.
        images: number of images that the accuracies are of.
        doubling: make the horizontal axis logarithmic, with a tick at every value, as for time steps.
        levels: accuracies to draw as horizontal lines, by name.
    """
    levels, points = levels or {}, [point for drawn in lines.values() for point in drawn]
    if len(values := sorted({value for value, _ in points})) < 2:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for text, accuracy in levels.items():
            axes.axhline(accuracy, color=INK, linewidth=1, alpha=0.5, linestyle=":", label=text)
        if doubling:
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        axes.set_xlabel(title)
        for (text, drawn), (colour, marker) in zip(lines.items(), cycle(LINES)):
            style, fill = ("--", PAPER) if "calibrated" in text else ("-", colour)
            options: dict[str, Any] = {"linestyle": style, "marker": marker if len(drawn) < 15 else None}
            xs, accuracies = zip(*sorted(drawn), strict=True)
            # At least half an image counts as wrong: a logarithmic scale of errors has no 0.
            ys = np.minimum(accuracies, 1 - 0.5 / images)
            axes.plot(xs, ys, color=colour, markerfacecolor=fill, label=text, **options)
        accuracy_axis(axes, [accuracy for _, accuracy in points], images)
        if len(lines) + len(levels) > 1:
            legend_below(figure, axes, columns=1)

    return page_svg(name, 3.4 + 0.2 * len(lines), draw)
