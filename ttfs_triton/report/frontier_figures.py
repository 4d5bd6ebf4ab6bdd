"""The curves of a frontier, as figures of a page: accuracy against what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ttfs_triton.report.figures import INK, PAPER, page_figure
from ttfs_triton.report.frontier_table import FAULTS, FREE, ChipEnergy, FrontierRow
from ttfs_triton.report.plots import LINES
from ttfs_triton.wording import energy, interval, number, weight_bits_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[FrontierRow]
Place = Callable[[FrontierRow], float | None]
# Accuracies that an axis may name.
TICKS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.985),
    *(0.99, 0.992, 0.994, 0.995, 0.996, 0.997, 0.998, 0.999, 0.9995, 0.9999),
)
MOST_TICKS = 6
LABEL_SIZE = 9.5  # points
DASHES = ("-", "--", ":", "-.")
FAULT_NAMES = {
    "spike_jitter": "spike jitter, windows",
    "weight_noise": "weight noise, share of the magnitude",
    "dead_neurons": "dead neurons, share",
    "stuck_neurons": "stuck neurons, share",
    "lost_spikes": "lost spikes, share",
}
_SHORT = {
    "target_sparsity": "activity ",
    "target_operations": "operations ",
    "target_energy": "",
    "time_steps": "",
    "weight_bits": "",
    "state_bits": "",
    "spike_jitter": "jitter ",
    "weight_noise": "noise ",
    "dead_neurons": "dead ",
    "stuck_neurons": "stuck ",
    "lost_spikes": "lost ",
}
_UNITS = {"time_steps": " steps", "weight_bits": " bits", "state_bits": "-bit states"}


def label(row: FrontierRow) -> str:
    """A point in a few words: "activity 0.15", "4 steps, 4 bits, calibrated"."""
    if row.point == FREE:
        return "as given"
    words = [f"{_SHORT[key]}{value}{_UNITS.get(key, '')}" for key, value in _wanted(row).items()]
    return ", ".join([*words, *([] if row.trained else ["calibrated"])])


def short_label(row: FrontierRow) -> str:
    """A point as briefly as a crowded figure wants it: "0.15", "8×4", "0.15, 8×4", "jitter 0.1"."""
    if row.point == FREE:
        return "as given"
    given = _wanted(row)
    steps, bits = given.pop("time_steps", None), given.pop("weight_bits", "float")
    grid = [] if steps is None else [f"{steps}×{bits}"]
    words = [f"{'' if key == 'target_sparsity' else _SHORT[key]}{value}" for key, value in given.items()]
    return ", ".join([*words, *grid])


def _wanted(row: FrontierRow) -> dict[str, str]:
    """What a point is trained or put there for, without how it was trained."""
    given = dict(part.split("=", 1) for part in row.point.split("+"))
    return {key: value for key, value in given.items() if key in _SHORT}


def of_networks(rows: Rows) -> list[FrontierRow]:
    """Rows of networks as they are, once each."""
    return [row for row in rows if row.kind == "network"]


def memory_chip(rows: Rows) -> str | None:
    """The first chip that prices memory; None without one."""
    found = [each for row in rows for each in row.energy if each.with_memory is not None]
    return found[0].chip if found else None


def on_chip(row: FrontierRow, chip: str) -> ChipEnergy | None:
    """The row's energy on a chip."""
    return next((each for each in row.energy if each.chip == chip), None)


def operations_svg(rows: Rows, here: FrontierRow | None = None) -> str | None:
    """Accuracy against synaptic operations of an image; None with fewer than two points.

    Args:
        rows: of a frontier.
        here: a network to be shown among them.
    """
    return _scatter(
        "frontier-operations",
        rows,
        here,
        lambda row: row.synaptic_operations,
        "synaptic operations of an image",
        number,
    )


