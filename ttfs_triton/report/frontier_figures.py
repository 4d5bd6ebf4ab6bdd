"""The curves of a frontier, as figures of a page: accuracy against what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttfs_triton.report.figures import lines_svg
from ttfs_triton.report.frontier_table import FAULTS, FREE, FrontierRow
from ttfs_triton.report.plots import INK, LINES, PAPER, accuracy_axis, legend_below, page_svg, value_axis
from ttfs_triton.wording import energy, interval, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[FrontierRow]
Cost = Callable[[FrontierRow], float | None]

FAULT_NAMES = {
    "spike_jitter": "spike jitter, windows",
    "weight_noise": "weight noise, share of the magnitude",
    "dead_neurons": "dead neurons, share",
    "stuck_neurons": "stuck neurons, share",
    "lost_spikes": "lost spikes, share",
}
# What a point is trained or calibrated for: words before and behind each value.
WORDS = {
    "target_sparsity": ("activity ", ""),
    "target_operations": ("operations ", ""),
    "target_energy": ("", ""),
    "time_steps": ("", " steps"),
    "weight_bits": ("", " bits"),
    "state_bits": ("", "-bit states"),
    "spike_jitter": ("jitter ", ""),
    "weight_noise": ("noise ", ""),
    "dead_neurons": ("dead ", ""),
    "stuck_neurons": ("stuck ", ""),
    "lost_spikes": ("lost ", ""),
}
MARKS = (
    "Numbers: the activity that was trained for; 8×4: 8 time steps, 4-bit weights. Filled: trained; open: calibrated, "
    "without training. Thin lines: 95 % confidence interval of the accuracy."
)
DENSE = f"{MARKS} Dashed: the dense ANN at the same precision."
GRID = "Solid: trained on the grid; dashed: calibrated."
DEADLINE = "All images decided by then: by the earliest output spike, or by potentials if there is none yet."
ENERGIES = (("with_memory", "with memory"), ("arithmetic", "of arithmetic alone"))
DEADLINES = "deadline, windows from the image's start"


@dataclass(frozen=True)
class Section:
    """Figures of a page under one title.

    Attributes:
        name: identifier in the page.
        title: of the section.
        figures: (SVG, what it shows, how to read it) of each.
    """

    name: str
    title: str
    figures: tuple[tuple[str, str, str], ...]


def sections(rows: Rows, here: FrontierRow | None = None) -> list[Section]:
    """All sections of which there is anything to draw, with another network among the points."""
    chip = memory_chip(rows)
    steps, bits = (grid_svg(rows, key) for key in ("time_steps", "weight_bits"))
    faults = [(fault_svg(rows, kind), name, "Simulated, on one chip.") for kind, name in FAULT_NAMES.items()]
    deadlines = _by([row for row in rows if row.kind == "deadline"], "deadline")
    deadline = lines_svg("frontier-deadline", deadlines, DEADLINES, rows[0].images)
    energies = [(energy_svg(rows, here, key, chip), f"energy {what}", DENSE) for key, what in ENERGIES] if chip else []
    drawn = [
        ("operations", "Synaptic operations", [(operations_svg(rows, here), "synaptic operations", MARKS)]),
        ("energy", f"Energy on {chip}", energies),
        ("grid", "Time steps and weight bits", [(steps, "time steps", GRID), (bits, "weight bits", GRID)]),
        ("faults", "Faults", faults),
        ("deadline", "Deadline", [(deadline, "the deadline", DEADLINE)]),
    ]
    found = []
    for name, title, figures in drawn:
        own = [(svg, f"Accuracy against {what}.", how) for svg, what, how in figures if svg is not None]
        if own:
            found.append(Section(name, title, tuple((svg, what, f"{what} {how}") for svg, what, how in own)))
    return found


def label(row: FrontierRow) -> str:
    """A point in a few words: "activity 0.15", "4 steps, 4 bits, calibrated"."""
    if row.point == FREE:
        return "as given"
    words = [value.join(WORDS[key]) for key, value in _wanted(row).items()]
    return ", ".join([*words, *([] if row.trained else ["calibrated"])])


def short_label(row: FrontierRow) -> str:
    """A point as briefly as a figure wants it: "0.15", "8×4", "0.15, 8×4", "jitter 0.1"."""
    if row.point == FREE:
        return "as given"
    given = _wanted(row)
    steps, bits = given.pop("time_steps", None), given.pop("weight_bits", "float")
    words = [value if key == "target_sparsity" else WORDS[key][0] + value for key, value in given.items()]
    return ", ".join([*words, *([] if steps is None else [f"{steps}×{bits}"])])


def _wanted(row: FrontierRow) -> dict[str, str]:
    """What a point is trained or calibrated for, without how it was trained."""
    given = dict(part.split("=", 1) for part in row.point.split("+"))
    return {key: value for key, value in given.items() if key in WORDS}


def of_networks(rows: Rows) -> list[FrontierRow]:
    """Rows of networks as they are, once each."""
    return [row for row in rows if row.kind == "network"]


def memory_chip(rows: Rows) -> str | None:
    """The first chip that prices memory; None without one."""
    return next((each.chip for row in rows for each in row.energy if each.with_memory is not None), None)


def operations_svg(rows: Rows, here: FrontierRow | None) -> str | None:
    """Accuracy against synaptic operations, with a network among the points; None with fewer than two points."""
    title = "synaptic operations of an image"
    return _scatter("frontier-operations", rows, here, lambda row: row.synaptic_operations, title, number, {})


def energy_svg(rows: Rows, here: FrontierRow | None, measure: str, chip: str) -> str | None:
    """Likewise against the energy on a chip, "with_memory" or of "arithmetic", with lines where the dense ANN is."""
    title = f"energy of an image, {'memory included' if measure == 'with_memory' else 'arithmetic alone'}"
    dense = {row.network: row.picojoules(chip, f"dense_{measure}") for row in reversed(of_networks(rows))}
    return _scatter(f"frontier-{measure}", rows, here, lambda row: row.picojoules(chip, measure), title, energy, dense)


def grid_svg(rows: Rows, across: str) -> str | None:
    """Accuracy against "time_steps", a line for each number of bits, or against "weight_bits"; None without points."""
    on_grid = [row for row in of_networks(rows) if row.time_steps is not None and getattr(row, across) is not None]
    on_grid = [row for row in on_grid if not any(f"{key}=" in row.point for key in ("target_", *FAULTS))]

    def group(row: FrontierRow) -> str:
        bits = "float weights" if row.weight_bits is None else f"{row.weight_bits} bits"
        name = bits if across == "time_steps" else f"{row.time_steps} steps"
        return f"{name}, {'trained' if row.trained else 'calibrated'}"

    title = "time steps of a window" if across == "time_steps" else "bits of a weight"
    free = [row for row in of_networks(rows) if row.time_steps is None and row.point == FREE]
    levels = {f"{row.network} without a grid": row.accuracy for row in free}
    lines = _by(on_grid, across, group)
    return lines_svg(f"frontier-{across}", lines, title, rows[0].images, doubling=True, levels=levels)


def fault_svg(rows: Rows, kind: str) -> str | None:
    """Accuracy against a kind of `FAULTS`, a line for each network that was trained; None without two points."""
    others = [name for name in FAULTS if name != kind]
    own = [row for row in rows if row.kind == "faults" and not any(getattr(row, name) for name in others)]
    met = {(row.network, row.point) for row in own if getattr(row, kind)}
    own = [row for row in own if (row.network, row.point) in met]
    return lines_svg(f"frontier-{kind}", _by(own, kind), FAULT_NAMES[kind], rows[0].images)


def _by(rows: Rows, across: str, group: Callable[[FrontierRow], str] = label) -> dict[str, list[tuple[float, float]]]:
    """Points (value, accuracy) of each network and group."""
    several = len({row.network for row in rows}) > 1
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = (f"{row.network}, " if several else "") + group(row)
        lines.setdefault(name, []).append((getattr(row, across), row.accuracy))
    return lines


def _scatter(
    name: str,
    rows: Rows,
    here: FrontierRow | None,
    cost: Cost,
    title: str,
    wording: Callable[[float], str],
    dense: dict[str, float | None],
) -> str | None:
    """Points of networks: filled if trained, open if calibrated; those with a target alone are joined by a line."""
    found = [(x, row) for row in of_networks(rows) if (x := cost(row))]
    if len(found) + (here is not None) < 2:
        return None
    networks = list(dict.fromkeys(row.network for row in rows))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.margins(0.12, 0.08)
        for place, network in enumerate(networks):
            own = [(x, row) for x, row in found if row.network == network]
            _points(axes, own, *LINES[place % len(LINES)], network, dense.get(network))
        accuracies = [row.accuracy for _, row in found]
        if here is not None and (x := cost(here)):
            axes.plot([x], [here.accuracy], "*", color=INK, markersize=14, zorder=6, label="this network", linewidth=0)
            accuracies.append(here.accuracy)
        accuracy_axis(axes, accuracies, rows[0].images)
        value_axis(axes, [*(x for x, _ in found), *filter(None, dense.values())], wording)
        axes.set_xlabel(title)
        _label_points(axes, found)
        if len(networks) > 1 or here is not None:
            legend_below(figure, axes, columns=2)

    return page_svg(name, 4.4, draw)


def _points(
    axes: Axes, own: list[tuple[float, FrontierRow]], colour: str, marker: str, network: str, dense: float | None
) -> None:
    """The points of one network, and where its dense ANN is."""
    for kind in sorted({row.target for _, row in own if row.target is not None}):
        joined = sorted((x, row.accuracy) for x, row in own if _is_joined(row, kind))
        axes.plot(*zip(*joined, strict=True), color=colour, linewidth=1.2, alpha=0.6)
    for x, row in own:
        axes.plot([x, x], interval(row.accuracy, row.images), color=colour, linewidth=1, alpha=0.35)
        size, fill = 9 if row.point == FREE else 6, colour if row.trained else PAPER
        axes.plot([x], [row.accuracy], marker, color=colour, markersize=size, markerfacecolor=fill)
    axes.plot([], [], marker, color=colour, label=network)
    if dense is not None:
        axes.axvline(dense, color=colour, linestyle="--", linewidth=1.2)


def _label_points(axes: Axes, points: Sequence[tuple[float, FrontierRow]]) -> None:
    """Say what trained points are, the network as given first; not where another label is. The table names them all."""
    labelled: list[tuple[float, float]] = []
    for x, row in sorted(points, key=lambda point: (point[1].point != FREE, point[1].synaptic_operations or 0)):
        across, up = axes.transData.transform((x, row.accuracy))
        if row.trained and all(abs(across - a) > 75 or abs(up - b) > 13 for a, b in labelled):
            labelled.append((across, up))
            axes.annotate(short_label(row), (x, row.accuracy), (6, -3), textcoords="offset points", fontsize=9)


def _is_joined(row: FrontierRow, kind: str) -> bool:
    """Whether a row is on the line of what training for one kind of target gives: such points alone, and the start."""
    return row.point == FREE or (len(_wanted(row)) == 1 and row.target == kind)
