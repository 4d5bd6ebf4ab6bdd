"""Figures of a sweep's page: accuracy against each cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ttfs_triton.commands.sweep import FAULTS
from ttfs_triton.evaluate.figures import DEADLINE_AXIS, lines_svg
from ttfs_triton.evaluate.plots import LINES, PAPER, accuracy_axis, legend_below, page_svg, value_axis
from ttfs_triton.sweep.table import FREE, FrontierRow
from ttfs_triton.wording import energy, interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[FrontierRow]

FAULT_NAMES = {
    "spike_jitter": "spike jitter, windows",
    "weight_noise": "weight noise, share of the magnitude",
    "dead_neurons": "dead neurons, share",
    "stuck_neurons": "stuck neurons, share",
    "lost_spikes": "lost spikes, share",
}
# Words for the keys that a point is trained or calibrated for.
WORDS = {
    "target_sparsity": "activity {}",
    "target_operations": "operations {}",
    "target_energy": "{}",
    "time_steps": "{} steps",
    "weight_bits": "{} bits",
    "state_bits": "{}-bit states",
    "spike_jitter": "jitter {}",
    "weight_noise": "noise {}",
    "dead_neurons": "dead {}",
    "stuck_neurons": "stuck {}",
    "lost_spikes": "lost {}",
}
MARKS = (
    "Large marker: the network as given. A line joins points trained for one target; the cheapest is labelled. Filled: "
    "trained; open: calibrated, without training. Thin lines: 95 % confidence interval of the accuracy."
)
DENSE = f"{MARKS} Dashed: the dense ANN at the same precision."
GRID = "Solid: trained on the grid; dashed: calibrated."
DEADLINE = "At the deadline every image is decided: by its earliest output spike, or by potentials if it has none yet."

Section = tuple[str, str, list[tuple[str, str, str]]]
"""Section of a page: HTML identifier, title, and figures, each as (SVG, what it shows, how to read it)."""


def sections(rows: Rows) -> list[Section]:
    """Sections of the page that have at least one figure."""
    found: list[Section] = []

    def add(name: str, title: str, *figures: tuple[str | None, str, str]) -> None:
        own = [(svg, f"Accuracy against {what}.", how) for svg, what, how in figures if svg is not None]
        if own:
            found.append((name, title, [(svg, what, f"{what} {how}") for svg, what, how in own]))

    cost, title = (lambda row: row.synaptic_operations), "synaptic operations of an image"
    operations = _scatter("frontier-operations", rows, cost, title, number, {})
    add("operations", "Synaptic operations", (operations, "synaptic operations", MARKS))
    if (chip := memory_chip(rows)) is not None:
        with_memory = _energy_svg(rows, chip, "with_memory", "memory included")
        arithmetic = _energy_svg(rows, chip, "arithmetic", "arithmetic alone")
        both = (with_memory, "energy with memory", DENSE), (arithmetic, "energy of arithmetic alone", DENSE)
        add("energy", f"Energy on {chip}", *both)
    steps, bits = (_grid_svg(rows, key) for key in ("time_steps", "weight_bits"))
    add("grid", "Time steps and weight bits", (steps, "time steps", GRID), (bits, "weight bits", GRID))
    add("faults", "Faults", *((_fault_svg(rows, key), FAULT_NAMES[key], "Simulated, on one chip.") for key in FAULTS))
    lines = _by([row for row in rows if row.kind == "deadline"], "deadline")
    deadline = lines_svg("frontier-deadline", lines, DEADLINE_AXIS, rows[0].images)
    add("deadline", "Deadline", (deadline, "the deadline", DEADLINE))
    return found


def label(row: FrontierRow) -> str:
    """A point in a few words, such as "activity 0.15", "target activity 0.1, reached 0.27" or "4 bits, calibrated"."""
    if row.point == FREE:
        return "as given"
    words = [WORDS[key].format(value) for key, value in _wanted(row).items()]
    if row.reached is False:  # targets come first
        words[:1] = [f"target {words[0]}", f"reached {row.cost:.2g}"]
    return ", ".join([*words, *([] if row.trained else ["calibrated"])])


def _wanted(row: FrontierRow) -> dict[str, str]:
    """Targets, grid and faults of a point by key, without keys such as epochs and lr."""
    given = dict(part.split("=", 1) for part in row.point.split("+") if "=" in part)
    return {key: value for key, value in given.items() if key in WORDS}


def of_networks(rows: Rows) -> list[FrontierRow]:
    """Rows of kind "network": one for each point, without simulations of faults and deadlines."""
    return [row for row in rows if row.kind == "network"]


def memory_chip(rows: Rows) -> str | None:
    """Name of the first chip that prices memory; None if none does."""
    return next((each.chip for row in rows for each in row.energy if each.with_memory is not None), None)


def _energy_svg(rows: Rows, chip: str, measure: str, words: str) -> str | None:
    dense = {row.network: row.picojoules(chip, f"dense_{measure}") for row in reversed(of_networks(rows))}
    cost = lambda row: row.picojoules(chip, measure)  # noqa: E731
    return _scatter(f"frontier-{measure}", rows, cost, f"energy of an image, {words}", energy, dense)


def _grid_svg(rows: Rows, across: str) -> str | None:
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


def _fault_svg(rows: Rows, kind: str) -> str | None:
    """Accuracy against one kind of fault, a line for each trained network; None with fewer than two points."""
    others = [name for name in FAULTS if name != kind]
    own = [row for row in rows if row.kind == "faults" and not any(getattr(row, name) for name in others)]
    met = {(row.network, row.point) for row in own if getattr(row, kind)}
    own = [row for row in own if (row.network, row.point) in met]
    return lines_svg(f"frontier-{kind}", _by(own, kind), FAULT_NAMES[kind], rows[0].images)


def _by(rows: Rows, across: str, group: Callable[[FrontierRow], str] = label) -> dict[str, list[tuple[float, float]]]:
    """Points (value of `across`, accuracy) by name of the network and its group."""
    several = len({row.network for row in rows}) > 1
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = (f"{row.network}, " if several else "") + group(row)
        lines.setdefault(name, []).append((getattr(row, across), row.accuracy))
    return lines


def _scatter(
    name: str,
    rows: Rows,
    cost: Callable[[FrontierRow], float | None],
    title: str,
    wording: Callable[[float], str],
    dense: dict[str, float | None],
) -> str | None:
    """Scatter plot of accuracy against a cost, with a line at each dense ANN's cost; None with fewer than two points.

    Markers are filled for trained points, open for calibrated ones. A line joins the points that were trained for one
    target alone; its cheapest point is labelled.
    """
    found = [(x, row) for row in of_networks(rows) if (x := cost(row))]
    if len(found) < 2:
        return None
    networks = list(dict.fromkeys(row.network for row in rows))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.margins(0.12, 0.08)
        for (colour, marker), network in zip(LINES * len(networks), networks, strict=False):
            own = sorted(((x, row) for x, row in found if row.network == network), key=lambda point: point[0])
            for kind in sorted({row.target for _, row in own if row.target is not None}):
                alone = [(x, row) for x, row in own if len(_wanted(row)) == 1 and row.target == kind]
                joined = [(x, row.accuracy) for x, row in own if row.point == FREE or (x, row) in alone]
                axes.plot(*zip(*joined, strict=True), color=colour, linewidth=1.2, alpha=0.6)
                for x, row in alone[:1]:
                    axes.annotate(label(row), (x, row.accuracy), (0, -14), textcoords="offset points", fontsize=9)
            for x, row in own:
                axes.plot([x, x], interval(row.accuracy, row.images), color=colour, linewidth=1, alpha=0.35)
                size, fill = 9 if row.point == FREE else 6, colour if row.trained else PAPER
                axes.plot([x], [row.accuracy], marker, color=colour, markersize=size, markerfacecolor=fill)
            axes.plot([], [], marker, color=colour, label=network)
            if (value := dense.get(network)) is not None:
                axes.axvline(value, color=colour, linestyle="--", linewidth=1.2)
        accuracy_axis(axes, [row.accuracy for _, row in found], rows[0].images)
        value_axis(axes, [*(x for x, _ in found), *filter(None, dense.values())], wording)
        axes.set_xlabel(title)
        if len(networks) > 1:
            legend_below(figure, axes, columns=2)

    return page_svg(name, 4.4, draw)
