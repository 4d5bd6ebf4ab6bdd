"""What the weights of an ANN are worth as a start: copied, calibrated, fine-tuned, beside training from scratch.

    python bench/conversion.py --data-dir DIR          CIFAR-10, VGG11 at half width

Trains the ANNs of `recipes/pretrain_ann.py` (ten epochs; batch norm is folded), converts them at several σ, scores the
whole test set before and after calibration, then fine-tunes for an epoch, or three. Training from scratch gets at least
the time of fine-tuning (an epoch and calibration against two epochs), and of everything (ten epochs of an ANN and one
of a spiking network, 5/3 as expensive by operations, against seven). With --alternatives, also other ways to calibrate,
on validation images. Runs that have ended are kept, unfinished ones go on. Rates were chosen on validation images.
"""

import dataclasses
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _calibrations import ALTERNATIVES
from _record import ROOT, environment, write
from _training import read_run, train
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ttfs_triton.convert import Converted, calibrate, convert, layer_correlations
from ttfs_triton.data.images import ImageData, load_images, train_validation_split
from ttfs_triton.nn import Neuron, TTFSNetwork, sparsity
from ttfs_triton.scoring.batches import EvaluationBatches
from ttfs_triton.scoring.evaluate import Evaluation, evaluate

SHORT = "--width 0.5 --auto-augment False --cutout 0 --num-workers 0 --mixed-precision bf16".split()
ANN = [*SHORT, "--model", "vgg11", "--epochs", "10"]
BATCH_NORM = "--no-weight-standardisation --batch-norm --lr 1e-3".split()
SPIKING = [*SHORT, "--readout", "potential_start"]
FINE_TUNED, LONGER = ([*SPIKING, "--epochs", epochs, "--lr"] for epochs in ("1", "3"))

# Name → what is trained, from what: (recipe, flags, name of the ANN or None).
STANDARDISED, NORMALISED = "ANN, standardised weights", "ANN, batch norm"
RUNS: dict[str, tuple[str, list[str], str | None]] = {
    STANDARDISED: ("pretrain_ann", ANN, None),
    NORMALISED: ("pretrain_ann", [*ANN, *BATCH_NORM], None),
    "fine-tuned": ("train_vgg11_cifar10", [*FINE_TUNED, "2e-3"], STANDARDISED),
    "fine-tuned, σ = 0.25": ("train_vgg11_cifar10", [*FINE_TUNED, "2e-3", "--psp-persistence", "0.25"], STANDARDISED),
    "fine-tuned for 3 epochs": ("train_vgg11_cifar10", [*LONGER, "2e-3"], STANDARDISED),
    "fine-tuned for 3 epochs, σ = 0.25": (
        "train_vgg11_cifar10",
        [*LONGER, "2e-3", "--psp-persistence", "0.25"],
        STANDARDISED,
    ),
    "fine-tuned, not calibrated": (
        "train_vgg11_cifar10",
        [*FINE_TUNED, "2e-3", "--calibration-images", "0"],
        STANDARDISED,
    ),
    "fine-tuned, batch norm": (
        "train_vgg11_cifar10",
        [*FINE_TUNED, "2e-3", "--no-weight-standardisation"],
        NORMALISED,
    ),
    "from scratch, 2 epochs": ("train_vgg11_cifar10", [*SPIKING, "--epochs", "2"], None),
    "from scratch, 7 epochs": ("train_vgg11_cifar10", [*SPIKING, "--epochs", "7"], None),
}
SIGMAS = (0.0, 0.25, 0.5, 1.0)


@dataclasses.dataclass
class Options:
    """Convert, calibrate, fine-tune; write bench/results/conversion-cifar10.csv."""

    data_dir: Path | None = None
    """Local folder with CIFAR-10. Default: the Hub."""
    runs: Path = Path("runs/conversion")
    """Where the runs' folders go."""
    only: tuple[str, ...] = ()
    """Train only runs of these names. Default: all. The table needs both ANNs; other runs may be missing."""
    train: bool = True
    """Train what is missing."""
    alternatives: bool = False
    """Compare ways to calibrate on validation images instead; writes conversion-calibration.csv."""
    calibration_images: int = 256
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where networks are calibrated and scored. Recipes train on a GPU where there is one."""
    jobs: int = 1
    """Runs side by side, once the ANNs are there."""
    threads: int | None = None
    """Threads of each. Default: all."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("conversion: --device cuda must have a GPU that PyTorch can use; found none. Use --device cpu.")
    if options.train:
        train_all(options)
    anns = {name: folder_of(options, name) for name in (STANDARDISED, NORMALISED)}
    images = load_images(None if options.data_dir else "uoft-cs/cifar10", options.data_dir, split="train")
    fitting, validation = train_validation_split(images, 0.1, seed=0)
    some = images.images_at(fitting[: options.calibration_images]).to(device).float() / 255
    if options.alternatives:
        rows, name = compare_calibrations(anns[STANDARDISED], some, images, validation), "conversion-calibration"
    else:
        test = load_images(None if options.data_dir else "uoft-cs/cifar10", options.data_dir, split="test", like=images)
        rows = [row for name, folder in anns.items() for row in conversion_rows(name, folder, some, test)]
        rows += [row for name in RUNS if name not in anns and (row := run_row(options, name)) is not None]
        name = "conversion-cifar10"
    show(rows)
    for path in write(ROOT / "bench/results", name, rows, environment(device)):
        print(f"written: {path.relative_to(ROOT)}")


