"""By what to choose the epoch whose weights are kept: validation accuracy, its ties broken, validation loss, or none.

    python bench/checkpoint_choice.py train_cnn_mnist --data-dir MNIST --images 12000
    python bench/checkpoint_choice.py quickstart --data-dir FASHION_MNIST

Trains on some of the training images and keeps every epoch's weights. Those that were not trained on are then drawn
into validation images, which choose an epoch by each rule, and others, which score it, many times over: one training
tells the rules apart to a few hundredths of a point, and no test image is looked at. Rows of other recipes stay.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from _record import ROOT, environment, write
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.evaluation import load_network
from ttfs_triton.train.checkpoint import load_checkpoint

# From (right answers, loss) of each epoch on the validation images to the place of the one that is kept.
RULES: dict[str, Callable[[Tensor, Tensor], int]] = {
    "accuracy, first of ties": lambda right, _: int(right.eq(right.max()).nonzero()[0]),
    "accuracy, last of ties": lambda right, _: int(right.eq(right.max()).nonzero()[-1]),
    "accuracy, then loss": lambda right, loss: int(torch.where(right == right.max(), loss, torch.inf).argmin()),
    "loss": lambda _, loss: int(loss.argmin()),
    "last epoch": lambda right, _: len(right) - 1,
}


@dataclasses.dataclass
class Options:
    """Train, score every epoch, compare the rules; write bench/results/checkpoint_choice.csv."""

    recipe: tyro.conf.Positional[str]
    """Of recipes/, without .py."""
    data_dir: Path
    """Local folder of the data set."""
    images: int | None = None
    """Training images. Default: those that the flags say, such as the bundled sample."""
    flags: str = ""
    """More flags of the recipe."""
    seeds: tuple[int, ...] = (0, 1, 2)
    validation: tuple[int, ...] = (300, 3000)
    """Validation images that choose."""
    held_out: int = 10_000
    """Images that were not trained on and are scored."""
    draws: int = 300
    """How often validation images are drawn."""
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    about = environment(torch.device("cpu"))
    everything = load_images(None, options.data_dir, split="train")
    path = options.output / "checkpoint_choice.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    rows = [row for row in rows if row["recipe"] != options.recipe]
    for seed in options.seeds:
        right, loss = train_and_score(options, seed, everything)
        print(f"seed {seed}: " + " ".join(f"{value:.2%}" for value in right.double().mean(1)), flush=True)
        for size in options.validation:
            for rule, (accuracy, epoch) in compare(right, loss, size, options.draws).items():
                row = {"recipe": options.recipe, "flags": options.flags, "images": options.images or "", "seed": seed}
                row |= {"validation": size, "rule": rule, "accuracy": round(accuracy, 5), "epoch": round(epoch, 1)}
                rows.append(row | {key: about[key] for key in ("device", "torch", "commit", "utc")})
    for size in options.validation:
        for rule in RULES:
            mine = [
                row for row in rows if (row["recipe"], row["validation"], row["rule"]) == (options.recipe, size, rule)
            ]
            print(f"{size} images, {rule}: {mean(row['accuracy'] for row in mine):.3%}")
    for file in write(options.output, "checkpoint_choice", rows, about):
        print(f"written: {file}")


def train_and_score(options: Options, seed: int, everything: ImageData) -> tuple[Tensor, Tensor]:
    """Right answers and losses [epochs, held-out images] of every epoch of one training."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "recipes" / f"{options.recipe}.py"), "--seed", str(seed)]
        command += ["--output-dir", str(run), "--validation-fraction", "0", "--keep-checkpoints", "1000"]
        command += ["--max-test-samples", "1", *shlex.split(options.flags)]
        if options.images is not None:
            command += ["--max-train-samples", str(options.images), "--data-dir", str(options.data_dir)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        trained = load_images(
            None if options.images else "sample",
            options.data_dir if options.images else None,
            split="train",
            max_samples=options.images,
        )
        images, labels = outside(everything, trained, options.held_out)
        found = [score(run, checkpoint, images, labels) for checkpoint in sorted((run / "checkpoints").glob("step-*"))]
    return torch.stack([right for right, _ in found]), torch.stack([loss for _, loss in found])


def outside(everything: ImageData, trained: ImageData, most: int) -> tuple[Tensor, Tensor]:
    """Images and labels that were not trained on, the last `most` of them."""
    images, known = everything.images, {image.numpy().tobytes() for image in trained.images}
    places = [place for place, image in enumerate(images) if image.numpy().tobytes() not in known][-most:]
    return images[places], everything.labels[places]


@torch.no_grad()
def score(run: Path, checkpoint: Path, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each image is classified rightly by a checkpoint's weights, averaged ones where there are any; losses."""
    network = load_network(run).network.eval()
    tensors = load_checkpoint(checkpoint).tensors
    if "average" in tensors:
        average = tensors["average"].items()
        network.load_state_dict(
            {key.removeprefix("module."): value for key, value in average if "n_averaged" not in key}
        )
    else:
        network.load_state_dict(tensors["model"])
    logits = torch.cat([network(some.float() / 255) for some in images.split(500)])
    return logits.argmax(1) == labels, cross_entropy(logits, labels, reduction="none")


def compare(right: Tensor, loss: Tensor, validation: int, draws: int) -> dict[str, tuple[float, float]]:
    """Accuracy of the epoch that each rule chooses, and its number, as means over draws.

    Args:
        right: [epochs, images], whether an image is classified rightly.
        loss: [epochs, images].
        validation: images that choose; the others score.
        draws: how often these are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    correct, values = right.double(), loss.double()
    sums: dict[str, list[tuple[float, int]]] = {rule: [] for rule in RULES}
    for _ in range(draws):
        order = torch.randperm(right.shape[1], generator=generator)
        chosen, others = order[:validation], order[validation:]
        scored = correct[:, others].mean(1)
        accuracy, average = correct[:, chosen].sum(1), values[:, chosen].mean(1)
        for rule, choose in RULES.items():
            epoch = choose(accuracy, average)
            sums[rule].append((scored[epoch].item(), epoch + 1))
    return {rule: (mean(a for a, _ in found), mean(e for _, e in found)) for rule, found in sums.items()}


if __name__ == "__main__":
    main()
