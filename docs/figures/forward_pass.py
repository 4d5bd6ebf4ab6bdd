"""Draw the README's picture of a forward pass: `python docs/figures/forward_pass.py` writes forward_pass.svg.

Four inputs, three layers of three neurons, random weights. Activations come from `dft_linear`; the potentials between
them are drawn from the same weights, so a line meets its firing threshold where the closed form says so.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from ttfs_kernels import dft_linear

SEED = 423403  # chosen so that every outcome appears and no line hides another
INPUTS = (0.9, 0.66, 0.42, 0.2)
LAYERS = 3
NEURONS = 3

# Okabe-Ito colours; marker and line style tell the outcomes apart as well.
AT_ONCE, INSIDE, SILENT = "#C24E00", "#0072B2", "#7A7A7A"
INK, WINDOW = "#222222", "#FFF0C9"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "forward_pass",
    "figure.facecolor": "white",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def membrane_potential(time: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Membrane potential of one neuron while its inputs spike and after (Wei et al., ICCV 2023, Eq. 2, 3).

    Args:
        time: [T], in windows since the start of the inputs' window.
        x: [C], activations of the inputs.
        weight: [C], in threshold heights.
    Returns:
        [T], in threshold heights.
    """
    since_spike = (time[:, None] - (1 - x)).clamp_min(0) * (x > 0)
    return since_spike @ weight


def draw_inputs(axes: Axes, activations: Tensor) -> list[tuple[float, float]]:
    """Draw the spikes of the inputs, one row an input, and return their times and heights."""
    spikes = [(1 - activation, float(row)) for row, activation in enumerate(activations.tolist())]
    for time, row in spikes:
        axes.hlines(row, 0, 1, color=INK, linewidth=0.5, alpha=0.3)
        axes.plot(time, row, marker="o", color=INSIDE, markersize=7, markeredgecolor="white", zorder=5)
    axes.set(ylim=(len(spikes) - 0.4, -0.6), yticks=[])
    return spikes


def draw_layer(axes: Axes, layer: int, x: Tensor, weight: Tensor, activations: Tensor) -> list[tuple[float, float]]:
    """Draw a layer's potentials from its inputs' window to its spikes, and return the spikes' times and heights."""
    axes.axhline(0, color=INK, linewidth=0.5, alpha=0.3)
    axes.plot([layer, layer + 1], [1, 0], color=INK, linewidth=2.6, solid_capstyle="butt", zorder=3)
    spikes = []
    for activation, row in zip(activations.tolist(), weight, strict=True):
        spike_time = layer + 1 - activation
        start = layer - 1
        kinks = start + 1 - x
        time = torch.cat([torch.tensor([start, spike_time]), kinks[kinks < spike_time]]).sort().values
        height = membrane_potential(time - start, x, row)
        colour = AT_ONCE if activation == 1 else INSIDE if activation > 0 else SILENT
        axes.plot(time, height, color=colour, linewidth=1.8, linestyle="-" if activation > 0 else (0, (4, 2)), zorder=4)
        if activation > 0:
            marker = "D" if activation == 1 else "o"
            axes.plot(
                spike_time, height[-1], marker=marker, color=colour, markersize=7, markeredgecolor="white", zorder=5
            )
            spikes.append((spike_time, height[-1].item()))
    axes.set(ylim=(-0.62, 1.5), yticks=[0, 1])
    return spikes


def connect(upper: Axes, lower: Axes, spikes: list[tuple[float, float]]) -> None:
    """Draw a thin line from every spike to the moment at which the next layer receives it."""
    for time, height in spikes:
        line = ConnectionPatch((time, height), (time, lower.get_ylim()[0]), "data", "data", axesA=upper, axesB=lower)
        line.set(color=INK, linewidth=0.7, linestyle=(0, (1, 2.2)), alpha=0.75, zorder=1)
        upper.figure.add_artist(line)


def annotate(rows: list[Axes], activation: float) -> None:
    """Label the picture; `activation` is that of the first neuron of layer 2."""
    for window, axes in enumerate(rows):
        axes.axvspan(window, window + 1, color=WINDOW, linewidth=0, zorder=0)
        name = f"Layer {window}" if window else "Input"
        rows[0].text(
            window + 0.5, 1.04, f"window {window}", transform=rows[0].get_xaxis_transform(), ha="center", va="bottom"
        )
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontweight="bold", labelpad=6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not rows[-1]:
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(bottom=False)
    rows[0].text(1.06, 1.5, "each input spikes once:\nthe larger its value, the earlier", va="center")
    first, second, third = rows[1:]
    first.text(1.05, 1.3, "fires at once", color=AT_ONCE, va="center")
    first.text(1.56, 0.55, "fires inside", color=INSIDE, va="bottom")
    first.text(2.04, -0.16, "stays silent", color=SILENT, va="center")
    first.annotate(
        "firing threshold: falls\nfrom 1 to 0 in the window",
        (1.26, 0.75),
        (2.06, 1.05),
        va="center",
        arrowprops={"arrowstyle": "-", "linewidth": 0.8, "color": INK, "relpos": (0, 0.5)},
    )
    second.text(0.96, 0.2, "membrane\npotential", ha="right", va="center")
    second.text(3.02 - activation, 0.5, "spike time", color=INSIDE, va="bottom")
    second.annotate(
        "",
        (3 - activation, -0.3),
        (3, -0.3),
        arrowprops={"arrowstyle": "<->", "color": INSIDE, "shrinkA": 0, "shrinkB": 0},
    )
    second.text(3.06, 1.08, f"activation {activation:.2f}\n= window's end\n− spike time", color=INSIDE, va="center")
    third.text(
        1.94,
        0.5,
        "when a layer may fire, all its\ninputs have arrived: each\ncrossing is one closed formula",
        ha="right",
        va="center",
    )


def main() -> None:
    """Compute the network, draw it and write forward_pass.svg beside this file."""
    figure, axes = plt.subplots(
        LAYERS + 1, sharex=True, figsize=(6, 6.4), height_ratios=[0.55, 1, 1, 1], layout="constrained"
    )
    generator = torch.Generator().manual_seed(SEED)
    layers = [torch.tensor(INPUTS)]
    spikes = draw_inputs(axes[0], layers[0])
    for layer in range(1, LAYERS + 1):
        x = layers[-1]
        weight = 0.9 * torch.randn(NEURONS, len(x), generator=generator)
        layers.append(dft_linear(x[None], weight)[0])
        arriving = spikes
        spikes = draw_layer(axes[layer], layer, x, weight, layers[-1])
        connect(axes[layer - 1], axes[layer], arriving)
    annotate(list(axes), layers[2][0].item())
    axes[-1].set_xlim(0, LAYERS + 1)
    axes[-1].set_xticks(range(LAYERS + 2), ["0", "$T_w$", *(f"${i}\\,T_w$" for i in range(2, LAYERS + 2))])
    axes[-1].set_xlabel("time")
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    with mpl.rc_context(STYLE):
        main()
