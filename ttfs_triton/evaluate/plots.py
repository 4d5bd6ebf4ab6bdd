"""Matplotlib helpers: SVG for pages, styles and axes; needs the extra `plot`."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ttfs_triton.wording import energy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], object]

INK, PAPER = "#223344", "#fefdfc"  # a page replaces them by its own text and background colours
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
    """Raise RuntimeError if matplotlib is not installed; the message names `function`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError(f"{function}: matplotlib must be installed; found none. pip install 'ttfs-triton[plot]'")


def _for_page(svg: str) -> str:
    """The SVG in the page's colours, without headers, metadata, styles, sizes and group identifiers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    head, end, rest = svg.partition(">")
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    svg = head.replace("<svg", '<svg aria-hidden="true" focusable="false"') + end + rest
    return svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)")


def accuracy_lines(
    axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], samples: int, title: str, *, doubling: bool = False
) -> None:
    """Draw one line for each name through its points (value, accuracy), dashed if the name contains "calibrated".

    `title` names the horizontal axis. With `doubling`, for values such as time steps, each value has a tick.
    """
    if doubling:
        values = sorted({value for points in lines.values() for value, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.set_xlabel(title)
    most = 1 - 0.5 / samples  # at least half an image counts as wrong: a logarithmic scale of errors has no 0
    for place, (name, points) in enumerate(lines.items()):
        colour, marker = LINES[place % len(LINES)]
        values, accuracies = zip(*sorted(points), strict=True)
        calibrated = "calibrated" in name
        axes.plot(
            *(values, np.minimum(accuracies, most)),
            color=colour,
            marker=marker if len(points) < 15 else None,
            linestyle="--" if calibrated else "-",
            markerfacecolor=PAPER if calibrated else colour,
            label=name,
        )
    accuracy_axis(axes, [accuracy for points in lines.values() for _, accuracy in points], samples)


def accuracy_axis(axes: Axes, accuracies: Sequence[float], samples: int) -> None:
    """Make accuracy the vertical axis; if errors are far apart, such as 1 % and 90 %, their scale is logarithmic."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_ylabel("accuracy")
    errors = [max(1 - accuracy, 0.5 / samples) for accuracy in accuracies]
    if max(errors) > 10 * min(errors):
        axes.set_yscale("function", functions=(_by_error, lambda height: 1 - 10.0 ** -np.asarray(height)))
        axes.set_ylim(1 - 1.1 * max(errors), 1 - min(errors) / 1.1)
        axes.yaxis.set_major_locator(FixedLocator(ACCURACIES))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    grid(axes, "y")


def _by_error(accuracy: Any) -> Any:
    return -np.log10(np.maximum(1 - np.asarray(accuracy, dtype=float), 1e-9))


def value_axis(axes: Axes, values: Sequence[float], wording: Callable[[float], str] = energy) -> None:
    """Make values the horizontal axis, labelled by `wording`; values far apart, such as 1 nJ and 1 µJ, logarithmic."""
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
