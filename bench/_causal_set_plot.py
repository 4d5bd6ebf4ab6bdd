"""The picture of `causal_set.py`: time against fan-in, and silent neurons layer by layer."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from _silence import DYNAMIC, FIXED, FIXED_FREE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from ttfs_triton.report.plots import INK, STYLE

# Okabe-Ito colours; markers tell the lines apart as well.
OURS, FIRST, SECOND = ("#0072B2", "o"), ("#C24E00", "s"), ("#7A7A7A", "^")
TIMES = {"closed form": OURS, "causal set": FIRST, "causal set, chunked": SECOND}
SILENCE = {DYNAMIC: OURS, FIXED: FIRST, FIXED_FREE: SECOND}


def draw(path: Path, rows: list[dict[str, Any]], silence: list[dict[str, Any]]) -> Path:
    """Write the picture as SVG, from the rows of both tables."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 9), layout="constrained")
        upper, lower = figure.subplots(2, 1)
        draw_times(upper, [row for row in rows if row["pass"] == "forward_backward"])
        draw_silence(lower, silence)
        about = rows[0]
        note = f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc']} UTC"
        figure.supxlabel(note, fontsize=8, color=INK, alpha=0.8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def draw_times(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """One line for each contender, with its ratios to the closed form at the smallest and the largest fan-in."""
    fan_ins = sorted({row["fan_in"] for row in rows})
    for name, (colour, marker) in TIMES.items():
        own = sorted((row for row in rows if row["provider"] == name), key=lambda row: row["fan_in"])
        ratio = (
            ""
            if name == "closed form"
            else f": × {own[0]['ratio_to_closed_form']:.3g} to {own[-1]['ratio_to_closed_form']:.3g}"
        )
        axes.plot(fan_ins, [row["ms_p50"] for row in own], color=colour, marker=marker, label=name + ratio)
    axes.legend(loc="upper left", frameon=False)  # times grow with the fan-in: nothing is there
    axes.set(xscale="log", yscale="log", xlabel="fan-in", ylabel="forward + backward, ms")
    axes.set_xticks(fan_ins, [str(fan_in) for fan_in in fan_ins])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:,g}"))
    axes.grid(axis="y", color=INK, linewidth=0.5, alpha=0.15)
    batch, outputs = rows[0]["case"].split("-")
    axes.set_title(f"Time of a layer: {outputs[1:]} neurons, batch {batch[1:]}")


def draw_silence(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """One line for each rule and gain; the legend says when the last layer fires."""
    depth = max(row["layer"] for row in rows)
    layers = range(1, depth + 1)
    gains = sorted({row["gain"] for row in rows})
    for rule, (colour, marker) in SILENCE.items():
        for gain in gains:
            shares = [row["silent_share"] for row in rows if (row["rule"], row["gain"]) == (rule, gain)]
            axes.plot(layers, shares, color=colour, marker=marker)
            if rule == FIXED:
                axes.annotate(
                    f"gain {gain:g}",
                    (1, shares[0]),
                    (-8, 0),
                    textcoords="offset points",
                    color=colour,
                    fontsize=9,
                    ha="right",
                    va="center",
                )
        last = {row["gain"]: row["spike_time"] for row in rows if (row["rule"], row["layer"]) == (rule, depth)}
        times = " / ".join("none" if last[gain] == "" else f"{last[gain]:.1f}" for gain in gains)
        axes.plot([], [], color=colour, marker=marker, label=f"{rule} ({times})")
    title = (
        f"firing threshold (median spike of layer {depth}\nin $T_w$, gain {' / '.join(f'{gain:g}' for gain in gains)})"
    )
    axes.legend(loc="lower left", frameon=False, fontsize=9, title=title, title_fontsize=9, alignment="left")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(
        xlim=(1 - 0.16 * depth, depth + 0.3), ylim=(0, 1.04), xlabel="layer", ylabel="silent neurons", xticks=layers
    )
    axes.grid(axis="y", color=INK, linewidth=0.5, alpha=0.15)
    axes.set_title("Silent neurons: same random weights, nothing trained")
