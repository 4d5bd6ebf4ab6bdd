"""Collect runs that have ended, and write the README's main table from them.

    python bench/table1.py runs/vgg16 runs/mnist-* --commit HASH    # a row per run, then the table
    python bench/table1.py                                          # the table again

bench/results/runs.csv has a row per run. A run of the README's table (`MAIN`), or one whose folder a page names, also
keeps a folder bench/results/runs/NAME: config.yaml, metrics.jsonl, summary.json, and run.json with the commit and the
checksum of the best weights. In the README's table, seeds share a row, with mean and standard deviation.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import _bench as bench
import tyro
import yaml

from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.hub.facts import without_paths
from ttfs_triton.train.config import FREE_ON_RESUME, TrainConfig

MARKERS = ("<!-- table 1: python bench/table1.py -->", "<!-- end of table 1 -->")
NAMES = {"cnn1": "CNN1", "vgg11": "VGG11", "vgg16": "VGG16"}
MAIN = "mnist-s1 vgg11-s1-e28-taught vgg16-s0-taught vgg16-s1-e20-taught wide-s0-e32 wide-s1-e22".split()
MAIN += "vgg16-c100-s1-e18 c100-s0-e18 cifarnet-c100-s1-wide-e16".split()
"""Rows of the README, by the names of their runs without the seed."""
EARLIER = {"c100-s0-e18": 8}  # epochs of the run that gave a run its first weights; both count
PAPER = "Wei et al., ICCV 2023, Table 1"
BEST = "Che et al., AAAI 2026, doi:10.1609/aaai.v40i3.37149"
# Values of a configuration that are not shown: today's defaults, and defaults of keys that only older runs have.
_DEFAULTS = TrainConfig().model_dump(mode="json") | {
    "neuron": "dft",
    "psp_persistence_order": "together",
    "gradient_compression": "no",
}
# Keys that have a column, or that change no result.
_APART = {"dataset", "model", "width", "psp_persistence", "epochs", "seed", "mixed_precision", "cpu", "backend"}
_APART |= (FREE_ON_RESUME - {"teacher"}) | {"compile"}


class Published(NamedTuple):
    """Figures that the paper reports for a network."""

    accuracy: float  # percent
    sparsity: float  # spikes over neurons
    epochs: int  # of training with spikes


# Data sets by their name on the Hub: title, and the best published accuracy, in percent, of a network of any size with
# time-to-first-spike coding.
DATA = {
    "ylecun/mnist": ("MNIST", 99.51),
    "zalando-datasets/fashion_mnist": ("Fashion-MNIST", 93.14),
    "uoft-cs/cifar10": ("CIFAR-10", 95.06),
    "uoft-cs/cifar100": ("CIFAR-100", 74.07),
}
# The paper's networks, all at σ = 1.
PUBLISHED = {
    ("ylecun/mnist", "cnn1"): Published(99.4, 0.3913, 150),
    ("uoft-cs/cifar10", "vgg11"): Published(91.17, 0.4387, 300),
    ("uoft-cs/cifar10", "vgg16"): Published(93.05, 0.2561, 300),
    ("uoft-cs/cifar100", "vgg16"): Published(69.66, 0.2845, 300),
}


@dataclass
class Options:
    """Collect runs and write the table."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs to collect; a run replaces an earlier one of the same name."""
    commit: str = ""  # commit at which these runs began
    results: Path = bench.RESULTS  # folder of runs.csv and of the folder runs
    readme: Path = bench.ROOT / "README.md"  # page whose main table is replaced, between its markers
    guides: Path = bench.ROOT / "docs"  # folder of further pages that may name the folder of a run


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        for run in options.runs:
            print(f"collected: {collect(run, options)}")
        rows = collected_rows(options)
        replace_table(options.readme, main_table(rows))
    except (ValueError, OSError) as error:
        sys.exit(f"table1: {error}")
    print(f"written: {options.readme}, {len(rows)} runs")


def name_of(run: Path) -> str:
    """Name of a run: its folder's name, preceded by the parent folder's name unless that is "runs"."""
    run = run.resolve()
    return run.name if run.parent.name == "runs" else f"{run.parent.name}-{run.name}"


