"""Accuracy and sparsity of whole training runs: trains every row of a suite with the recipes, then writes one table.

    python bench/accuracy.py mnist --data-dir DIR              CNN1 from scratch, five seeds
    python bench/accuracy.py cifar10 --data-dir DIR            VGG11 at half width: σ = 0, 0.25 and 1
    python bench/accuracy.py depth --data-dir DIR              ResNet-20 against the same layers without skips

Rows that have been run already are kept, unfinished ones go on where they stopped. Rows of the table that were not
trained here stay as they are: each row names its own commit, machine and date. Recipes train on a GPU where there is
one; CUDA_VISIBLE_DEVICES= keeps them from it. Seconds are wall-clock seconds of training; with --jobs they include what
the rows take from each other. A run's output goes to FOLDER.log, the commit at which it began to FOLDER.commit.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import _bench as bench
import tyro
import yaml


@dataclasses.dataclass
class Options:
    """Train every row of a suite and write bench/results/accuracy-SUITE.csv."""

    suite: tyro.conf.Positional[Literal["mnist", "cifar10", "depth"]]
    data_dir: Path | None = None
    """Local folder with the data set. Default: the Hub."""
    rows: tuple[str, ...] = ()
    """Train only rows whose name starts with one of these. Default: all. The table holds all rows trained so far."""
    runs: Path = Path("runs/accuracy")  # where the runs' folders go
    jobs: int = 1  # rows to train side by side

    def folder(self, row: str) -> Path:
        """The run's folder of a row."""
        return self.runs / self.suite / "".join(c if c.isalnum() or c in ".=" else "-" for c in row)


def main() -> None:
    options = tyro.cli(Options)
    recipe, rows = read_suite(options.suite)
    chosen = {row: flags for row, flags in rows.items() if not options.rows or row.startswith(options.rows)}
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda row: train(recipe, chosen[row], options.folder(row), options.data_dir), chosen))
    earlier, _ = bench.read(bench.RESULTS / f"accuracy-{options.suite}.csv")
    table: dict[str, bench.Row] = {line["row"]: line for line in earlier}
    for row in rows:
        if (options.folder(row) / "summary.json").is_file():
            table[row] = line_of(options, row, ["python", f"recipes/{recipe}.py", *rows[row]])
    lines, missing = [table[row] for row in rows if row in table], [row for row in rows if row not in table]
    show(lines)
    if missing:
        print(f"not run yet: {'; '.join(missing)}")
    about = {"suite": options.suite, "jobs": options.jobs, "not run": missing}
    bench.write(bench.RESULTS, f"accuracy-{options.suite}", lines, about)


def read_suite(name: str) -> tuple[str, dict[str, list[str]]]:
    """The recipe of a suite, and flags by row."""
    suite = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))[name]
    rows = {}
    for group in suite["groups"]:
        for row, more in group["rows"].items():
            flags = " ".join([*group["flags"], *more]).split()
            for seed in group.get("seeds", ()):
                rows[f"{row}, seed {seed}"] = [*flags, "--seed", str(seed)]
            if "seeds" not in group:
                rows[row] = flags
    return suite["recipe"], rows


def train(recipe: str, flags: Sequence[str], folder: Path, data_dir: Path | None) -> None:
    """Train by a recipe, or go on with a run, unless it has ended.

    Raises:
        subprocess.CalledProcessError: training failed; the log says why.
    """
    if (folder / "summary.json").is_file():
        return
    command = [sys.executable, str(bench.ROOT / "recipes" / f"{recipe}.py"), "--output-dir", str(folder), *flags]
    command += [] if data_dir is None else ["--data-dir", str(data_dir)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "config.yaml").is_file():
        command.append("--resume")
    else:
        folder.with_name(f"{folder.name}.commit").write_text(bench.commit())
    log = folder.with_name(f"{folder.name}.log")
    print(f"{folder.name}: training, log in {log}", flush=True)
    with log.open("a") as output:
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT)


def line_of(options: Options, row: str, command: list[str]) -> bench.Row:
    """The line of a run that has ended."""
    folder = options.folder(row)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    scores = ("test_accuracy", "test_first_spike_accuracy", "val_accuracy", "sparsity", "sparsity_with_outputs")
    return {
        "row": row,
        **{key: summary[key] for key in (*scores, "epochs")},
        "seconds": summary["epochs"] * summary["seconds_per_epoch"],
        "jobs": options.jobs,
        "seed": summary["seed"],
        "device": summary["device"],
        **{package: summary["versions"].get(package, "") for package in ("torch", "ttfs-triton")},
        "commit": folder.with_name(f"{folder.name}.commit").read_text(),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "command": " ".join(command),
    }


def show(lines: list[bench.Row]) -> None:
    """The table on the screen, with mean and standard deviation where rows are seeds of one setting."""
    scores = ("test_accuracy", "test_first_spike_accuracy", "sparsity")
    cells = [(line["row"], *(f"{float(line[key]):.4f}" for key in scores), line["epochs"]) for line in lines]
    bench.print_table(("row", "test accuracy", "by first spike", "sparsity", "epochs"), cells)
    for name in dict.fromkeys(line["row"].rsplit(", seed ", 1)[0] for line in lines):
        seeds = [line for line in lines if line["row"].startswith(f"{name}, seed ")]
        if len(seeds) > 1:
            accuracies, sparsities = ([float(line[key]) for line in seeds] for key in ("test_accuracy", "sparsity"))
            print(
                f"{name}: mean test accuracy {mean(accuracies):.3%} ± {stdev(accuracies):.3%}, "
                f"sparsity {mean(sparsities):.4f} ± {stdev(sparsities):.4f}, {len(seeds)} seeds"
            )


if __name__ == "__main__":
    main()
