"""The README's main table, from runs: finished ones with their test accuracy, others with what they have reached.

    python bench/table1.py runs/vgg16 runs/mnist-*    # collect these, then write the table of all collected ones
    python bench/table1.py                            # write the table again

Collecting copies a run's config.yaml, metrics.jsonl and summary.json to bench/results/runs/NAME, with the checksum of
its best weights in run.json, and that of the ANN that it started from, if its folder holds one. Where a run is too old
to say how many neurons were without input, its best network counts them on the test images (no accuracy is scored
anew). Runs that differ in the seed alone share a row: mean and standard deviation, and each of them. Networks narrower
than their own size are collected, and have no row: the table is of the paper's networks.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro
import yaml
from _published import BEST, PAPER, TARGETS, Target
from _record import ROOT

from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.evaluation import LoadError, load_network, load_test_images
from ttfs_triton.hardware import count
from ttfs_triton.hub.datasets import without_paths
from ttfs_triton.scoring import EvaluationBatches
from ttfs_triton.train.config import FREE_ON_RESUME
from ttfs_triton.wording import percent

RESULTS = ROOT / "bench" / "results" / "runs"
MARKERS = ("<!-- table 1: python bench/table1.py -->", "<!-- end of table 1 -->")
FILES = ("metrics.jsonl", "summary.json")
# Keys that differ between runs of one row.
_APART = FREE_ON_RESUME | {"seed", "cpu", "backend", "compile", "mixed_precision"}
NAMES = {
    "cnn1": "CNN1",
    "vgg11": "VGG11",
    "vgg16": "VGG16",
    "resnet20": "ResNet-20",
}


@dataclasses.dataclass
class Options:
    """Collect runs and write the table."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs, finished or not; a run replaces what was collected under its name."""
    commit: str = ""
    """At which these runs began, where no NAME.commit lies beside their folders."""
    data_dir: Path | None = None
    """Local folder of the data set, to count neurons without input on. Default: as the runs were trained."""
    count: bool = True
    """Count neurons without input where a finished run has not."""
    results: Path = RESULTS
    """Where runs are collected."""
    readme: Path = ROOT / "README.md"
    """Whose table is replaced, between its markers."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A collected run.

    Attributes:
        name: of its folder.
        config, metrics: its configuration, and a line an epoch.
        summary: None if it has not ended.
        about: run.json.
    """

    name: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None
    about: dict[str, Any]

    @property
    def row(self) -> str:
        """What runs of one row agree in."""
        return json.dumps({key: value for key, value in self.config.items() if key not in _APART}, sort_keys=True)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        for folder in options.runs:
            print(f"collected: {collect(folder, options)}")
        found = [read(folder) for folder in sorted(options.results.glob("*")) if folder.is_dir()]
        replace_table(options.readme, table(found))
    except (LoadError, ValueError, OSError) as error:
        sys.exit(f"table1: {error}")
    print(f"written: {options.readme}, {len(found)} runs")


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
        ValueError: no run is there, or it has not ended an epoch.
    """
    weights = run / "best" / "model.safetensors"
    if not (run / "config.yaml").is_file() or not (run / "metrics.jsonl").is_file() or not weights.is_file():
        raise ValueError(f"runs must be folders of runs with an epoch behind them; got {run}.")
    folder = folder or options.results / name_of(run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in FILES:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    said = run.with_name(f"{run.name}.commit")
    about: dict[str, Any] = {
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "commit": options.commit or (said.read_text().strip() if said.is_file() else ""),
    }
    write_text(
        folder / "config.yaml", yaml.safe_dump({k: without_paths(v) for k, v in config.items()}, sort_keys=False)
    )
    summary = json.loads((run / "summary.json").read_text()) if (run / "summary.json").is_file() else None
    if summary is not None and config.get("neuron") != "ann":
        about["sparsity_as_published"] = summary.get("sparsity_as_published")
        if about["sparsity_as_published"] is None and options.count:
            about["sparsity_as_published"] = counted_again(run, options.data_dir)
    if (run / "ann").is_dir():
        collect(run / "ann", options, folder / "ann")
    write_json(folder / "run.json", about)
    return folder


def counted_again(run: Path, data_dir: Path | None) -> float | None:
    """The published sparsity of a run's best network over all test images."""
    loaded = load_network(run)
    data = load_test_images(loaded, data_dir=data_dir)
    return count(
        loaded.network, EvaluationBatches(data, None, 250), histogram_bins=0, by_sample=False
    ).sparsity_as_published


