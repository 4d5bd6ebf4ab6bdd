"""The quick start's accuracy on images that neither it nor its tests see, by seed: what its settings are chosen by.

    python bench/quickstart.py --data-dir FASHION_MNIST
    python bench/quickstart.py --data-dir FASHION_MNIST --flags="--cutout 8 --epochs 40" --name cutout

Fashion-MNIST has 60,000 training images, of which the bundled sample holds 6,000; 10,000 of the others are scored here.
Each seed is a run of recipes/quickstart.py, in a process of its own, that scores one test image only. Rows of other
names stay in the table, each with its own commit and machine. Seconds are of the process's CPU time.
"""

import dataclasses
import json
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro
from _record import ROOT, environment, read, write
from accelerate import Accelerator
from torch import Tensor

from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.evaluation import load_network
from ttfs_triton.scoring import EvaluationBatches, evaluate

HELD_OUT = 10_000


@dataclasses.dataclass
class Options:
    """Train the quick start with several seeds and score held-out images."""

    data_dir: Path
    """Local folder of Fashion-MNIST."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    flags: str = ""
    """More flags of recipes/quickstart.py, as on a command line."""
    name: str = "quickstart"
    """Of the rows."""
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    about = environment(torch.device("cpu"))
    data = load_images(None, options.data_dir, split="train", max_bad_images=0)
    held_out = outside(data, load_images("sample", split="train", max_bad_images=0))
    rows = [row for row in read(options.output / "quickstart.csv")[0] if row["name"] != options.name]
    mine = []
    for seed in options.seeds:
        mine.append(row_of(options, seed, data, held_out) | {key: about[key] for key in ("device", "commit", "utc")})
        print(f"{options.name}, seed {seed}: {mine[-1]['accuracy']:.2%}, {mine[-1]['cpu_s']:.0f} s", flush=True)
    accuracies = [row["accuracy"] for row in mine]
    if len(mine) > 1:
        print(f"mean {mean(accuracies):.2%} ± {stdev(accuracies):.2%} of {len(held_out):,} held-out images")
    write(options.output, "quickstart", [*rows, *mine], about)


def outside(data: ImageData, sample: ImageData) -> Tensor:
    """Indices of the last `HELD_OUT` training images that are not in the sample."""
    images, known = data.images, {image.numpy().tobytes() for image in sample.images}
    found = [place for place, image in enumerate(images) if image.numpy().tobytes() not in known]
    return torch.tensor(found[-HELD_OUT:])


def row_of(options: Options, seed: int, data: ImageData, held_out: Tensor) -> dict[str, Any]:
    """Train one seed and score it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            str(ROOT / "recipes" / "quickstart.py"),
            "--seed",
            str(seed),
            "--output-dir",
            str(run),
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, "--max-test-samples", "1", *shlex.split(options.flags)], check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        network = load_network(run).network
        summary = json.loads((run / "summary.json").read_text())
    found = evaluate(network, EvaluationBatches(data, held_out, 500), Accelerator(cpu=True))
    return {
        "name": options.name,
        "flags": options.flags,
        "seed": seed,
        "accuracy": found.accuracy,
        "first_spike_accuracy": found.first_spike_accuracy,
        "sparsity": found.sparsity,
        "epochs": summary["epochs"],
        "best_epoch": summary["best_epoch"],
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }


if __name__ == "__main__":
    main()