def energy_svg(
    rows: Rows, chip: str, measure: Literal["with_memory", "arithmetic"], here: FrontierRow | None = None
) -> str | None:
    """Accuracy against the energy of an image on a chip, with lines where the dense ANN is; None without two points.

    Args:
        rows, here: as of `operations_svg`.
        chip: one that all rows were priced on.
        measure: which sum.
    """

    def place(row: FrontierRow) -> float | None:
        found = on_chip(row, chip)
        amount = None if found is None else getattr(found, measure)
        return None if amount is None else amount * 1e6

    dense: dict[str, float] = {}
    for row in of_networks(rows):
        found = on_chip(row, chip)
        amount = None if found is None else getattr(found, f"dense_{measure}")
        if amount is not None:
            dense.setdefault(row.network, amount * 1e6)
    what = "memory included" if measure == "with_memory" else "arithmetic alone"
    return _scatter(f"frontier-{measure}", rows, here, place, f"energy of an image on {chip}, {what}", energy, dense)


def grid_svg(rows: Rows, across: Literal["time_steps", "weight_bits"]) -> str | None:
    """Accuracy against time steps, a line for each number of bits, or the other way round; None without two points."""
    other = "weight_bits" if across == "time_steps" else "time_steps"
    on_grid = [row for row in of_networks(rows) if row.time_steps is not None and getattr(row, across) is not None]
    on_grid = [row for row in on_grid if not any(f"{key}=" in row.point for key in ("target_", *FAULTS))]

    def group(row: FrontierRow) -> str:
        value = getattr(row, other)
        bits = "bits" if value is not None or other == "time_steps" else "weights"
        name = f"{value} steps" if other == "time_steps" else f"{weight_bits_label(value)} {bits}"
        return f"{name}, {'trained' if row.trained else 'calibrated'}"

    title = "time steps of a window" if across == "time_steps" else "bits of a weight"
    free = [row for row in of_networks(rows) if row.time_steps is None and row.point == FREE]
    return _lines(
        f"frontier-{across}", on_grid, lambda row: getattr(row, across), group, title, powers=True, levels=free
    )


def fault_svg(rows: Rows, kind: str) -> str | None:
    """Accuracy against one kind of fault, a line for each network that was trained; None without two points.

    Args:
        rows: of a frontier.
        kind: one of `FAULTS`.
    """
    others = [name for name in FAULTS if name != kind]
    own = [row for row in rows if row.kind == "faults" and not any(getattr(row, name) for name in others)]
    met = {(row.network, row.point) for row in own if getattr(row, kind)}
    own = [row for row in own if (row.network, row.point) in met]
    return _lines(f"frontier-{kind}", own, lambda row: getattr(row, kind), label, FAULT_NAMES[kind])


def deadline_svg(rows: Rows) -> str | None:
    """Accuracy against the time in which images are decided; None without two points."""
    own = [row for row in rows if row.kind == "deadline"]
    return _lines("frontier-deadline", own, lambda row: row.deadline, label, "deadline, windows from the image's start")


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str


def _styles(names: Iterable[str]) -> dict[str, _Style]:
    """Colour and marker of each network, or line."""
    return {name: _Style(*LINES[place % len(LINES)]) for place, name in enumerate(dict.fromkeys(names))}


