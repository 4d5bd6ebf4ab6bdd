"""Accuracy and sparsity of whole training runs: trains every row of a suite with the recipes, then writes one table.

    python bench/accuracy.py mnist --data-dir DIR              CNN1 from scratch, five seeds
    python bench/accuracy.py cifar10 --data-dir DIR            VGG11 at half width: ANN, σ = 0, 0.25 and 1
    python bench/accuracy.py depth --data-dir DIR              ResNet-20 against the same layers without skips

Rows that have been run already are kept, unfinished ones go on where they stopped. Rows of the table that were not
trained here stay as they are: each row names its own commit, machine and date. Recipes train on a GPU where there is
one; CUDA_VISIBLE_DEVICES= keeps them from it. Seconds are wall-clock seconds of training, the ANN's that a row trains
first among them; with --jobs they include what the rows take from each other.
"""

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import tyro
from _record import ROOT, read, write
from _training import read_run, read_summary, train
from rich.console import Console
from rich.table import Table

RESULTS = ROOT / "bench" / "results"
SIGMA_1 = ["--psp-persistence", "1"]
SEEDS = 0, 1, 2, 4, 7  # the settings were chosen with 3
EARLIER = "--dropout 0 --validation-fraction 0.05".split()
CIFAR10 = "--width 0.5 --auto-augment False --cutout 0 --num-workers 0 --mixed-precision bf16 --epochs".split()
# Each row gets the rate that validation liked best; where spikes can neither appear nor vanish, it may be higher.
ANN = "--neuron ann --readout potential_start --lr".split()
BATCH_NORM = [*ANN, "1e-3", "--batch-norm", "--no-weight-standardisation"]
# ResNet-20's layers in a row: as many weights but for those of the skips, as many operations but for delayed spikes.
PLAIN = "-".join(["16C3"] * 7 + ["32C3s2"] + ["32C3"] * 5 + ["64C3s2"] + ["64C3"] * 5 + ["A"])
DEPTH = "--auto-augment False --cutout 0 --num-workers 0".split()
SHORT = "10 epochs of 6,000 images"
BUDGETS: dict[str, tuple[Sequence[str], range]] = {
    SHORT: ("--epochs 10 --max-train-samples 6000 --batch-size 32".split(), range(3)),
    "40 epochs": ("--epochs 40 --mixed-precision bf16".split(), range(1)),
}
EXACT = "--surrogate-width 0 --readout potential_start --lr".split()


def depth_rows() -> dict[str, list[str]]:
    """ResNet-20 and its layers in a row, by σ and budget.

    At σ = 0 nothing renews a signal from layer to layer: without skips it vanishes at the default initial gain of 0.5.
    There it starts at 1, and once, to show it, at 0.5; with skips, validation liked 0.5 better.
    """
    networks = {"skips": [], "no skips": ["--model", PLAIN, "--encoder", "analog"]}
    two_phase = ["--psp-persistence", "0", *EXACT, "4e-3"]
    neurons = {"0": two_phase, "0.25": ["--psp-persistence", "0.25"], "1": []}
    rows = {
        f"{name}, σ = {sigma}, {budget}, seed {seed}": [*length, *network, *neuron, "--seed", str(seed)]
        for budget, (length, seeds) in BUDGETS.items()
        for sigma, neuron in neurons.items()
        for name, network in networks.items()
        for seed in seeds
    }
    for name in rows:
        if name.startswith("no skips, σ = 0,"):
            rows[name] += ["--initial-gain", "1"]
    length, _ = BUDGETS[SHORT]
    rows[f"no skips, σ = 0, gain 0.5, {SHORT}, seed 0"] = [*length, *networks["no skips"], *two_phase, "--seed", "0"]
    return {name: [*DEPTH, *flags] for name, flags in rows.items()}


# Suite → (recipe, row → flags). A row's name says what it differs in.
SUITES: dict[str, tuple[str, dict[str, Any]]] = {
    "mnist": (
        "train_cnn_mnist",
        {
            f"{name}, seed {seed}": [*flags, "--seed", str(seed)]
            for name, flags, seeds in (
                ("σ = 0.25", [], SEEDS),
                ("σ = 1", SIGMA_1, SEEDS),
                ("σ = 0.25, earlier", EARLIER, range(3)),
                ("σ = 1, earlier, exact gradient", [*EARLIER, *SIGMA_1, "--surrogate-width", "0"], range(3)),
            )
            for seed in seeds
        },
    ),
    "cifar10": (
        "train_vgg11_cifar10",
        {
            "ANN, batch norm": [*CIFAR10, "10", *BATCH_NORM],
            "ANN, standardised weights": [*CIFAR10, "10", *ANN, "4e-3"],
            "σ = 0": [*CIFAR10, "10", "--psp-persistence", "0", *EXACT, "4e-3"],
            "σ = 0.25, surrogate": [*CIFAR10, "10", "--psp-persistence", "0.25"],
            "σ = 1": [*CIFAR10, "10", *EXACT, "4e-3"],
            "σ = 1, a quarter of the rate": [*CIFAR10, "10", *EXACT, "1e-3"],
            "σ = 1, surrogate": [*CIFAR10, "10"],
        },
    ),
    "depth": ("train_resnet20_cifar10", depth_rows()),
}


