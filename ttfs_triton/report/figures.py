"""Figures as SVG to stand inside a page: as wide as the page lets them be, in the page's text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ttfs_triton.hardware import Counts, Estimate, Sweep
from ttfs_triton.report.plots import COLOURS, STYLE, chips_on, priced, sweep_on
from ttfs_triton.report.raster import LayerSpikes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0  # inches; a phone shows them on about 4.5
POINTS = ((64, 4.0), (1024, 2.5), (8192, 1.6))  # neurons of a layer at most, diameter of its points
INK, PAPER = "#223344", "#fefdfc"  # drawn, then replaced by the page's text and background
PAGE_STYLE: dict[Any, Any] = STYLE | {
    "svg.fonttype": "none",  # text stays text: small, sharp, in the page's font
    "text.parse_math": False,  # names are names, also with a dollar sign
    "font.family": "sans-serif",
    **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), 11),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "savefig.transparent": True,
    "savefig.dpi": 200,
}


@dataclass
class Drawing:
    """An SVG under way: the figure, then its text."""

    figure: Figure
    svg: str = ""


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
        axes.xaxis.set_major_locator(_ticks(8, integer=True))
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
    """Spikes by time in the window, a small picture a layer; None if no layer has a histogram.

    Args:
        counts: with histograms.
    """
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
            axes.yaxis.set_major_locator(_ticks(2))
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
    """Total energy a chip with its range, on a logarithmic axis; None unless two chips have a price.

    Open markers are of totals that lack terms without a price.

    Args:
        estimates: one or several.
    """
    totals = priced(estimates)
    if len(totals) < 2:
        return None
    with page_figure("energy", 0.8 + 0.3 * len(totals)) as drawing:
        chips_on(drawing.figure.subplots(), totals, ink=INK, paper=PAPER, colour=COLOURS[4])
    return drawing.svg


def sweep_svg(sweep: Sweep) -> str | None:
    """Accuracy against time steps, a line for each number of weight bits; None without accuracies.

    Args:
        sweep: with accuracies.
    """
    if any(row.accuracy is None for row in sweep.rows):
        return None
    with page_figure("sweep", 3.4) as drawing:
        sweep_on(drawing.figure, drawing.figure.subplots(), sweep, ink=INK)
    return drawing.svg


def _ticks(at_most: int, *, integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(at_most, integer=integer)


@contextmanager
def page_figure(name: str, height: float) -> Iterator[Drawing]:
    """A figure that is turned into SVG in the end; its name keeps its identifiers apart from other figures'."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**PAGE_STYLE, "svg.hashsalt": name}):
        drawing = Drawing(Figure(figsize=(WIDTH, height), layout="constrained"))
        yield drawing
        text = io.StringIO()
        drawing.figure.savefig(text, format="svg", metadata={"Date": None})
        drawing.svg = _for_page(text.getvalue())


def _for_page(svg: str) -> str:
    """Leave out what a page must not get twice or at all: headers, metadata, styles, sizes, identifiers of groups."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    head, end, rest = svg.partition(">")
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    svg = head.replace("<svg", '<svg aria-hidden="true" focusable="false"') + end + rest
    return re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL).replace(INK, "currentColor").replace(PAPER, "var(--paper)")
