"""The README's main table, and that of all runs in docs/results.md, from runs that have ended.

    python bench/table1.py runs/vgg16 runs/mnist-*    # collect these, then write both tables
    python bench/table1.py                            # write the tables again

Collecting copies a run's config.yaml, metrics.jsonl and summary.json to bench/results/runs/NAME, with the checksum of
its best weights in run.json, and that of the ANN that it started from, if its folder holds one. Runs that differ in the
seed alone share a row: mean and standard deviation, and each of them. Networks narrower than their own size are
collected, and have no row. The README has the rows of `MAIN`.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import _bench as bench
import tyro
import yaml

from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.hub.datasets import without_paths
from ttfs_triton.train.config import FREE_ON_RESUME

MARKERS = ("<!-- table 1: python bench/table1.py -->", "<!-- end of table 1 -->")
# Keys that differ between runs of one row.
_APART = FREE_ON_RESUME | {"seed", "cpu", "backend", "compile", "mixed_precision"}
NAMES = {"cnn1": "CNN1", "cifarnet": "cifarnet", "vgg11": "VGG11", "vgg16": "VGG16", "resnet20": "ResNet-20"}
MAIN = ("mnist-s1", "cifarnet-s0-wide", "cifarnet-s0-e24", "cifarnet-s025", "cifarnet-s1", "vgg16-c100-s1")
"""Rows of the README by the names of their runs, without a seed."""
PAPER = "Wei et al., ICCV 2023, Table 1"
BEST = "Che et al., AAAI 2026, doi:10.1609/aaai.v40i3.37149"


@dataclass(frozen=True)
class Target:
    """A row that the table always has."""

    data: str  # set on the Hub
    title: str  # for readers
    model: str  # of the recipes
    paper_accuracy: float | None  # percent; None where the paper has no such row
    paper_sparsity: float | None  # spikes over neurons
    best_accuracy: float  # that a network of any size with time-to-first-spike coding has been published with
    paper_epochs: int | None = None  # of training with spikes


TARGETS = (
    Target("ylecun/mnist", "MNIST", "cnn1", 99.4, 0.3913, 99.51, 150),
    Target("zalando-datasets/fashion_mnist", "Fashion-MNIST", "cnn1", None, None, 93.14),
    Target("uoft-cs/cifar10", "CIFAR-10", "vgg11", 91.17, 0.4387, 95.06, 300),
    Target("uoft-cs/cifar10", "CIFAR-10", "vgg16", 93.05, 0.2561, 95.06, 300),
    Target("uoft-cs/cifar100", "CIFAR-100", "vgg16", 69.66, 0.2845, 74.07, 300),
)


@dataclass
class Options:
    """Collect runs and write the table."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs; a run replaces what was collected under its name."""
    commit: str = ""  # at which these runs began, where no NAME.commit lies beside their folders
    results: Path = bench.RESULTS / "runs"  # where runs are collected
    readme: Path = bench.ROOT / "README.md"  # whose table is replaced, between its markers
    page: Path = bench.ROOT / "docs" / "results.md"  # likewise, by the table of all runs


@dataclass(frozen=True)
class Run:
    """A collected run."""

    name: str  # of its folder
    config: dict[str, Any]
    summary: dict[str, Any]
    about: dict[str, Any]  # run.json

    @property
    def row(self) -> str:
        """What runs of one row agree in."""
        return json.dumps({key: value for key, value in self.config.items() if key not in _APART}, sort_keys=True)

    @property
    def sigma(self) -> float:
        """σ; below all for an ANN."""
        return -1.0 if self.config.get("neuron") == "ann" else self.config.get("psp_persistence", 1.0)

    @property
    def network(self) -> str:
        """Name of the network for readers, with the factor on its width."""
        name, width = self.config["model"], self.config.get("width", 1.0)
        return f"{NAMES.get(name, name)}{f' × {width:g}' if width != 1 else ''}"

    def belongs(self, target: Target) -> bool:
        """Whether it is of a target's data, all of them, and of its network, at full width or wider."""
        config = self.config
        whole = config.get("max_train_samples") is None and config.get("max_test_samples") is None
        full = config.get("width", 1.0) >= 1
        return (config["dataset"], config["model"], whole, full) == (target.data, target.model, True, True)


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
    """Name of a run: of its folder, with that around it if runs are sorted into folders of their own."""
    run = run.resolve()
    return run.name if run.parent.name == "runs" else f"{run.parent.name}-{run.name}"


