"""Draw the picture of event data: `python docs/figures/events.py` writes events.png.

A bundled image, moved as N-MNIST's were: the events of one row of pixels over time, the first of a pixel and window
in bold, and the activations that all pixels get, by polarity and window.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tests.data.synthetic_events import FRAME_US, SACCADE_US, events_of, saccades
from ttfs_triton.data.events import EventWindows, first_spikes
from ttfs_triton.data.images import load_images

LABEL, ROW = 9, 20  # an ankle boot; through its sole
POLARITIES = ((1, "brighter", "#C24E00"), (0, "darker", "#0072B2"))
INK = "#222222"
STYLE: dict[Any, Any] = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "figure.facecolor": "white"}


def draw_events(axes: Axes, events: dict[str, np.ndarray], spikes: np.ndarray) -> None:
    """Events of one row of pixels, column over time; those that become spikes are larger."""
    for polarity, name, colour in POLARITIES:
        some = (events["p"] == polarity) & (events["y"] == ROW)
        axes.scatter(events["t"][some] / 1000, events["x"][some], s=2, color=colour, alpha=0.5, linewidths=0)
        window, column = spikes[polarity::2, ROW].nonzero()
        first = (window + 1 - spikes[polarity::2, ROW][window, column]) * SACCADE_US / 1000
        axes.scatter(first, column, s=16, color=colour, linewidths=0, label=name)
    for border in range(1, 3):
        axes.axvline(border * SACCADE_US / 1000, color=INK, linewidth=1)
    axes.set(xlabel="time [ms]", ylabel=f"column, of row {ROW}", xlim=(0, 3 * SACCADE_US / 1000), ylim=(-1, 34))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=2, frameon=False)


def main() -> None:
    """Write the picture beside this script."""
    data = load_images("sample", split="test")
    image = data.images[int((data.labels == LABEL).nonzero()[0]), 0].numpy() / 255
    events = events_of(saccades(image), FRAME_US, np.random.default_rng(0))
    spikes = first_spikes(events, (34, 34), EventWindows(3, SACCADE_US), start=0)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplot_mosaic(
            [["events"] * 3, ["1", "3", "5"], ["0", "2", "4"]],
            figsize=(6.4, 6.6),
            height_ratios=[1.2, 1, 1],
            layout="constrained",
        )
        draw_events(axes["events"], events, spikes)
        for polarity, name, _ in POLARITIES:
            for window in range(3):
                plane = axes[str(2 * window + polarity)]
                plane.imshow(spikes[2 * window + polarity], cmap="viridis", vmin=0, vmax=1)
                plane.set(xticks=[], yticks=[], title=f"channel {2 * window + polarity}")
                if polarity == 0:
                    plane.set_xlabel(f"window {window}")
            axes[str(polarity)].set_ylabel(name)
        label = "activation: early is 1, silent is 0"
        figure.colorbar(axes["5"].images[0], ax=[axes["5"], axes["4"]], label=label, shrink=0.8)
        figure.savefig(Path(__file__).with_suffix(".png"), dpi=150, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
