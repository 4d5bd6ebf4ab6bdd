"""Real processes (gloo), started by torchrun or `accelerate launch`, do what one does."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import runs
from tests.train.runs import AUGMENTATION, ROOT, best, command, environment, last, make_images, metrics, run

# Five optimiser steps; 45 test and 37 validation images, which two processes do not divide evenly.
SHORT = {"epochs": 1, "dropout": 0.0, "ema_decay": 0.0, "batch_size": 24, "optimizer": "sgd", "lr": 0.2}
SHORT |= {"surrogate_width": 0.5}
NORMAL = {"batch_norm": True, "encoder": "analog", "psp_persistence": 0.5}
COURSES = {
    "augmented": AUGMENTATION,
    "shared statistics": NORMAL | {"sync_batch_norm": True, "lookahead": 2},
    "target": {"target_operations": 0.85},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), train=163)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images, teacher) -> Callable[..., Path]:
    """Folder of a run of a course, in so many processes; each is trained once."""

    @cache
    def train(course: str, processes: int = 1, **key: Any) -> Path:
        folder, settings = tmp_path_factory.mktemp("distributed"), SHORT | COURSES[course] | key
        settings |= {"teacher": str(teacher)} if course == "augmented" else {}
        result = run(folder, images, folder / "run", processes=processes, **settings)
        assert result.returncode == 0, result.stderr
        return folder / "run"

    return train


def assert_trained_alike(one: Path, other: Path, processes: int) -> None:
    """Batch size, number of steps and learning rate are of the run, not of a process; each image is scored once."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert summaries[0]["test_images"] == summaries[1]["test_images"] == 45
    assert summaries[1]["processes"] == processes
    assert summaries[0]["test_accuracy"] == summaries[1]["test_accuracy"]
    assert {layer["samples"] for layer in summaries[1]["counts"]["layers"]} == {45}
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        for key in ("step", "lr", "train_accuracy", "val_accuracy"):
            assert ours[key] == theirs[key], key
        assert ours["step"] == 5
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)
    for read in (best, last):
        for name, value in read(one).items():
            torch.testing.assert_close(value, read(other)[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("course", ["augmented", "shared statistics", pytest.param("target", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_does(trained, course):
    one, two = trained(course), trained(course, 2)
    assert any(name.endswith("running_var") for name in best(one)) == (course == "shared statistics")
    assert any(name.startswith("dial.") for name in last(one)) == (course == "target")
    assert_trained_alike(one, two, processes=2)


def test_two_processes_capture_twice_while_the_persistence_rises(tmp_path, images):
    """At σ = 0, and once for all σ above: DistributedDataParallel's buckets and hooks are in the captured step."""
    settings = SHORT | {"batch_size": 4, "psp_persistence_rise": [0.42, 0.8], "statistics_steps": 99}
    for name, program in (("plain", runs.SCRIPT), ("graphed", runs.GRAPHED)):
        result = run(tmp_path, images, tmp_path / name, processes=2, program=program, **settings)
        assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 captures, 9 replays\n") == 2
    runs.assert_same_run(tmp_path / "plain", tmp_path / "graphed")


@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), pytest.param("multi_gpu", 2, marks=pytest.mark.slow)])
def test_processes_of_accelerate_launch_train_as_one_does(trained, images, tmp_path, name, processes):
    """With the files in recipes/accelerate, on the CPU (gloo)."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{name}.yaml"), "--main_process_port", "0"]
    settings = SHORT | COURSES["shared statistics"]
    recipe = command(tmp_path, images, tmp_path / "run", "--mixed-precision", "no", **settings)
    words, variables = [*launch, *recipe[1:]], environment(tmp_path)
    result = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert_trained_alike(trained("shared statistics"), tmp_path / "run", processes)


@pytest.mark.slow
def test_two_processes_accumulate_gradients(trained):
    """Gradients that live in buckets are added up over micro-batches before they are exchanged."""
    folders = trained("augmented"), trained("augmented", 2, gradient_accumulation=2)
    ours, theirs = (torch.cat([value.flatten() for value in best(folder).values()]) for folder in folders)
    assert (ours - theirs).norm() / ours.norm() < 1e-5
