"""Seconds an epoch of VGG11 at half width with AutoAugment: this checkout's training loop, and that of other commits.

    python bench/epoch.py --commits 2a87840

The recipe `train_vgg11_cifar10.py` as each commit has it, workers included, on images of CIFAR-10's shape: noise of few
frequencies, in parquet files that are made on the spot. Measured are some steps of the last of two short epochs (the
first warms up), by the run's own clock, and scaled to the 390 steps of 50,000 images; commits take turns. The processor
time is that of the whole run, with its workers: start, loading and both epochs. The machine must be quiet.
"""

import dataclasses
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
import torch
import tyro
from _commits import extract
from _record import ROOT, commit, environment, write
from PIL import Image
from rich.console import Console
from rich.table import Table

EPOCH_STEPS = 50_000 // 128  # of the recipe, on CIFAR-10
RECIPE = "train_vgg11_cifar10.py"


@dataclasses.dataclass
class Options:
    """Time epochs."""

    commits: tuple[str, ...] = ()
    """Commits that are measured before this checkout, in the same run."""
    steps: int = 20
    """Of 128 images, in each of the two epochs of a run."""
    rounds: int = 3
    """Runs of each commit."""
    width: float = 0.5
    threads: int = 2
    flags: str = ""
    """More flags of the recipe, for all commits: --flags="--mixed-precision bf16"."""
    output: Path = ROOT / "bench" / "results"
    """Folder of the CSV and JSON files."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if min(options.rounds, options.steps) < 1:
        sys.exit(f"epoch: --rounds and --steps must be at least 1; got {options.rounds} and {options.steps}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trees = {c: extract(c, folder / c, "ttfs_triton", "kernels", "recipes") for c in options.commits}
        trees[commit() or "checkout"] = ROOT
        make_images(folder / "images", 128 * options.steps)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for number in range(options.rounds):
            for name, tree in trees.items():
                found[name].append(run(tree, folder / f"{name}-{number}", folder, options))
    rows = [summary(name, runs, options) for name, runs in found.items()]
    show(rows)
    about = environment(torch.device("cpu")) | {"options": dataclasses.asdict(options) | {"output": None}}
    for path in write(options.output, "epoch-cpu", rows, about):
        print(f"written: {path}")


def make_images(folder: Path, count: int) -> None:
    """Splits `train` and `test` of 32×32 images in ten classes, as PNG in parquet files."""
    generator = np.random.default_rng(0)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
    )
    folder.mkdir()
    datasets.disable_progress_bars()
    for split, number in (("train", count), ("test", 128)):
        small = generator.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8)
        images = [Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC) for pixels in small]
        rows = {"img": [{"bytes": png(image), "path": None} for image in images], "label": np.arange(number) % 10}
        datasets.Dataset.from_dict(rows, features).to_parquet(str(folder / f"{split}.parquet"))


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def run(tree: Path, output: Path, folder: Path, options: Options) -> dict[str, float]:
    """Two epochs by a commit's recipe: seconds of the second one, processor seconds of all."""
    variables = os.environ | {
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}",
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, str(tree / "recipes" / RECIPE), "--data-dir", str(folder / "images"), "--cpu"]
    command += ["--width", str(options.width), "--epochs", "2", "--validation-fraction", "0"]
    command += ["--output-dir", str(output), *options.flags.split()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"epoch: {' '.join(command)} failed.\n{done.stderr[-4000:]}")
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": last["seconds"], "processor_seconds": processor}


def summary(name: str, runs: list[dict[str, float]], options: Options) -> dict[str, Any]:
    """A row: the median and the range of the runs."""
    seconds = sorted(run["seconds"] for run in runs)
    whole = EPOCH_STEPS / options.steps
    return {
        "commit": name,
        "case": f"vgg11-w{options.width:g}-b128",
        "steps": options.steps,
        "step_ms": round(1e3 * median(seconds) / options.steps),
        "epoch_s": round(whole * median(seconds), 1),
        "epoch_s_lowest": round(whole * seconds[0], 1),
        "epoch_s_highest": round(whole * seconds[-1], 1),
        "run_processor_s": round(median(run["processor_seconds"] for run in runs), 1),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
