"""Started by `accelerate launch` with the files in recipes/accelerate, on the CPU: processes train as one does."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.runs import ROOT, best, command, environment, make_images, metrics, run

FOLDER = ROOT / "recipes" / "accelerate"
# Five optimiser steps of 24 images, which four processes divide.
SETTINGS = "\nepochs: 1\ndropout: 0.0\nema_decay: 0.0\nbatch_size: 24\n"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, write_parquet) -> Path:
    folder = tmp_path_factory.mktemp("accelerate")
    data = make_images(folder / "images", write_parquet, train=163)
    result = run(folder, data, folder / "run", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def launch(folder: Path, data: Path, name: str, *flags: str) -> subprocess.Popen[str]:
    """Start a small run on the CPU (gloo) by `accelerate launch`, all else as the file says."""
    recipe = command(folder, data, folder / "run", "--mixed-precision", "no", settings=SETTINGS)[1:]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    return subprocess.Popen(
        [*launcher, *flags, *recipe],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "nodes", "processes"),
    [
        ("cpu", 1, 1),
        pytest.param("multi_gpu", 1, 2, marks=pytest.mark.slow),
        pytest.param("multi_node", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_launched_processes_train_as_one_does(one_process, tmp_path, name, nodes, processes):
    flags = ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    flags += ["--main_process_ip", "127.0.0.1"] if nodes > 1 else []
    ranks = [["--machine_rank", str(rank)] if nodes > 1 else [] for rank in range(nodes)]
    launched = [launch(tmp_path, one_process.parent / "images", name, *flags, *rank) for rank in ranks]
    try:
        outputs = [process.communicate(timeout=300) for process in launched]
    finally:
        for process in launched:
            process.kill()
    for process, (_, errors) in zip(launched, outputs, strict=True):
        assert process.returncode == 0, errors
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one_process, tmp_path / "run")]
    assert summaries[1]["processes"] == processes
    assert summaries[0]["test_accuracy"] == summaries[1]["test_accuracy"]
    for line, other in zip(metrics(one_process), metrics(tmp_path / "run"), strict=True):
        assert line["train_accuracy"] == other["train_accuracy"]
        assert line["val_accuracy"] == other["val_accuracy"]
        assert line["train_loss"] == pytest.approx(other["train_loss"], abs=1e-6)
    for weight, value in best(one_process).items():
        torch.testing.assert_close(value, best(tmp_path / "run")[weight], atol=1e-5, rtol=0)