def _scatter(
    name: str,
    rows: Rows,
    here: FrontierRow | None,
    place: Place,
    title: str,
    wording: Callable[[float | None], str],
    dense: dict[str, float] | None = None,
) -> str | None:
    """Points of networks: filled if trained, open if calibrated; those with a target alone are joined by a line."""
    found = [(x, row) for row in of_networks(rows) if (x := place(row)) is not None and x > 0]
    if here is not None and (x := place(here)) is not None:
        found.append((x, here))
    if len(found) < 2:
        return None
    styles, several = _styles(row.network for row in rows), len({row.network for row in rows}) > 1
    with page_figure(name, 4.4) as picture:
        axes = picture.figure.subplots()
        axes.set_xscale("log")
        for network, style in styles.items():
            own = [(x, row) for x, row in found if row.network == network and row is not here]
            for kind in sorted({row.target for _, row in own if row.target is not None}):
                joined = sorted((x, row.accuracy) for x, row in own if _is_joined(row, kind))
                if joined:
                    axes.plot(*zip(*joined, strict=True), color=style.colour, linewidth=1.2, alpha=0.6)
            for x, row in own:
                low, high = interval(row.accuracy, row.images)
                axes.plot([x, x], [low, high], color=style.colour, linewidth=1, alpha=0.35)
                axes.plot(
                    *([x], [row.accuracy], style.marker),
                    color=style.colour,
                    markersize=9 if row.point == FREE else 6,
                    markerfacecolor=style.colour if row.trained else PAPER,
                    label=network if several and row is own[0][1] else None,
                )
            if dense and network in dense:
                axes.axvline(dense[network], color=style.colour, linestyle="--", linewidth=1.2)
        if here is not None:
            x = place(here)
            assert x is not None, "among the points"
            axes.plot([x], [here.accuracy], "*", color=INK, markersize=14, zorder=6)
        _accuracy_axis(axes, [row.accuracy for _, row in found])
        axes.set_xlabel(title)
        if several:
            axes.legend(frameon=False, loc="lower right", fontsize=LABEL_SIZE)
        _value_axis(axes, wording)
        marks = [
            (x, row.accuracy, "this network" if row is here else short_label(row) if _is_named(x, row, found) else "")
            for x, row in found
        ]
        if dense:
            marks += [(value, axes.get_ylim()[0], "dense ANN") for value in list(dense.values())[:1]]
        _label_points(picture.figure, axes, marks)
    return picture.svg


def _is_named(x: float, row: FrontierRow, others: Sequence[tuple[float, FrontierRow]]) -> bool:
    """Whether there is room for a name: not for a calibrated point that another one beats in both."""
    if row.trained:
        return True
    rivals = [(cost, other) for cost, other in others if not other.trained and other.network == row.network]
    return not any(cost <= x and other.accuracy > row.accuracy for cost, other in rivals)


def _is_joined(row: FrontierRow, kind: str) -> bool:
    """Whether a row is on the line of what training for one kind of target gives: such points alone, and the start."""
    return row.point == FREE or (len(_wanted(row)) == 1 and row.target == kind)


def _lines(
    name: str,
    rows: Rows,
    place: Place,
    group: Callable[[FrontierRow], str],
    title: str,
    *,
    powers: bool = False,
    levels: Rows = (),
) -> str | None:
    """A line for each network and group."""
    several = len({row.network for row in rows}) > 1
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x = place(row)
        if x is not None:
            prefix = f"{row.network}, " if several else ""
            groups.setdefault(prefix + group(row), []).append((x, row.accuracy))
    values = sorted({x for points in groups.values() for x, _ in points})
    if len(values) < 2:
        return None
    with page_figure(name, 3.4 + 0.2 * len(groups)) as picture:
        axes = picture.figure.subplots()
        for place_, (text, points) in enumerate(groups.items()):
            colour, marker = LINES[place_ % len(LINES)]
            xs, ys = zip(*sorted(points), strict=True)
            open_ = "calibrated" in text
            axes.plot(
                *(xs, ys),
                color=colour,
                marker=marker if len(points) < 15 else None,
                linestyle="--" if open_ else DASHES[place_ // len(LINES) % len(DASHES)],
                markerfacecolor=PAPER if open_ else colour,
                label=text,
            )
        for row in levels:
            axes.axhline(row.accuracy, color=INK, linewidth=1, alpha=0.5, linestyle=":")
            axes.plot([], [], color=INK, linewidth=1, alpha=0.5, linestyle=":", label=f"{row.network} without a grid")
        if powers:
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [f"{x:g}" for x in values])
            axes.minorticks_off()
        _accuracy_axis(axes, [y for points in groups.values() for _, y in points] + [row.accuracy for row in levels])
        axes.set_xlabel(title)
        picture.figure.legend(loc="outside lower left", frameon=False, fontsize=LABEL_SIZE, ncols=1)
    return picture.svg


