"""Write the README's main table, and the table of all runs in docs/results.md, from runs that have ended.

    python bench/table1.py runs/vgg16 runs/mnist-*    # collect these runs, then write both tables
    python bench/table1.py                            # write both tables again

Collecting copies a run's config.yaml, metrics.jsonl and summary.json to bench/results/runs/NAME, with the checksum of
its best weights in run.json. Runs that differ in the seed alone share a row, with mean, standard deviation and the
value of each run. Networks of less than full width are collected but have no row. The README has the rows of `MAIN`.
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
from typing import Any

import _bench as bench
import tyro
import yaml

from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.hub.facts import without_paths
from ttfs_triton.train.config import FREE_ON_RESUME

MARKERS = ("<!-- table 1: python bench/table1.py -->", "<!-- end of table 1 -->")
# Keys of the configuration that may differ between runs of one row.
_APART = FREE_ON_RESUME | {"seed", "cpu", "backend", "compile", "mixed_precision"}
NAMES = {"cnn1": "CNN1", "cifarnet": "cifarnet", "vgg11": "VGG11", "vgg16": "VGG16", "resnet20": "ResNet-20"}
MAIN = "mnist-s1 vgg11-s1-teacher vgg16-s0-taught vgg16-s1 cifarnet-s0-wide cifarnet-s1-wide-gain".split()
MAIN += "vgg16-c100-s1 cifarnet-c100-s0-wide cifarnet-c100-s1-wide-e16".split()
"""Rows of the README, by the names of their runs without the seed."""
PAPER = "Wei et al., ICCV 2023, Table 1"
BEST = "Che et al., AAAI 2026, doi:10.1609/aaai.v40i3.37149"


@dataclass(frozen=True)
class Published:
    """Figures that the paper reports for a network."""

    accuracy: float  # percent
    sparsity: float  # spikes over neurons
    epochs: int  # of training with spikes


# Data sets by their name on the Hub: title, and the best accuracy that a network of any size with time-to-first-spike
# coding has been published with.
DATA = {
    "ylecun/mnist": ("MNIST", 99.51),
    "zalando-datasets/fashion_mnist": ("Fashion-MNIST", 93.14),
    "uoft-cs/cifar10": ("CIFAR-10", 95.06),
    "uoft-cs/cifar100": ("CIFAR-100", 74.07),
}
# The paper's networks, all with its own neuron (σ = 1).
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
    results: Path = bench.RESULTS / "runs"  # folder of collected runs
    readme: Path = bench.ROOT / "README.md"  # page whose main table is replaced, between its markers
    page: Path = bench.ROOT / "docs" / "results.md"  # page whose table of all runs is replaced, between its markers


@dataclass(frozen=True)
class Run:
    """A collected run."""

    name: str  # name of its folder
    config: dict[str, Any]
    summary: dict[str, Any]
    about: dict[str, Any]  # run.json

    @property
    def row(self) -> str:
        """Key of the run's row: its configuration without keys that may differ."""
        return json.dumps({key: value for key, value in self.config.items() if key not in _APART}, sort_keys=True)

    @property
    def sigma(self) -> float:
        """σ; for an ANN −1, which sorts before every σ."""
        return -1.0 if self.config.get("neuron") == "ann" else self.config.get("psp_persistence", 1.0)

    @property
    def network(self) -> str:
        """Name of the network for readers, with the factor on its width."""
        name, width = self.config["model"], self.config.get("width", 1.0)
        return f"{NAMES.get(name, name)}{f' × {width:g}' if width != 1 else ''}"

    @property
    def published(self) -> Published | None:
        """What the paper reports for the same data, network and neuron."""
        return PUBLISHED.get((self.config["dataset"], self.config["model"])) if self.sigma == 1 else None

    @property
    def has_row(self) -> bool:
        """Whether the run has a row: data of `DATA`, all images, and a network at full width or wider."""
        config = self.config
        whole = config.get("max_train_samples") is None and config.get("max_test_samples") is None
        return whole and config["dataset"] in DATA and config.get("width", 1.0) >= 1

    @property
    def place(self) -> tuple:
        """Sort key of the run's row: by data, then the paper's networks before others, then σ."""
        data, model = self.config["dataset"], self.config["model"]
        known = [name for other, name in PUBLISHED if other == data]
        rank = known.index(model) if model in known else len(known)
        return list(DATA).index(data), rank, model, self.sigma, self.name


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        for folder in options.runs:
            print(f"collected: {collect(folder, options)}")
        found = [read(folder) for folder in sorted(options.results.glob("*")) if folder.is_dir()]
        replace_table(options.readme, main_table(found))
        replace_table(options.page, table(found))
    except (ValueError, OSError) as error:
        sys.exit(f"table1: {error}")
    print(f"written: {options.readme} and {options.page}, {len(found)} runs")


def name_of(run: Path) -> str:
    """Name of a run: its folder's name, preceded by the parent folder's name unless that is "runs"."""
    run = run.resolve()
    return run.name if run.parent.name == "runs" else f"{run.parent.name}-{run.name}"


