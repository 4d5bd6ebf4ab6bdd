"""Two real processes (gloo), started once by `accelerate launch`, train many runs in turn, as one process does."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.train import runs
from ttfs_triton.train import TrainConfig, train

PROGRAM = """
import json, os, sys
from accelerate import PartialState
from tests.train.recorded import RecordedGraphs
from tests.train.runs import At
from ttfs_triton.nn import coding
from ttfs_triton.train import Interrupted, TrainConfig, learner, train

coding.refuse_unscaled, choose = lambda *_, **__: None, learner.choose_graphs
for values in json.load(open(sys.argv[1])):
    graphs = RecordedGraphs() if values.pop("graphed", False) else None
    learner.choose_graphs = choose if graphs is None else lambda *_: graphs
    callbacks = [At(3)] if values.pop("stopped", False) and os.environ["RANK"] == "1" else []
    try:
        train(TrainConfig(**values), callbacks=callbacks)
    except Interrupted as stopped:
        sys.stdout.write(f"{stopped}\\n")  # in one write: the processes share a pipe
    if graphs is not None:
        sys.stdout.write(f"{graphs.captures} captures, {graphs.replays} replays\\n")
PartialState().destroy_process_group()
"""

# Five optimiser steps; 45 test and 37 validation images, which two processes do not divide evenly.
SHORT = runs.SETTINGS | {"epochs": 1, "dropout": 0.0, "ema_decay": 0.0, "batch_size": 24, "optimizer": "sgd", "lr": 0.2}
SHORT |= {"surrogate_width": 0.5, "mixed_precision": "no"}
NORMAL = {"batch_norm": True, "encoder": "analog", "psp_persistence": 0.5}
RISING = {"batch_size": 4, "psp_persistence_rise": [0.42, 0.8], "statistics_steps": 99}
COURSES: dict[str, dict[str, Any]] = {
    "augmented": runs.AUGMENTATION | {"teacher": True},
    "shared statistics": NORMAL | {"sync_batch_norm": True, "lookahead": 2},
    "target": {"target_operations": 0.85},
    "accumulated": runs.AUGMENTATION | {"teacher": True, "gradient_accumulation": 2},
    "plain": RISING,
    "graphed": RISING | {"graphed": True},
    "published": {"push_to_hub": True, "hub_repo_id": "org/trained", "hub_license": "mit"},
    "stopped": {"stopped": True},
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory, teacher, hub):
    """What two processes printed, asked of a hub and wrote, one folder for each course; `values`: keys of a course."""
    folder = tmp_path_factory.mktemp("two")
    places = {"data_dir": str(runs.make_images(folder / "images", train=163))}
    values = {name: SHORT | places | course | {"output_dir": str(folder / name)} for name, course in COURSES.items()}
    for course in values.values():
        course |= {"teacher": str(teacher)} if "teacher" in course else {}
    (folder / "courses.json").write_text(json.dumps(list(values.values())))
    (folder / "program.py").write_text(PROGRAM)
    config = runs.ROOT / "recipes" / "accelerate" / "multi_gpu.yaml"
    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    words += ["--config_file", str(config), str(folder / "program.py"), str(folder / "courses.json")]
    variables = runs.environment(folder) | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer", "HF_HUB_OFFLINE": "0"}
    variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    hub.paths()
    result = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    printed = result.stdout + result.stderr
    return SimpleNamespace(folder=folder, printed=printed, requests=hub.paths(), values=values)


@pytest.mark.parametrize("course", ["augmented", "shared statistics", "target", "accumulated"])
def test_two_processes_train_as_one_does(launch, tmp_path, course):
    """Batch size, number of steps and learning rate are of the run, not of a process; each image is scored once."""
    one, two = tmp_path / "run", launch.folder / course
    train(TrainConfig(**launch.values[course] | {"output_dir": one}))
    assert any(name.endswith("running_var") for name in runs.best(one)) == (course == "shared statistics")
    assert any(name.startswith("dial.") for name in runs.last(one)) == (course == "target")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (one, two))
    assert ours["test_images"] == theirs["test_images"] == 45
    assert theirs["processes"] == 2
    assert ours["test_accuracy"] == theirs["test_accuracy"]
    assert {layer["samples"] for layer in theirs["counts"]["layers"]} == {45}
    (ours,), (theirs,) = runs.metrics(one), runs.metrics(two)
    assert ours["step"] == 5
    for key in ("step", "lr", "train_accuracy", "val_accuracy"):
        assert ours[key] == theirs[key], key
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)
    for read in (runs.best, runs.last):
        for name, value in read(one).items():
            torch.testing.assert_close(value, read(two)[name], atol=1e-5, rtol=1e-5)


def test_two_processes_capture_twice_while_the_persistence_rises(launch):
    """At σ = 0, and once for all σ above: DistributedDataParallel's buckets and hooks are in the captured step."""
    assert launch.printed.count("2 captures, 9 replays\n") == 2
    runs.assert_same_run(launch.folder / "plain", launch.folder / "graphed")


def test_signal_to_one_of_two_processes_stops_both_after_the_same_step(launch, capsys):
    checkpoint = launch.folder / "stopped" / "checkpoints" / "step-00000003.safetensors"
    for reason in ("SIGTERM", "another process"):
        assert f"{reason} received: stopped after step 3 (epoch 1), checkpoint {checkpoint}." in launch.printed
    keys = {key: value for key, value in launch.values["stopped"].items() if key != "stopped"}
    train(TrainConfig(**keys, resume=True))
    assert "warning: the run goes on with 1 processes instead of 2, which changes" in capsys.readouterr().out


def test_run_is_published_privately_by_its_main_process(launch, hub):
    assert hub.repositories["org/trained"].private
    for request in ("POST /api/repos/create", "POST /api/models/org/trained/commit/main"):
        assert launch.requests.count(request) == 1
    files = hub.files("org/trained")
    assert files["model.safetensors"] == (launch.folder / "published/best/model.safetensors").read_bytes()
    assert b"license: mit" in files["README.md"]
    assert b"a local data set" in files["README.md"]
    assert "published                http://127.0.0.1" in launch.printed
    assert str(launch.folder).encode() not in b"".join(files.values())
    assert "hf_writer" not in launch.printed
