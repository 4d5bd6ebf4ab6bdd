"""The picture of a sweep: accuracy against time steps, and against energy if it was priced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ttfs_triton.report.style import INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ttfs_triton.hardware.simulation.sweep import Sweep, SweepRow

# Okabe-Ito colours; markers tell the lines apart as well.
LINES = (
    ("#0072B2", "o"),
    ("#C24E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#7A7A7A", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
)


def draw_sweep(sweep: Sweep, path: Path | str) -> Path:
    """Write the picture; a line for each number of weight bits.

    Args:
        sweep: with accuracies.
        path: of the file; its suffix (.svg, .png, .pdf) is its format.
    Raises:
        ValueError: a sweep over samples without labels.
        RuntimeError: matplotlib is not installed.
    """
    if any(row.accuracy is None for row in sweep.rows):
        raise ValueError("draw_sweep: sweep must have accuracies; got none. Give labels with the batches.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator
    except ImportError as error:
        raise RuntimeError(
            'draw_sweep: matplotlib must be installed; got none. Run pip install "ttfs-triton[plot]".'
        ) from error
    path = Path(path)
    priced = all(row.energy_pj is not None for row in sweep.rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10 if priced else 5.5, 4.2), layout="constrained")
        axes = figure.subplots(1, 1 + priced, sharey=True, squeeze=False)[0]
        _draw_lines(axes[0], sweep, lambda row: row.steps)
        steps = sorted({row.steps for row in sweep.rows})
        axes[0].set_xscale("log", base=2)
        axes[0].set_xticks(steps, [str(number) for number in steps], minor=False)
        axes[0].set(xlabel="time steps of a window", ylabel="accuracy")
        axes[0].set_title("Accuracy against time steps")
        if priced:
            plain = FuncFormatter(lambda value, _: f"{value:g}")
            _draw_lines(axes[1], sweep, lambda row: (row.energy_pj or 0.0) / 1e6)
            axes[1].set_xscale("log")
            axes[1].xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes[1].xaxis.set_major_formatter(plain)
            axes[1].xaxis.set_minor_formatter(plain)
            axes[1].set(xlabel="energy of a sample, µJ")
            axes[1].set_title("Accuracy against energy")
        lines, labels = axes[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside right upper", frameon=False, title="weight bits", alignment="left")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _draw_lines(axes: Axes, sweep: Sweep, position: Callable[[SweepRow], float]) -> None:
    from matplotlib.ticker import PercentFormatter

    from ttfs_triton.hardware.simulation.sweep import bits_label

    for place, bits in enumerate(dict.fromkeys(row.weight_bits for row in sweep.rows)):
        rows = sorted((row for row in sweep.rows if row.weight_bits == bits), key=lambda row: row.steps)
        colour, marker = LINES[place % len(LINES)]
        accuracies = [row.accuracy or 0.0 for row in rows]
        axes.plot([position(row) for row in rows], accuracies, color=colour, marker=marker, label=bits_label(bits))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color=INK, linewidth=0.5, alpha=0.15)
