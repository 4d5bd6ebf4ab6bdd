"""One command from an ANN to a spiking network: killed at any point and resumed, bit for bit the same."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.train.runs import assert_same_run, command, environment, run
from ttfs_triton.train import ConfigError, TrainConfig, train

SETTINGS = """
epochs: 2
checkpoint_steps: 2
crop_padding: 1
dropout: 0
presets: {fast: {psp_persistence: 0.5}}
"""
ANN = "neuron: ann\nepochs: 3\nbatch_size: 16\nlr: 3.0e-2\nema_decay: 0.9\npresets: {fast: {}}\n"
FLAGS = ("--preset", "fast", "--pretrain")


def folder_with_recipes(path: Path) -> Path:
    (path / "pretrain_ann.yaml").write_text(ANN)
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data) -> Path:
    folder = folder_with_recipes(tmp_path_factory.mktemp("uninterrupted"))
    result = run(folder, data, folder / "run", *FLAGS, settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    assert "Calibrated on 128 images" in result.stdout  # all there are
    return folder / "run"


def test_everything_ends_in_one_folder(uninterrupted):
    spiking, ann = (json.loads((path / "summary.json").read_text()) for path in (uninterrupted, uninterrupted / "ann"))
    assert (spiking["epochs"], ann["epochs"]) == (2, 3)
    config = (uninterrupted / "config.yaml").read_text()
    assert "preset: fast" in config
    assert "pretrain: true" in config
    assert "neuron: ann" in (uninterrupted / "ann" / "config.yaml").read_text()
    assert json.loads((uninterrupted / "best" / "config.json").read_text())["base_model"]["file"] == "model.safetensors"
    assert not list(uninterrupted.rglob(".claim*"))


def start_and_kill(tmp_path: Path, data: Path, output: Path, flags: tuple[str, ...], sign: Path) -> None:
    """SIGKILL as soon as a file or folder is there."""
    process = subprocess.Popen(
        command(tmp_path, data, output, *flags, settings=SETTINGS),
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not sign.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    process.communicate()


@pytest.mark.slow
def test_killed_at_every_stage_and_resumed_it_is_the_same_run(tmp_path, data, uninterrupted):
    output, flags = folder_with_recipes(tmp_path) / "run", FLAGS
    signs = [
        output / "config.yaml",
        output / "ann" / "checkpoints" / "step-00000002",
        output / "ann" / "summary.json",
        output / "metrics.jsonl",
    ]
    for sign in signs:
        start_and_kill(tmp_path, data, output, flags, sign)
        flags = ("--resume",)
    result = run(tmp_path, data, output, "--resume", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    assert_same_run(output / "ann", uninterrupted / "ann")
    assert_same_run(output, uninterrupted)
    again = run(tmp_path, data, output, "--resume", settings=SETTINGS)
    assert "has ended already" in again.stdout


@pytest.mark.slow
def test_signal_in_the_anns_training_says_how_the_whole_goes_on(tmp_path, data, uninterrupted):
    output = folder_with_recipes(tmp_path) / "run"
    process = subprocess.Popen(
        command(tmp_path, data, output, *FLAGS, settings=SETTINGS),
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (output / "ann" / "checkpoints" / "step-00000002").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, message
    assert f"--output-dir {output} --resume" in message
    moved = output.rename(tmp_path / "moved")
    result = run(tmp_path, data, moved, "--resume", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    assert_same_run(moved, uninterrupted)


@pytest.mark.slow
def test_two_processes_pretrain_together(tmp_path, data):
    output = folder_with_recipes(tmp_path) / "run"
    result = run(tmp_path, data, output, *FLAGS, settings=SETTINGS, processes=2)
    assert result.returncode == 0, result.stderr
    assert json.loads((output / "summary.json").read_text())["processes"] == 2
    assert json.loads((output / "ann" / "summary.json").read_text())["processes"] == 2


def test_what_cannot_begin_leaves_an_old_run_alone(tmp_path, data, uninterrupted):
    folder_with_recipes(tmp_path)
    before = sorted(path.name for path in uninterrupted.rglob("*"))
    flags = (*FLAGS, "--overwrite", "--model", "4C30p0-8")
    result = run(tmp_path, data, uninterrupted, *flags, settings=SETTINGS)
    assert result.returncode == 1
    assert "Use larger images" in result.stderr
    assert sorted(path.name for path in uninterrupted.rglob("*")) == before


@pytest.mark.slow
def test_overwriting_replaces_the_ann_too(tmp_path, data):
    output = folder_with_recipes(tmp_path) / "run"
    assert run(tmp_path, data, output, *FLAGS, settings=SETTINGS).returncode == 0
    first = (output / "ann" / "best" / "model.safetensors").read_bytes()
    assert run(tmp_path, data, output, *FLAGS, "--overwrite", "--seed", "1", settings=SETTINGS).returncode == 0
    assert (output / "ann" / "best" / "model.safetensors").read_bytes() != first
    assert len((output / "ann" / "metrics.jsonl").read_text().splitlines()) == 3


def test_program_must_say_how_the_ann_is_trained():
    with pytest.raises(ConfigError, match="ann must be the ANN's configuration where pretrain is true; got None"):
        train(TrainConfig(dataset="sample", pretrain=True))
