"""Time our training step against what a user would pick instead: SpikingJelly, snnTorch and a plain ANN.

    pip install -e '.[peers]'
    python bench/peers.py --device cpu
    python bench/peers.py --device cuda --batch-size 128 --dtype bfloat16 --repeats 20

One VGG16 for 32×32 images and ten classes, the same layer sizes, weights (up to a factor), batch and data type for all;
a step is forward, loss and backward, without optimizer. Compared are time, and memory held by tensors, as they grow
with the number of time steps T. Accuracy is not compared: the neurons differ. Ours (σ = 1, the paper's, and σ = 0) and
the ANN (clamped ReLU) have no time axis; the others fire up to T times, and users choose T for accuracy.

The others get what favours them:

- SpikingJelly runs in multi-step mode with the fastest kernel it has for the device, snnTorch as a loop over time, as
  its users write it; all run eagerly.
- Direct coding: the image is repeated T times. The first convolution has no state and is computed once, which only some
  of their users do. They get normalised images; ours normalises in the step.
- Both run channels last or not, whichever is faster in a trial at the fewest time steps; ours always channels last.
- No biases, no batch norm, no records of spikes or potentials.

What they are: `_peers.py`. A library that is not installed is left out. Ours is first checked against its twin, as in
train_step.py. All take turns, round by round; ratios of times are medians over the rounds' own ratios. The files' floor
is the number of contractions against the ANN's three per layer.
"""

import dataclasses
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro
from _contenders import ANN, Contender, build
from _measure import DisagreementError, Step, check, peak_mib
from _peers import LIBRARIES, Layout, Library, Simulation, Unrolled
from _record import ROOT, environment, write
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from train_step import digits, ratio

OURS = "DFT σ=1"
WITHOUT_TIME = (OURS, "DFT σ=0", ANN)
WARM_UP = 1
TRIALS = 3
# Okabe-Ito colours; line style or marker tells the lines apart as well.
INK, GREY = "#222222", "#7A7A7A"
LINES = {
    OURS: {"color": INK, "linestyle": "-"},
    "DFT σ=0": {"color": INK, "linestyle": "--"},
    ANN: {"color": GREY, "linestyle": ":"},
}
CURVES = {
    "SpikingJelly": {"color": "#0072B2", "marker": "o", "linewidth": 2},
    "snnTorch": {"color": "#C24E00", "marker": "s", "linewidth": 2},
}
LABELS: dict[str, dict[str, Any]] = {
    "SpikingJelly": {"xytext": (7, 0), "va": "top"},
    "snnTorch": {"xytext": (-7, 4), "ha": "right"},
}
STYLE: dict[Any, Any] = {"svg.hashsalt": "peers", "font.size": 10, "text.color": INK, "axes.labelcolor": INK}


