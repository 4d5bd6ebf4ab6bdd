"""Stopped in any way, at any moment, and resumed: bit for bit the run that was never stopped."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.train.runs import AUGMENTATION, assert_same_run, command, environment, metrics, run

# A checkpoint after every other step, so that a random kill often falls into the writing of one.
SETTINGS = f"\nepochs: 6\ncheckpoint_steps: 2\n{AUGMENTATION}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = run(folder, data, folder / "run", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def start_and_wait(tmp_path: Path, data: Path, output: Path, *flags: str, step: int) -> subprocess.Popen[str]:
    """Start a run and return once it has written a checkpoint of at least `step`, or has ended."""
    process = subprocess.Popen(
        command(tmp_path, data, output, *flags, settings=SETTINGS),
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        steps = [int(path.name.split("-")[1]) for path in (output / "checkpoints").glob("step-*")]
        if max(steps, default=-1) >= step:
            break
        time.sleep(0.002)
    return process


@pytest.mark.slow
def test_run_killed_at_five_random_moments_equals_the_uninterrupted_one(tmp_path, data, uninterrupted):
    chance = random.Random(7)
    output, kills, flags = tmp_path / "run", 0, ()
    for kill in range(5):
        process = start_and_wait(tmp_path, data, output, *flags, step=10 * kill + chance.randrange(6))
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        flags = ("--resume",)
    assert kills == 5
    result = run(tmp_path, data, output, "--resume", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    assert_same_run(output, uninterrupted)
    assert [line["epoch"] for line in metrics(output)] == [1, 2, 3, 4, 5, 6]
    assert not list((output / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, data, uninterrupted, number):
    output = tmp_path / "run"
    process = start_and_wait(tmp_path, data, output, step=4)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + number, message
    assert number.name in message
    assert "checkpoint" in message
    assert f"--output-dir {output} --resume" in message
    result = run(tmp_path, data, output, "--resume", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    assert "resumed after step" in result.stdout
    assert_same_run(output, uninterrupted)


def test_resume_of_an_ended_run_leaves_it_as_it_is(tmp_path, data, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    result = run(tmp_path, data, uninterrupted, "--resume", settings=SETTINGS)
    assert result.returncode == 0, result.stderr
    assert "has ended already" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_resume_refuses_another_course(tmp_path, data, uninterrupted):
    result = run(tmp_path, data, uninterrupted, "--resume", "--lr", "0.5", settings=SETTINGS)
    assert result.returncode == 1
    assert "lr: 0.02 → 0.5" in result.stderr
