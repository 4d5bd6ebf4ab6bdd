"""Small runs: their keys, images and results."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from tests.data.fixtures import write_parquet
from ttfs_triton.train import Callback, TrainConfig

ROOT = Path(__file__).parents[2]

# The keys of a small run.
SETTINGS = {"model": "4C3-P2-8", "epochs": 3, "batch_size": 16, "lr": 2e-2, "shift": 1, "dropout": 0.1, "cpu": True}
SETTINGS |= {"ema_decay": 0.9, "evaluation_batch_size": 13, "validation_fraction": 0.2}

# A target, and keys with which the small network reaches it in seconds.
TARGET = {"target_sparsity": 0.2, "lr": 8e-3, "surrogate_width": 0.5, "dropout": 0.0, "ema_decay": 0.0}

# Most augmentations at once. Images of `make_images` keep their class, except mirrored ones.
AUGMENTATION = {"crop_padding": 1, "crop_fill": "reflect", "flip": "alternating", "auto_augment": True}
AUGMENTATION |= {"cutout": 2}


def make_images(folder: Path, train: int = 160, test: int = 45) -> Path:
    """A data set of 8×8 images in four classes: a bright quadrant under noise."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 4
        images = generator.integers(0, 90, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
        write_parquet(folder / f"{split}.parquet", images, labels.tolist(), names=["a", "b", "c", "d"])
    return folder


def environment(tmp_path: Path) -> dict[str, str]:
    """One thread and offline, so that runs are quick, exact and alone."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    }


def best(output: Path) -> dict[str, torch.Tensor]:
    """Best weights of a run."""
    return safetensors.torch.load_file(str(output / "best" / "model.safetensors"))


def last(output: Path) -> dict[str, torch.Tensor]:
    """Final weights, optimizer state, moving average and dial of a run, from its newest checkpoint."""
    return safetensors.torch.load_file(max((output / "checkpoints").glob("step-*")))


def metrics(output: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights and their description, optimizer, moving average and metrics agree bit for bit."""
    for read in (best, last):
        ours, theirs = read(one), read(other)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
    assert metrics(one) == metrics(other)
    assert (one / "best" / "config.json").read_text() == (other / "best" / "config.json").read_text()


class At(Callback):
    """Calls a function after a step; by default, asks the run to stop."""

    def __init__(self, step: int, act: Callable[[Any], object] = lambda _: signal.raise_signal(signal.SIGTERM)) -> None:
        self.step, self.act = step, act

    def on_step(self, loop: Any) -> None:
        if loop.position.step == self.step:
            self.act(loop)


def change(config: TrainConfig, **values: Any) -> TrainConfig:
    """The same run but for these keys."""
    return TrainConfig(**config.model_dump() | values)