@dataclasses.dataclass
class Options:
    """Train every row of a suite and write bench/results/accuracy-SUITE.csv."""

    suite: tyro.conf.Positional[Literal["mnist", "cifar10", "depth"]]
    data_dir: Path | None = None
    """Local folder with the data set. Default: the Hub."""
    rows: tuple[str, ...] = ()
    """Train only rows whose name starts with one of these. Default: all. The table holds all rows trained so far."""
    runs: Path = Path("runs/accuracy")
    """Where the runs' folders go."""
    jobs: int = 1
    """Rows to train side by side."""
    threads: int | None = None
    """Threads of each. Default: all."""


def main() -> None:
    options = tyro.cli(Options)
    recipe, rows = SUITES[options.suite]
    chosen = {name: flags for name, flags in rows.items() if not options.rows or name.startswith(options.rows)}
    with ThreadPoolExecutor(options.jobs) as pool:
        list(
            pool.map(
                lambda name: train(recipe, chosen[name], folder_of(options, name), options.data_dir, options.threads),
                chosen,
            )
        )
    found = {name: read_run(folder_of(options, name)) for name in rows}
    summaries = {name: summary for name, summary in found.items() if summary is not None}
    table: dict[str, dict[str, Any]] = {
        line["row"]: line for line in read(RESULTS / f"accuracy-{options.suite}.csv")[0]
    }
    table |= {
        name: {
            "row": name,
            "test_accuracy": summary["test_accuracy"],
            "test_first_spike_accuracy": summary["test_first_spike_accuracy"],
            "val_accuracy": summary["val_accuracy"],
            "sparsity": summary["sparsity"],
            "sparsity_with_outputs": summary["sparsity_with_outputs"],
            "epochs": summary["epochs"],
            "seconds": sum(
                part["epochs"] * part["seconds_per_epoch"]
                for part in (summary, read_summary(folder_of(options, name) / "ann"))
                if part is not None
            ),
            "jobs": options.jobs,
            "seed": summary["seed"],
            "device": summary["device"],
            **{package: summary["versions"].get(package, "") for package in ("torch", "ttfs-triton")},
            "commit": summary["commit"],
            "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "command": " ".join(["python", f"recipes/{recipe}.py", *rows[name]]),
        }
        for name, summary in summaries.items()
    }
    lines, missing = [table[name] for name in rows if name in table], [name for name in rows if name not in table]
    about = {"suite": options.suite, "jobs": options.jobs, "threads": options.threads, "not run": missing}
    show(lines)
    if missing:
        print(f"not run yet: {'; '.join(missing)}")
    write(RESULTS, f"accuracy-{options.suite}", lines, about)


def folder_of(options: Options, name: str) -> Path:
    """The run's folder of a row."""
    return options.runs / options.suite / "".join(c if c.isalnum() or c in ".=" else "-" for c in name)


def show(lines: list[dict[str, Any]]) -> None:
    """The table on the screen, with mean and standard deviation where rows are seeds of one setting."""
    table = Table("row", "test accuracy", "by first spike", "sparsity", "epochs", "training s")
    for line in lines:
        table.add_row(
            line["row"],
            f"{float(line['test_accuracy']):.2%}",
            f"{float(line['test_first_spike_accuracy']):.2%}",
            f"{float(line['sparsity']):.4f}",
            str(line["epochs"]),
            f"{float(line['seconds']):.0f}",
        )
    console = Console()
    console.print(table)
    for name in dict.fromkeys(line["row"].rsplit(", seed ", 1)[0] for line in lines):
        seeds = [line for line in lines if line["row"].startswith(f"{name}, seed ")]
        if len(seeds) > 1:
            accuracies, sparsities = ([float(line[key]) for line in seeds] for key in ("test_accuracy", "sparsity"))
            console.print(
                f"{name}: mean test accuracy {mean(accuracies):.3%} ± {stdev(accuracies):.3%}, "
                f"sparsity {mean(sparsities):.4f} ± {stdev(sparsities):.4f}, {len(seeds)} seeds"
            )


if __name__ == "__main__":
    main()
