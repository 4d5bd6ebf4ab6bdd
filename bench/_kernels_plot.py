"""The picture of `kernels.py`: how many times as long the strongest baselines take as ours, layer by layer."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from _kernels_contenders import ANN, COMPILED, COMPOSITION, OURS, STACKED, TORCH
from _kernels_table import PASSES, Row, groups, providers_of, times_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

# Okabe-Ito colours, by strength: the first two that were timed are drawn.
RIVALS = (COMPILED.format(COMPOSITION), STACKED, COMPOSITION, ANN)
COLOURS = ("#0072B2", "#E69F00")
INK = "#222222"
STYLE: dict[Any, Any] = {"svg.hashsalt": "kernels", "font.size": 9, "text.color": INK, "axes.labelcolor": INK}


def draw(path: Path, rows: list[Row], note: str) -> Path:
    """Write the picture: a column for each dtype and σ, a row of panels for each pass."""
    columns = groups(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 4.2 * len(columns), 11), layout="constrained")
        panels = figure.subplots(len(PASSES), len(columns), sharex="col", sharey="row", squeeze=False)
        for column, ((dtype, sigma), chosen) in enumerate(columns.items()):
            for line, name in enumerate(PASSES):
                draw_panel(panels[line, column], chosen, name)
                if column == 0:
                    panels[line, column].set_ylabel(name.replace("_backward", " + backward"))
            panels[0, column].set_title(f"{dtype}, σ = {sigma:g}", loc="left")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", frameon=False, fontsize=8)
        figure.suptitle("Time over ours (above 1: ours is faster)", x=0.01, ha="left")
        figure.supxlabel(note, fontsize=8, color=INK, alpha=0.8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def draw_panel(axes: Axes, rows: list[Row], name: str) -> None:
    """Two bars a layer, from 1 up or down."""
    names = providers_of(rows)
    own = OURS if OURS in names else TORCH
    rivals = [rival for rival in RIVALS if rival in names][: len(COLOURS)]
    times = {case: t for (case, pass_), t in times_of(rows).items() if pass_ == name}
    width = 0.8 / max(1, len(rivals))
    for i, (rival, colour) in enumerate(zip(rivals, COLOURS, strict=False)):
        places, heights = [], []
        for place, t in enumerate(times.values()):
            if own in t and rival in t:
                places.append(place + (i - (len(rivals) - 1) / 2) * width)
                heights.append(t[rival] / t[own] - 1)
        axes.bar(places, heights, width, bottom=1, color=colour, label=f"{rival} / {own}")
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(times)), list(times), rotation=90, fontsize=8)
    axes.grid(axis="y", color=INK, linewidth=0.5, alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