def read(folder: Path) -> Run:
    """A collected run.

    Raises:
        ValueError: a file is damaged.
    """
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        summary = folder / "summary.json"
        return Run(
            folder.name,
            yaml.safe_load((folder / "config.yaml").read_text()),
            [json.loads(line) for line in lines],
            json.loads(summary.read_text()) if summary.is_file() else None,
            json.loads((folder / "run.json").read_text()),
        )
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{folder} must hold a collected run; {error}. Collect it again.") from error


def table(runs: Sequence[Run]) -> str:
    """The table, in Markdown: the rows of `TARGETS`, each with the runs that belong to it, and other networks' rows."""
    headings = (
        *("data", "network", "accuracy %, ours", "the paper", "best published"),
        *("sparsity, ours", "as the paper counts", "the paper", "runs"),
    )
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for target in with_others(runs):
        mine = [run for run in runs if belongs(run, target)]
        rows: dict[str, list[Run]] = {}
        for run in sorted(mine, key=lambda run: (_sigma(run), run.name)):
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
            if any(belongs(run, other) for run in runs):
                yield other


def belongs(run: Run, target: Target) -> bool:
    """Whether a run is of a target's data, all of them, and of its network at full width."""
    config = run.config
    whole = config.get("max_train_samples") is None and config.get("max_test_samples") is None
    full = config.get("width", 1.0) == 1
    return (config["dataset"], config["model"], whole, full) == (target.data, target.model, True, True)


def line(target: Target, runs: Sequence[Run]) -> str:
    """A row of the table; without runs, one that says so."""
    finished, others = ([run for run in runs if (run.summary is None) == open_] for open_ in (False, True))
    summaries = [run.summary for run in finished if run.summary is not None]
    if summaries:
        accuracy = spread([100 * found["test_accuracy"] for found in summaries], 2)
        accuracy += f"; {reached(others)}" if others else ""
        sparsity = spread([found["sparsity"] for found in summaries], 3)
        counted = [run.about.get("sparsity_as_published") for run in finished]
        published = spread([value for value in counted if value is not None], 3) if None not in counted else "–"
    else:
        accuracy, sparsity, published = reached(runs), "–", "–"
    cells = [
        target.title,
        network_of(target, runs),
        accuracy,
        _figure(target.paper_accuracy) if _paper_s_neuron(runs) else "–",
        "–" if runs and _sigma(runs[0]) < 0 else _figure(target.best_accuracy),
        sparsity,
        published,
        _figure(target.paper_sparsity) if _paper_s_neuron(runs) else "–",
        ", ".join(f"[{run.name}](bench/results/runs/{run.name})" for run in runs) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def network_of(target: Target, runs: Sequence[Run]) -> str:
    """Name, neuron and length of the training."""
    name = NAMES.get(target.model, target.model)
    if not runs:
        return name
    config = runs[0].config
    words = [name, "ANN" if _sigma(runs[0]) < 0 else f"σ = {_sigma(runs[0]):g}"]
    words.append(f"{config['epochs']} epochs" + (", from an ANN" if _from_ann(config) else ""))
    return ", ".join(words)


def spread(values: Sequence[float], digits: int) -> str:
    """A figure, or mean and standard deviation with all figures behind them."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"**{mean(values):.{digits}f} ± {stdev(values):.{digits}f}** ({each})"


def reached(runs: Sequence[Run]) -> str:
    """What runs without a summary have come to, on validation images."""
    words = []
    for run in runs:
        scored = [line for line in run.metrics if line.get("val_accuracy") is not None]
        best = max((line["val_accuracy"] for line in scored), default=None)
        value = "" if best is None else f"{percent(best)} of validation images "
        words.append(f"not finished: {value}after {len(run.metrics)} of {run.config['epochs']} epochs")
    return "; ".join(words) or "not run yet"


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


def _from_ann(config: dict[str, Any]) -> bool:
    return bool(config.get("pretrain") or config.get("weights"))


def _sigma(run: Run) -> float:
    """σ; below all for an ANN."""
    return -1.0 if run.config.get("neuron") == "ann" else run.config.get("psp_persistence", 1.0)


def _paper_s_neuron(runs: Sequence[Run]) -> bool:
    """Whether a row may stand against the paper's figures: its neuron, or nothing yet."""
    return all(_sigma(run) == 1 for run in runs)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


if __name__ == "__main__":
    main()
