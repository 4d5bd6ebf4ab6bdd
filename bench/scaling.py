"""What data and networks must deliver for 1, 8 and 64 GPUs, by a stated model; needs no GPU.

    python bench/scaling.py

The model, so that data are asked for the most that they ever could be:

- A GPU does nothing but products, at `--tflops`. A training step of a spiking layer has five products of two operations
  each for a synapse (two forward, one for the gradient of its input, two for that of its weights); the first layer,
  which reads pixels, has two.
- A core decodes what bench/results/decoding-cpu.csv says: random parts of 500×375 photographs, by worker processes.
- Gradients are summed by a ring in 16 or 32 bits: each GPU sends 2 (n - 1) / n of them, at `--nvlink-gb-s` in a node of
  eight, at `--network-gb-s` a GPU beyond it.
"""

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
import tyro
from _record import ROOT, environment, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ttfs_triton.nn import vgg16

NODE = 8  # GPUs


@dataclasses.dataclass
class Options:
    """What 1, 8 and 64 GPUs need."""

    tflops: float = 450.0
    """Of products in 16 bits; what libraries reach on an H100."""
    nvlink_gb_s: float = 450.0
    """That a GPU sends within a node."""
    network_gb_s: float = 50.0
    """That a GPU sends to other nodes: 400 Gb/s."""
    decoding: Path = ROOT / "bench" / "results" / "decoding-cpu.csv"
    output: Path = ROOT / "bench" / "results"


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set and VGG16 for it.

    Attributes:
        images: in an epoch.
        side: of an image in pixels.
        classes: number of classes.
        batch: images of a GPU and step.
        encoded: whether images are decoded anew each epoch.
    """

    images: int
    side: int
    classes: int
    batch: int
    encoded: bool


TASKS = {"CIFAR-10": Task(50_000, 32, 10, 128, False), "ImageNet": Task(1_281_167, 224, 1000, 64, True)}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for name in ("tflops", "nvlink_gb_s", "network_gb_s"):
        if getattr(options, name) <= 0:
            sys.exit(f"scaling: --{name.replace('_', '-')} must be positive; got {getattr(options, name)}.")
    with options.decoding.open(newline="", encoding="utf-8") as file:
        found = {(row["size"], row["work"], row["by"]): row for row in csv.DictReader(file)}
    decoded = found["500x375", "train", "1 workers"]
    rows = [needs(options, name, gpus, decoded) for name in TASKS for gpus in (1, NODE, 8 * NODE)]
    show(rows)
    about = environment(torch.device("cpu")) | {"is": "a model, not a measurement", "tasks": {}}
    about["tasks"] = {name: dataclasses.asdict(task) | network_of(task) for name, task in TASKS.items()}
    about["options"] = json.loads(json.dumps(dataclasses.asdict(options) | {"output": None, "decoding": None}))
    for path in write(options.output, "scaling", rows, about):
        print(f"written: {path}")


def network_of(task: Task) -> dict[str, int]:
    """Parameters, multiply-accumulates of a forward pass as an ANN, and operations of a training step, an image."""
    with torch.device("meta"):
        network = vgg16(image_size=task.side, classes=task.classes)
    macs: list[int] = []

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        macs.append(output[0].numel() // len(weight) * weight.numel())

    for layer in network.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() >= 2:
            layer.register_forward_hook(count)
    hidden = network.hidden(torch.empty(1, 3, task.side, task.side, device="meta"))
    readout = hidden[0].numel() * task.classes
    operations = 2 * (2 * macs[0] + 5 * (sum(macs[1:]) + readout))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "macs": sum(macs) + readout, "training_operations": operations}


def needs(options: Options, name: str, gpus: int, decoded: dict[str, str]) -> dict[str, Any]:
    """A row: what so many GPUs take and have to be given."""
    task = TASKS[name]
    network = network_of(task)
    rate = gpus * options.tflops * 1e12 / network["training_operations"]
    sent = 2 * (gpus - 1) / gpus * network["parameters"]
    speed = 1e9 * (options.nvlink_gb_s if gpus <= NODE else options.network_gb_s)
    pixels = 3 * task.side**2
    return {
        "task": name,
        "gpus": gpus,
        "images_per_second": round(rate),
        "epoch_s": round(task.images / rate, 2),
        "cores": round(rate / float(decoded["images_per_core_second"]), 1) if task.encoded else 0,
        "read_mb_s": round(rate * float(decoded["kilobytes"]) / 1e3) if task.encoded else 0,
        "to_gpus_uint8_mb_s": round(rate * pixels / 1e6) if task.encoded else 0,
        "to_gpus_float32_mb_s": round(4 * rate * pixels / 1e6) if task.encoded else 0,
        "batch_of_a_gpu": task.batch,
        "step_ms": round(1e3 * task.batch * gpus / rate, 2),
        "gradients_float32_ms": round(1e3 * 4 * sent / speed, 2),
        "gradients_bf16_ms": round(1e3 * 2 * sent / speed, 2),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    table = Table(*(name.replace("_", " ") for name in rows[0]), title="a model, not a measurement")
    for row in rows:
        table.add_row(*(f"{value:,}" if not isinstance(value, str) else value for value in row.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