def _accuracy_axis(axes: Axes, accuracies: Sequence[float]) -> None:
    """Errors on a logarithmic scale, named by their accuracies: 99 and 99.5 are as far apart as 80 and 90."""
    least = 1e-4

    def forward(accuracy: Any) -> Any:
        import numpy as np

        return -np.log10(np.maximum(1 - np.asarray(accuracy, dtype=float), least))

    def backward(value: Any) -> Any:
        import numpy as np

        return 1 - 10.0 ** -np.asarray(value, dtype=float)

    axes.set_yscale("function", functions=(forward, backward))
    low, high = float(forward(min(accuracies))), float(forward(max(accuracies)))
    margin = max(0.12 * (high - low), 0.06)
    low, high = max(low - margin, 0.0), high + margin
    axes.set_ylim(float(backward(low)), float(backward(high)))
    inside = [tick for tick in TICKS if low <= float(forward(tick)) <= high]
    chosen = inside
    while len(chosen) > MOST_TICKS:
        chosen = _thinned(chosen, forward)
    axes.set_yticks(chosen, [f"{100 * tick:.4g}%" for tick in chosen])
    axes.minorticks_off()
    axes.grid(axis="y", color=INK, linewidth=0.5, alpha=0.15)
    axes.set_axisbelow(True)


def _thinned(ticks: Sequence[float], forward: Callable[[Any], Any]) -> list[float]:
    """Without the tick that is closest to its neighbours; the rounder one of two stays."""
    gaps = [float(forward(later)) - float(forward(earlier)) for earlier, later in pairwise(ticks)]
    closest = gaps.index(min(gaps))
    pair = (closest, closest + 1)
    out = max(pair, key=lambda index: len(f"{100 * ticks[index]:.4g}"))
    return [tick for index, tick in enumerate(ticks) if index != out]


def _value_axis(axes: Axes, wording: Callable[[float | None], str]) -> None:
    """A logarithmic axis whose few numbers are in words."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 0.6 else (1, 2, 5) if decades < 1.6 else (1,)
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=LABEL_SIZE)


def _label_points(figure: Figure, axes: Axes, marks: Sequence[tuple[float, float, str]]) -> None:
    """Write beside each point what it is, where nothing is in the way; points come before text."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    box = axes.get_window_extent()
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in (axes.transData.transform(mark[:2]) for mark in marks)]
    for x, y, text in marks:
        if not text:
            continue
        px, py = axes.transData.transform((x, y))
        wide, tall = 0.55 * LABEL_SIZE * scale * len(text), 1.2 * LABEL_SIZE * scale
        best: tuple[float, tuple[float, float]] | None = None
        for distance in (8, 16, 26, 38, 52):
            for side, rise in ((1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (-1, 0), (0, 1), (0, -1)):
                left = px + side * distance * scale - (wide if side < 0 else wide / 2 if side == 0 else 0)
                bottom = py + rise * distance * scale * 0.8 - tall / 2
                spot = (left, bottom, left + wide, bottom + tall)
                outside = spot[0] < box.x0 or spot[2] > box.x1 or spot[1] < box.y0 or spot[3] > box.y1
                cost = distance / 100 + sum(_overlap(spot, other) for other in taken) + (50 if outside else 0)
                if best is None or cost < best[0]:
                    best = (cost, (left, bottom))
        assert best is not None, "places were tried"
        left, bottom = best[1]
        taken.append((left, bottom, left + wide, bottom + tall))
        text_ = axes.annotate(
            text, (x, y), ((left - px) / scale, (bottom - py) / scale), textcoords="offset points", fontsize=LABEL_SIZE
        )
        text_.set_in_layout(False)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Of two boxes, in units in which one that matters is about 1."""
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, tall) / 100 + (1.0 if wide > 0 and tall > 0 else 0.0)