@dataclasses.dataclass
class Options:
    """Time a training step of VGG16 in several libraries: forward, loss, backward."""

    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast with float32 parameters."""
    steps: tuple[int, ...] = (4, 8, 16)
    """Numbers of time steps T, for the libraries that have them."""
    width: float = 1.0
    """Factor on the size of every hidden layer."""
    repeats: int = 9
    """Rounds that count."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's choice. Beside other programs take fewer: a thread that waits delays all."""
    seed: int = 0
    output: Path = ROOT / "bench" / "results"
    """Folder of the CSV and SVG files."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    device = torch.device(options.device)
    refuse(options, device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    left_out = {library.title: line for library in LIBRARIES if (line := library.missing())}
    for line in left_out.values():
        print(f"peers: {line}")
    try:
        steps = make_steps(options, device, [library for library in LIBRARIES if library.title not in left_out])
    except DisagreementError as error:
        sys.exit(f"peers: {error}")
    peaks = measure(steps, options.repeats)
    about = environment(device)
    rows = make_rows(steps, peaks, options)
    rows = [row | {key: about[key] for key in ("device", "threads", "torch", "cudnn", "commit", "utc")} for row in rows]
    show(about, rows)
    about["options"] = {key: value for key, value in dataclasses.asdict(options).items() if key != "output"}
    about["left_out"] = list(left_out)
    write(options.output, f"peers-{options.device}", rows, about)
    plot = options.output / f"peers-{options.device}.svg"
    draw(plot, about, rows)
    print(f"written: {plot}")


def refuse(options: Options, device: torch.device) -> None:
    """Leave with a message if the options cannot be measured here."""
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("peers: --device cuda must have a GPU that PyTorch can use; found none. Use --device cpu.")
    if not options.steps or min(options.steps) < 1 or len(set(options.steps)) < len(options.steps):
        sys.exit(f"peers: --steps must be different positive numbers; got {options.steps}. Try --steps 4 8 16.")
    for name in ("batch_size", "repeats"):
        if getattr(options, name) < 1:
            sys.exit(f"peers: --{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}.")
    if find_spec("matplotlib") is None:
        sys.exit("peers: the plot must have matplotlib; found none. Run: pip install -e '.[plot]'")


def make_steps(options: Options, device: torch.device, libraries: Sequence[Library]) -> list[Step]:
    """Ours and the ANN, checked, then every library at every number of time steps, on one random batch."""
    torch.manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    images = torch.rand(options.batch_size, 3, 32, 32).to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch_size,)).to(device)
    plain = {"width": options.width, "weight_standardisation": False, "bias": False}
    contenders = {contender.name: contender for contender in build("vgg16", None, statistics=False, **plain)}
    simulations = [library(contenders[ANN].network, device, dtype).to(device) for library in libraries]
    steps = []
    for name in WITHOUT_TIME:
        contender = contenders.pop(name)
        contender.network.to(device)
        check(Step(contender, images, labels, dtype, None))
        alone = dataclasses.replace(contender, twin=None)  # drops the twin
        steps.append(Step(alone, images, labels, dtype, None))
    for simulation in simulations:
        unrolled = [
            Contender(f"{simulation.title} T={time_steps}", Unrolled(simulation, time_steps), float(time_steps))
            for time_steps in sorted(options.steps)
        ]
        simulated = [Step(contender, images, labels, dtype, None) for contender in unrolled]
        simulation.use_layout(faster_layout(simulated[0], simulation))
        steps += simulated
    return steps


def faster_layout(step: Step, simulation: Simulation) -> Layout:
    """The memory format in which a step takes less time, by the best of a few trials."""
    best: dict[Layout, float] = {}
    layouts: tuple[Layout, ...] = ("channels_last", "contiguous")
    for layout in layouts:
        simulation.use_layout(layout)
        for _ in range(1 + TRIALS):
            step.time()
        best[layout] = min(step.forward_backward_ms[-TRIALS:])
    step.forward_backward_ms.clear()
    return min(layouts, key=best.__getitem__)


def measure(steps: list[Step], repeats: int) -> list[float]:
    """Time all steps, by turns; returns their peaks of memory in MiB."""
    peaks = [peak_mib(step) for step in track(steps, "memory", transient=True)]
    for round_ in track(range(WARM_UP + repeats), "rounds", transient=True):
        for step in steps[round_ % len(steps) :] + steps[: round_ % len(steps)]:
            step.time()
    for step in steps:
        del step.forward_backward_ms[:WARM_UP]
    return peaks


def make_rows(steps: list[Step], peaks: list[float], options: Options) -> list[dict[str, Any]]:
    """Times, memory and their ratios; `peaks` in MiB, one a step."""
    times = {step.contender.name: step.forward_backward_ms for step in steps}
    memory = dict(zip(times, peaks, strict=True))
    fewest: dict[str, str] = {}  # of each provider, the row with the fewest time steps: steps are sorted
    rows = []
    for step in steps:
        name, network = step.contender.name, step.contender.network
        provider: dict[str, Any] = {
            "provider": name,
            "version": "",
            "backend": "",
            "time_steps": "",
            "layout": "channels_last",
        }
        if isinstance(network, Unrolled):
            simulation = network.simulation
            provider = {
                "provider": simulation.title,
                "version": version(simulation.distribution),
                "backend": simulation.backend,
                "time_steps": network.time_steps,
                "layout": simulation.layout,
            }
        base = fewest.setdefault(provider["provider"], name)
        low, high = torch.tensor(times[name]).quantile(torch.tensor([0.2, 0.8])).tolist()
        rows.append(
            {"op": "peers", "case": f"vgg16-b{options.batch_size}-w{options.width:g}", "pass": "forward_backward"}
            | provider
            | {
                "dtype": options.dtype,
                "ms_p50": round(median(times[name]), 2),
                "ms_p20": round(low, 2),
                "ms_p80": round(high, 2),
                "time_ratio_to_ours": round(ratio(times, name, OURS), 3),
                "time_ratio_to_fewest_steps": round(ratio(times, name, base), 3),
                "floor_ratio": round(step.contender.floor, 3),
                "peak_mib": round(memory[name], 1),
                "memory_ratio_to_ours": round(memory[name] / memory[OURS], 3),
                "memory_ratio_to_fewest_steps": round(memory[name] / memory[base], 3),
            }
        )
    return rows


def show(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The table, and how the libraries ran."""
    console = Console()
    console.print(
        f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc']} UTC", soft_wrap=True
    )
    table = Table(
        title=f"{rows[0]['case']}, {rows[0]['dtype']}",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for heading in ("", "T", "ms", "p20–p80", "×ours", "growth", "MiB", "×ours", "growth"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        growth = [f"{row[f'{key}_ratio_to_fewest_steps']:.2f}" for key in ("time", "memory")]
        table.add_row(
            row["provider"],
            str(row["time_steps"] or "–"),
            digits(row["ms_p50"]),
            f"{digits(row['ms_p20'])}–{digits(row['ms_p80'])}",
            f"{row['time_ratio_to_ours']:.2f}",
            growth[0] if row["time_steps"] else "–",
            digits(row["peak_mib"]),
            f"{row['memory_ratio_to_ours']:.2f}",
            growth[1] if row["time_steps"] else "–",
        )
    console.print(table)
    console.print(f"×ours: ratio to {OURS}; growth: ratio to the same library at its fewest time steps", soft_wrap=True)
    for line in dict.fromkeys(
        f"{row['provider']} {row['version']}: neurons by {row['backend']}, {row['layout']}"
        for row in rows
        if row["version"]
    ):
        console.print(line, soft_wrap=True)


def draw(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Time and memory against T, as an SVG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 8), layout="constrained")
        time, memory = figure.subplots(2, 1)
        draw_panel(time, rows, "ms_p50", "time_ratio_to_ours")
        draw_panel(memory, rows, "peak_mib", "memory_ratio_to_ours")
        time.set_title("milliseconds a training step, median", loc="left", fontsize=11)
        memory.set_title("MiB of tensors at the peak of a step", loc="left", fontsize=11)
        figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        machine = f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc'][:10]}"
        subject = f"{rows[0]['case']}, {rows[0]['dtype']}: forward, loss, backward; × is the ratio to {OURS}"
        figure.suptitle(f"{subject}\n{machine}", fontsize=9)
        figure.savefig(path, metadata={"Date": None})


def draw_panel(axes: Any, rows: list[dict[str, Any]], value: str, ratio_to_ours: str) -> None:
    """One column of the rows: curves of the libraries, horizontal lines of what has no time axis."""
    for row in rows:
        if row["provider"] in LINES:
            axes.axhline(row[value], linewidth=1.6, label=row["provider"], **LINES[row["provider"]])
    for library in LIBRARIES:
        own = [row for row in rows if row["provider"] == library.title]
        if not own:
            continue
        style = CURVES[library.title]
        axes.plot([row["time_steps"] for row in own], [row[value] for row in own], label=library.title, **style)
        for row in own:
            place = (row["time_steps"], row[value])
            text = f"×{digits(row[ratio_to_ours])}"
            axes.annotate(text, place, textcoords="offset points", color=style["color"], **LABELS[library.title])
    time_steps = sorted({row["time_steps"] for row in rows if row["time_steps"]})
    axes.set(xlim=(0, 1.13 * max(time_steps, default=1)), ylim=(0, 1.1 * max(row[value] for row in rows)))
    axes.set(xlabel="time steps T", xticks=time_steps)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