def train_all(options: Options) -> None:
    """Both ANNs first, which the others may start from."""
    names = [name for name in RUNS if not options.only or name in options.only]
    for group in ([name for name in names if RUNS[name][2] is None], [name for name in names if RUNS[name][2]]):
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda name: train_one(options, name), group))


def train_one(options: Options, name: str) -> None:
    recipe, flags, ann = RUNS[name]
    weights = [] if ann is None else ["--weights", str(folder_of(options, ann))]
    train(recipe, [*flags, *weights], folder_of(options, name), options.data_dir, options.threads)


def folder_of(options: Options, name: str) -> Path:
    """The run's folder."""
    return options.runs / "".join(c if c.isalnum() or c in ".=" else "-" for c in name)


def conversion_rows(name: str, folder: Path, some: Tensor, test: ImageData) -> list[dict[str, Any]]:
    """The ANN, then copied and calibrated networks at each σ, on the test set."""
    summary = read_run(folder)
    if summary is None:
        raise SystemExit(f"conversion: {folder} must hold a run that has ended. Leave out --no-train.")
    seconds = summary["epochs"] * summary["seconds_per_epoch"]
    rows = [make_row(name, None, "trained", summary["test_accuracy"], summary["sparsity"], seconds)]
    for sigma in SIGMAS:
        converted = converted_on(some.device, folder, neuron=Neuron(sigma))
        copied = score(converted.network, test)
        correlation = last_correlation(converted, some)
        rows.append(make_row(name, sigma, "copied", copied.accuracy, sparsity(copied.layers), 0.0, correlation))
        start = time.perf_counter()
        layers = calibrate(converted.network, converted.ann, some).layers
        seconds = time.perf_counter() - start
        found = score(converted.network, test)
        rows.append(
            make_row(name, sigma, "calibrated", found.accuracy, sparsity(found.layers), seconds, layers[-1].after)
        )
    return rows


def run_row(options: Options, name: str) -> dict[str, Any] | None:
    """A fine-tuned network, or one trained from scratch; None if it has not been trained."""
    summary = read_run(folder_of(options, name))
    if summary is None:
        return None
    _, flags, ann = RUNS[name]
    sigma = float(flags[flags.index("--psp-persistence") + 1]) if "--psp-persistence" in flags else 1.0
    seconds = summary["epochs"] * summary["seconds_per_epoch"]
    stage = name.split(", σ")[0]
    return make_row(ann or "", sigma, stage, summary["test_accuracy"], summary["sparsity"], seconds)


def make_row(
    start: str,
    sigma: float | None,
    stage: str,
    accuracy: float,
    spikes: float,
    seconds: float,
    correlation: float | None = None,
) -> dict[str, Any]:
    return {
        "start": start,
        "sigma": "" if sigma is None else sigma,
        "stage": stage,
        "accuracy": round(accuracy, 4),
        "sparsity": round(spikes, 4),
        "correlation_last_layer": "" if correlation is None else round(correlation, 3),
        "seconds": round(seconds, 1),
    }


def compare_calibrations(folder: Path, some: Tensor, images: ImageData, validation: Tensor) -> list[dict[str, Any]]:
    """Every way to calibrate, at σ = 1, on the validation images."""
    rows = []
    for name, method in ALTERNATIVES.items():
        converted = converted_on(some.device, folder, neuron=Neuron(), keep_standardisation=False)
        torch.manual_seed(0)
        start = time.perf_counter()
        method(converted, some)
        seconds = time.perf_counter() - start
        found = score(converted.network, images, validation)
        correlation = last_correlation(converted, some)
        rows.append(
            make_row(STANDARDISED, 1.0, name, found.accuracy, sparsity(found.layers), seconds, correlation)
            | {"images": "validation"}
        )
    return rows


def converted_on(device: torch.device, folder: Path, **options: Any) -> Converted:
    """What `convert` makes of a run, on a device."""
    converted = convert(folder, **options)
    converted.network.to(device)
    converted.ann.to(device)
    return converted


def score(network: TTFSNetwork, images: ImageData, indices: Tensor | None = None) -> Evaluation:
    on_cpu = next(network.parameters()).device.type == "cpu"
    return evaluate(network, EvaluationBatches(images, indices, 500), Accelerator(cpu=on_cpu))


def last_correlation(converted: Converted, some: Tensor) -> float | None:
    """Of the last hidden layer with the ANN's, on the calibration images."""
    return list(layer_correlations(converted.network, converted.ann, some).values())[-1]


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    table = Table(*rows[0], title="CIFAR-10, VGG11 at half width", title_justify="left")
    for row in rows:
        accuracy = f"{row['accuracy']:.2%}"
        table.add_row(*(accuracy if key == "accuracy" else str(value) for key, value in row.items()))
    Console().print(table)


if __name__ == "__main__":
    main()