def collect(run: Path, options: Options, folder: Path | None = None) -> Path:
    """Copy what is to be committed of a run.

    Args:
        run: its folder.
        options: whose `results` takes it.
        folder: where it goes. Default: in `results`, by its name.
    Raises:
        ValueError: no run is there, or it has not ended.
    """
    if not (run / "summary.json").is_file():
        raise ValueError(f"runs must be folders of runs that have ended; got {run}.")
    folder = folder or options.results / name_of(run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "summary.json"):
        shutil.copyfile(run / name, folder / name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config = {key: without_paths(value) for key, value in config.items()}
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    said = run.with_name(f"{run.name}.commit")
    about: dict[str, Any] = {
        "weights_sha256": hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest(),
        "commit": options.commit or (said.read_text().strip() if said.is_file() else ""),
    }
    if config.get("neuron") != "ann":
        about["sparsity_as_published"] = json.loads((run / "summary.json").read_text()).get("sparsity_as_published")
    if (run / "ann").is_dir():
        collect(run / "ann", options, folder / "ann")
    write_json(folder / "run.json", about)
    return folder


def read(folder: Path) -> Run:
    """A collected run."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    summary, about = (json.loads((folder / name).read_text()) for name in ("summary.json", "run.json"))
    return Run(folder.name, config, summary, about)


def main_table(runs: Sequence[Run]) -> str:
    """The README's rows, in Markdown: what was reached, and what the paper reports, each with its epochs."""
    headings = ("data", "network", "accuracy", "activity", "epochs", "the paper", "its activity", "its epochs")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name in MAIN:
        found = [run for run in runs if re.fullmatch(rf"{name}(-\d+)?", run.name)]
        if not found:
            continue
        config = found[0].config
        same_data = [target for target in TARGETS if target.data == config["dataset"]]
        papers = [target for target in same_data if target.model == config["model"] and found[0].sigma == 1]
        target = papers[0] if papers else None
        cells = [
            same_data[0].title,
            f"{found[0].network}, σ = {found[0].sigma:g}",
            f"{average([100 * run.summary['test_accuracy'] for run in found], 2)} %",
            average([run.summary["sparsity"] for run in found], 3),
            str(config["epochs"]),
            f"{target.paper_accuracy:g} %" if target and target.paper_accuracy else "–",
            _figure(target and target.paper_sparsity),
            _figure(target and target.paper_epochs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def average(values: Sequence[float], digits: int) -> str:
    """A figure, or mean and standard deviation of several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def table(runs: Sequence[Run]) -> str:
    """The table, in Markdown: the rows of `TARGETS`, each with the runs that belong to it, and other networks' rows."""
    headings = (
        *("data", "network", "accuracy %, ours", "the paper", "best published"),
        *("sparsity, ours", "as the paper counts", "the paper", "runs"),
    )
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for target in with_others(runs):
        rows: dict[str, list[Run]] = {}
        for run in sorted((run for run in runs if run.belongs(target)), key=lambda run: (run.sigma, run.name)):
            rows.setdefault(run.row, []).append(run)
        lines += [line(target, found) for found in rows.values()] or [line(target, [])]
    return "\n".join(lines) + "\n"


def with_others(runs: Sequence[Run]) -> Iterator[Target]:
    """`TARGETS`, and behind those of each data set the other networks that were trained on it."""
    for place, target in enumerate(TARGETS):
        yield target
        if target.data in {later.data for later in TARGETS[place + 1 :]}:
            continue
        known = {other.model for other in TARGETS if other.data == target.data}
        for model in sorted({run.config["model"] for run in runs} - known):
            other = dataclasses.replace(target, model=model, paper_accuracy=None, paper_sparsity=None)
            if any(run.belongs(other) for run in runs):
                yield other


def line(target: Target, runs: Sequence[Run]) -> str:
    """A row of the table; without runs, one that says so."""
    accuracy, sparsity, published = "not run yet", "–", "–"
    if runs:
        accuracy = spread([100 * run.summary["test_accuracy"] for run in runs], 2)
        sparsity = spread([run.summary["sparsity"] for run in runs], 3)
        counted = [run.about.get("sparsity_as_published") for run in runs]
        published = spread([value for value in counted if value is not None], 3) if None not in counted else "–"
    the_paper_s = all(run.sigma == 1 for run in runs)  # its neuron, or nothing yet
    analog = bool(runs) and runs[0].sigma < 0
    cells = [
        target.title,
        network_of(target, runs),
        accuracy,
        _figure(target.paper_accuracy if the_paper_s else None),
        _figure(None if analog else target.best_accuracy),
        sparsity,
        published,
        _figure(target.paper_sparsity if the_paper_s else None),
        ", ".join(f"[{run.name}](../bench/results/runs/{run.name}/summary.json)" for run in runs) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def network_of(target: Target, runs: Sequence[Run]) -> str:
    """Name, neuron and length of the training."""
    words = [runs[0].network if runs else NAMES.get(target.model, target.model)]
    if runs:
        config, sigma = runs[0].config, runs[0].sigma
        from_ann = ", from an ANN" if config.get("pretrain") or config.get("weights") else ""
        words += ["ANN" if sigma < 0 else f"σ = {sigma:g}", f"{config['epochs']} epochs{from_ann}"]
    return ", ".join(words)


def spread(values: Sequence[float], digits: int) -> str:
    """A figure, or mean and standard deviation with all figures behind them."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"**{average(values, digits)}** ({each})"


def replace_table(path: Path, text: str) -> None:
    """Replace what lies between the markers.

    Raises:
        ValueError: they are not both there, once each and in order.
    """
    content = path.read_text(encoding="utf-8")
    start, end = MARKERS
    parts = re.split(f"({re.escape(start)}\n|{re.escape(end)})", content)
    if [part.strip() for part in parts[1::2]] != [start, end]:
        raise ValueError(f"readme must have the markers {start} and {end}, once each; {path} has not.")
    about = f"\nThe paper: {PAPER}. Best published with time-to-first-spike coding, of networks of any kind: {BEST}.\n"
    write_text(path, parts[0] + parts[1] + text + about + parts[3] + parts[4])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


if __name__ == "__main__":
    main()