def collect(run: Path, options: Options) -> Path:
    """Copy the files of a run that are to be committed; `collected_rows` makes a row of them."""
    if not (run / "summary.json").is_file():
        raise ValueError(f"runs must be folders of runs that have ended; got {run}.")
    folder = options.results / "runs" / name_of(run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "summary.json"):
        shutil.copyfile(run / name, folder / name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config = {key: without_paths(value) for key, value in config.items()}
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    checksum = hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest()
    write_json(folder / "run.json", {"weights_sha256": checksum, "commit": options.commit})
    return folder


def collected_rows(options: Options) -> list[dict[str, str]]:
    """All rows of runs.csv, after writing the folders' rows and removing the folders that no page names."""
    rows, about = bench.read(options.results / "runs.csv")
    by_name = {row["run"]: row for row in rows}
    for folder in (options.results / "runs").iterdir():
        by_name[folder.name] = {key: "" if value is None else str(value) for key, value in row_of(folder).items()}
        if not is_named(folder.name, options):
            shutil.rmtree(folder)
            print(f"a row only: {folder.name}")
    rows = sorted(by_name.values(), key=lambda row: (row["dataset"], row["run"]))
    bench.write(options.results, "runs", rows, about)
    return rows


def is_named(name: str, options: Options) -> bool:
    """Whether a run is in the README's table, or its folder is named by the README or a guide."""
    if any(belongs(name, row) for row in MAIN):
        return True
    pages = (options.readme, *options.guides.glob("guides/*.md"), *options.guides.glob("tutorials/*.md"))
    return any(re.search(rf"results/runs/{name}(?![\w-])", page.read_text(encoding="utf-8")) for page in pages)


def belongs(name: str, row: str) -> bool:
    """Whether a run belongs to a row of `MAIN`: it has the row's name, or this name with a seed."""
    return re.fullmatch(rf"{row}(-\d+)?", name) is not None


def row_of(folder: Path) -> dict[str, Any]:
    """The row of a collected run."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    summary, about = (json.loads((folder / name).read_text()) for name in ("summary.json", "run.json"))
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    settings = {
        key: value
        for key, value in config.items()
        if key not in _APART and (value != _DEFAULTS[key] if key in _DEFAULTS else value)
    }
    return {
        "run": folder.name,
        "dataset": config["dataset"],
        "model": config["model"],
        "width": config.get("width", 1.0),
        "sigma": None if config.get("neuron") == "ann" else config["psp_persistence"],
        "epochs": config["epochs"],
        "seed": config["seed"],
        "test_accuracy": summary["test_accuracy"],
        "first_spike_accuracy": summary["test_first_spike_accuracy"],
        "ties": summary["ties"],
        "activity": round(summary["sparsity"], 6),
        "activity_as_published": round(summary["sparsity_as_published"], 6),
        "operations_an_image": round(summary["counts"]["total"]["synaptic_operations"] / summary["counts"]["samples"]),
        "held_out": summary["val_accuracy"],
        "best_epoch": summary["best_epoch"],
        "train_accuracy": round(epochs[-1]["train_accuracy"], 6),
        "seconds_per_epoch": round(summary["seconds_per_epoch"], 1),
        "device": summary["device"],
        "precision": summary["mixed_precision"],
        "torch": summary["versions"]["torch"],
        "settings": yaml.safe_dump(settings, default_flow_style=True, width=10**6).strip(),
        "commit": about["commit"],
        "weights_sha256": about["weights_sha256"],
    }


def main_table(rows: Sequence[dict[str, str]]) -> str:
    """The README's table in Markdown. Rows at σ = 1 also have the paper's figures for this or its best network."""
    headings = ("data", "network", "accuracy", "activity", "epochs", "the paper", "its activity", "its epochs")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name in MAIN:
        if runs := [row for row in rows if belongs(row["run"], name)]:
            lines.append(f"| {' | '.join(cells_of(runs))} |")
    return "\n".join(lines) + "\n"


def cells_of(runs: Sequence[dict[str, str]]) -> list[str]:
    """Cells of the README's row for runs that differ only in the seed."""
    data, model, sigma = runs[0]["dataset"], runs[0]["model"], float(runs[0]["sigma"])
    width, settings = float(runs[0]["width"]), yaml.safe_load(runs[0]["settings"])
    channels, blocks = settings.get("channels"), settings.get("block_convolutions")
    theirs = {model: figures for (other, model), figures in PUBLISHED.items() if other == data and sigma == 1}
    paper, beside = theirs.get(model), ""
    if theirs and paper is None:
        best = max(theirs, key=lambda model: theirs[model].accuracy)
        paper, beside = theirs[best], f" ({NAMES[best]})"
    more = f" channels, {blocks} convolutions a block" if blocks else " channels"
    size = f" × {width:g}" if width != 1 else f" ({', '.join(map(str, channels))}{more})" if channels else ""
    return [
        DATA[data][0],
        f"{NAMES.get(model, model)}{size}, σ = {sigma:g}",
        f"{average([100 * float(run['test_accuracy']) for run in runs], 2)} %",
        average([float(run["activity"]) for run in runs], 3),
        str(int(runs[0]["epochs"]) + EARLIER.get(runs[0]["run"], 0)),
        *((f"{paper.accuracy:g} %{beside}", f"{paper.sparsity:g}", str(paper.epochs)) if paper else ("–",) * 3),
    ]


def average(values: Sequence[float], digits: int) -> str:
    """A single value, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def replace_table(path: Path, text: str) -> None:
    """Replace the text between the markers of a page."""
    content = path.read_text(encoding="utf-8")
    start, end = MARKERS
    parts = re.split(f"({re.escape(start)}\n|{re.escape(end)})", content)
    if [part.strip() for part in parts[1::2]] != [start, end]:
        raise ValueError(f"{path} must have the markers {start} and {end}, in this order and once. Add them.")
    figures = ", ".join(f"{name} {best} %" for name, best in DATA.values())
    about = f"\nThe paper: {PAPER}. Best published with time-to-first-spike coding, of networks of any kind: {BEST}: "
    write_text(path, parts[0] + parts[1] + text + f"{about}{figures}.\n" + parts[3] + parts[4])


if __name__ == "__main__":
    main()
