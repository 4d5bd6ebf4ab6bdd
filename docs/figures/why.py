"""Draw the README's chart from committed rows: `python docs/figures/why.py` writes why.svg.

Left: held-out accuracy of `cifarnet` against minutes of training, ours, PyTorch's ANN and two libraries, from
bench/results/time_to_accuracy-cpu.csv and time_to_accuracy-cpu-libraries.csv. Middle: milliseconds of a training step
of VGG16 against time steps, ours, SpikingJelly and snnTorch, from bench/results/peers-cpu.csv. Right: accuracy on
CIFAR-10 against activity, ours from bench/results/runs.csv, the paper's from its Table 1 (Wei et al., ICCV 2023).
"""

import csv
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[2] / "bench" / "results"
BLUE, ORANGE, GREEN, INK = "#0072B2", "#C24E00", "#007A5E", "#222222"
STYLE: dict[Any, Any] = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "figure.facecolor": "white"}
STYLE |= {"svg.hashsalt": "why", "axes.spines.top": False, "axes.spines.right": False}
CONTENDERS = {"ours, σ = 0": (BLUE, "o"), "ours, σ = 1": ("#56B4E9", "s"), "ANN, PyTorch": ("#7A7A7A", "D")}
CONTENDERS |= {"SpikingJelly, T = 4": (GREEN, "^"), "snnTorch, T = 4": (ORANGE, "v")}
LIBRARIES = (("snnTorch", ORANGE, "s"), ("SpikingJelly", GREEN, "D"))
SIGMAS = {0.0: (BLUE, "o"), 0.25: ("#7B4FA3", "^"), 1.0: ("#56B4E9", "s")}
PAPER = {"the paper's VGG11": (0.4387, 91.17), "the paper's VGG16": (0.2561, 93.05)}  # activity, accuracy
NAMES = {"cifarnet": "cifarnet", "vgg11": "VGG11", "vgg16": "VGG16"}


def read(name: str) -> list[dict[str, str]]:
    """Rows of a file of results."""
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


# Labels that would cover others on the right of their points: alignment, and distance from the point in points.
PLACES = {("cifarnet × 2", 0.0): ("right", (-6, -7)), ("cifarnet, wide", 0.0): ("right", (-5, 0))}
PLACES |= {("cifarnet", 0.0): ("center", (2, 6)), ("cifarnet", 0.25): ("center", (2, 6))}
PLACES |= {("cifarnet", 1.0): ("right", (-5, -3)), ("VGG11", 0.25): ("center", (0, 6))}
PLACES |= {("cifarnet × 2", 1.0): ("left", (6, -7)), ("cifarnet, wide", 1.0): ("center", (0, 6))}
PLACES |= {("the paper's VGG11", 1.0): ("center", (0, -13)), ("the paper's VGG16", 1.0): ("center", (12, -21))}


def draw_minutes(axes: Axes) -> None:
    """Draw the accuracy of one network, trained with spikes and without, against minutes."""
    rows = read("time_to_accuracy-cpu.csv") + read("time_to_accuracy-cpu-libraries.csv")
    for name, (colour, marker) in CONTENDERS.items():
        curve = [row for row in rows if row["contender"] == name]
        minutes, accuracy = (
            [scale * float(row[key]) for row in curve] for key, scale in (("minutes", 1), ("val_accuracy", 100))
        )
        axes.plot(
            minutes,
            accuracy,
            color=colour,
            marker=marker,
            markersize=4,
            label=name.replace("ANN, PyTorch", "ANN, plain PyTorch"),
        )
    axes.set(xlabel="minutes of training, one CPU core", ylabel="held-out images, %", xscale="log", ylim=(46, 95))
    axes.set_xticks((2, 5, 10, 20, 40, 80), labels=("2", "5", "10", "20", "40", "80"), minor=False)
    axes.legend(frameon=False, loc="lower left", fontsize=7.5, borderpad=0, labelspacing=0.2)
    axes.set_title("CIFAR-10, cifarnet", fontsize=10)


def draw_steps(axes: Axes) -> None:
    """Draw the time of a training step, which grows with the time steps of libraries that have them."""
    rows = read("peers-cpu.csv")
    for name, colour, marker in LIBRARIES:
        line = [row for row in rows if row["provider"] == name]
        steps, ms = [int(row["time_steps"]) for row in line], [float(row["ms_p50"]) for row in line]
        axes.plot(steps, ms, color=colour, marker=marker, label=name)
        axes.annotate(name, (steps[-1], ms[-1]), xytext=(-8, 2), textcoords="offset points", ha="right", color=colour)
    (ours,) = (float(row["ms_p50"]) for row in rows if row["provider"] == "DFT σ=1")
    axes.axhline(ours, color=BLUE, linewidth=2)
    axes.annotate("ours, no time axis", (16, ours), xytext=(0, 5), textcoords="offset points", ha="right", color=BLUE)
    axes.set(xlabel="time steps T", ylabel="ms a training step", xlim=(2, 17), ylim=(0, None), xticks=(4, 8, 16))
    axes.set_title("VGG16, batch 8, two CPU cores", fontsize=10)


def draw_accuracy(axes: Axes) -> None:
    """Draw the most accurate run of every network and σ, and the paper's networks."""
    best: dict[tuple[str, float], tuple[float, float]] = {}
    for row in read("runs.csv"):
        width = float(row["width"])
        if row["dataset"] == "uoft-cs/cifar10" and row["model"] in NAMES and row["sigma"] and width >= 1:
            name = NAMES[row["model"]] + (f" × {width:g}" if width != 1 else "")
            name += ", wide" if "channels: [128, 384, 384]" in row["settings"] else ""
            point = 100 * float(row["test_accuracy"]), float(row["activity"])
            key = name, float(row["sigma"])
            best[key] = max(best.get(key, point), point)
    points = [(name, sigma, *point, *SIGMAS[sigma]) for (name, sigma), point in best.items()]
    points += [(name, 1.0, accuracy, activity, INK, "x") for name, (activity, accuracy) in PAPER.items()]
    for name, sigma, accuracy, activity, colour, marker in points:
        axes.plot(activity, accuracy, marker, color=colour)
        align, place = PLACES.get((name, sigma), ("left", (6, -3)))
        where: dict[str, Any] = {"xytext": place, "textcoords": "offset points", "ha": align}
        axes.annotate(name, (activity, accuracy), **where, color=INK, fontsize=9)
    for sigma, (colour, marker) in SIGMAS.items():
        axes.plot([], [], marker, color=colour, label=f"ours, σ = {sigma:g}")
    axes.plot([], [], "x", color=INK, label="the paper, σ = 1")
    axes.legend(frameon=False, loc="lower right", fontsize=8.5, borderpad=0, labelspacing=0.3)
    axes.set(xlabel="activity: share of neurons that fire", ylabel="accuracy, %", xlim=(0, 0.55), ylim=(88, 95))
    axes.set_title("CIFAR-10, one view an image", fontsize=10)


def main() -> None:
    """Write the chart beside this script."""
    with mpl.rc_context(STYLE):
        widths = {"width_ratios": (1, 1, 1.5)}
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained", gridspec_kw=widths)
        draw_minutes(left)
        draw_steps(middle)
        draw_accuracy(right)
        path = Path(__file__).with_suffix(".svg")
        figure.savefig(path, metadata={"Date": None})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