def collect(run: Path, options: Options) -> Path:
    """Copy the files of a run that are to be committed.

    Args:
        run: folder of the run.
        options: `results`, the folder that gets a folder for the run, and `commit`.
    Raises:
        ValueError: the folder is not a run, or the run has not ended.
    """
    if not (run / "summary.json").is_file():
        raise ValueError(f"runs must be folders of runs that have ended; got {run}.")
    folder = options.results / name_of(run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "summary.json"):
        shutil.copyfile(run / name, folder / name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config = {key: without_paths(value) for key, value in config.items()}
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    about = {
        "weights_sha256": hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest(),
        "commit": options.commit,
        "sparsity_as_published": json.loads((run / "summary.json").read_text()).get("sparsity_as_published"),
    }
    write_json(folder / "run.json", about)
    return folder


def read(folder: Path) -> Run:
    """A collected run."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    summary, about = (json.loads((folder / name).read_text()) for name in ("summary.json", "run.json"))
    return Run(folder.name, config, summary, about)


def main_table(runs: Sequence[Run]) -> str:
    """The README's table in Markdown; beside σ = 1, the paper's figures of this network or of its most accurate one."""
    headings = ("data", "network", "accuracy", "activity", "epochs", "the paper", "its activity", "its epochs")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name in MAIN:
        found = [run for run in runs if re.fullmatch(rf"{name}(-\d+)?", run.name)]
        if not found:
            continue
        config, paper, beside = found[0].config, found[0].published, ""
        theirs = {model: figures for (data, model), figures in PUBLISHED.items() if data == config["dataset"]}
        if paper is None and theirs and found[0].sigma == 1:
            best = max(theirs, key=lambda model: theirs[model].accuracy)
            paper, beside = theirs[best], f" ({NAMES[best]})"
        cells = [
            DATA[config["dataset"]][0],
            f"{found[0].network}, σ = {found[0].sigma:g}",
            f"{average([100 * run.summary['test_accuracy'] for run in found], 2)} %",
            average([run.summary["sparsity"] for run in found], 3),
            str(config["epochs"]),
            f"{paper.accuracy:g} %{beside}" if paper else "–",
            _figure(paper and paper.sparsity),
            _figure(paper and paper.epochs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def average(values: Sequence[float], digits: int) -> str:
    """A single value, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def table(runs: Sequence[Run]) -> str:
    """The table of all runs, in Markdown."""
    headings = (
        *("data", "network", "accuracy %, ours", "the paper", "best published"),
        *("sparsity, ours", "as the paper counts", "the paper", "runs"),
    )
    rows: dict[str, list[Run]] = {}
    for run in sorted((run for run in runs if run.has_row), key=lambda run: run.place):
        rows.setdefault(run.row, []).append(run)
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *map(line, rows.values())]
    return "\n".join(lines) + "\n"


def line(runs: Sequence[Run]) -> str:
    """A row of the table of all runs, from runs that differ in the seed alone."""
    config, sigma, paper = runs[0].config, runs[0].sigma, runs[0].published
    title, best = DATA[config["dataset"]]
    from_ann = ", from an ANN" if config.get("pretrain") or config.get("weights") else ""
    counted = [run.about.get("sparsity_as_published") for run in runs]
    cells = [
        title,
        f"{runs[0].network}, {'ANN' if sigma < 0 else f'σ = {sigma:g}'}, {config['epochs']} epochs{from_ann}",
        spread([100 * run.summary["test_accuracy"] for run in runs], 2),
        _figure(paper and paper.accuracy),
        _figure(best if sigma >= 0 else None),
        spread([run.summary["sparsity"] for run in runs], 3),
        spread([value for value in counted if value is not None], 3) if None not in counted else "–",
        _figure(paper and paper.sparsity),
        ", ".join(f"[{run.name}](../bench/results/runs/{run.name}/summary.json)" for run in runs),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """A single value, or mean and standard deviation of several, followed by all of them."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"**{average(values, digits)}** ({each})"


def replace_table(path: Path, text: str) -> None:
    """Replace the text between the markers of a page.

    Raises:
        ValueError: the page does not have both markers, once each and in order.
    """
    content = path.read_text(encoding="utf-8")
    start, end = MARKERS
    parts = re.split(f"({re.escape(start)}\n|{re.escape(end)})", content)
    if [part.strip() for part in parts[1::2]] != [start, end]:
        raise ValueError(f"{path} must have the markers {start} and {end}, once each and in order. Add them.")
    figures = ", ".join(f"{name} {best} %" for name, best in DATA.values())
    about = f"\nThe paper: {PAPER}. Best published with time-to-first-spike coding, of networks of any kind: {BEST}: "
    about += f"{figures}.\n"
    write_text(path, parts[0] + parts[1] + text + about + parts[3] + parts[4])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


if __name__ == "__main__":
    main()
