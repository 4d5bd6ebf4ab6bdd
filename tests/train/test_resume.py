"""Real runs, stopped by a signal in every phase or killed at any moment: what is resumed is the run, bit for bit."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import AUGMENTATION, SETTINGS, assert_same_run, command, environment
from ttfs_triton.train import TrainConfig, train

GOES_ON = "Go on with: "  # then "python", or its path if its environment is not active
ENDS = "Interrupted. Nothing that was saved is lost."
# A phase that lasts as long as a test needs it to.
SLOW = """
import sys, time
from pathlib import Path
import ttfs_triton.train.resume as resume, ttfs_triton.train.run as run, ttfs_triton.evaluate.batches as batches
from ttfs_triton.command_line import start
phase, seconds = sys.argv.pop(1), float(sys.argv.pop(1))
def slow(home, name):
    real = getattr(home, name)
    def call(*arguments, **options):
        Path("ready").touch()
        time.sleep(seconds)
        return real(*arguments, **options)
    setattr(home, name, call)
if phase == "final test":
    score = run.score_run
    run.score_run = lambda trainer: (slow(batches.EvaluationBatches, "gather"), score(trainer))[1]
else:
    slow({"_train_step": run.TrainingLoop, "save_checkpoint": resume}.get(phase, run), phase)
start("ttfs_triton.train", Path(sys.argv.pop(1)), "A small run.")
"""
# A checkpoint after every other step, so that a kill often falls into the writing of one.
KILLED: dict[str, Any] = {"checkpoint_steps": 2, **AUGMENTATION}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the processes have: results are compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(folder, data)
    return folder


def finish(folder: Path, data: Path, **values: Any) -> None:
    """Start a run, or go on with it, in this process, by one thread: results are compared bit by bit."""
    torch.set_num_threads(1)
    values = SETTINGS | {"data_dir": data, "output_dir": folder} | values
    train(TrainConfig(**values, resume=(folder / "config.yaml").exists()))


def begin(words: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    """Start in a process group of its own, as a terminal does."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, env=environment(tmp_path), cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, process_group=0
    )


def wait_for(ready: Callable[[], object], runs: Callable[[], bool]) -> None:
    """Wait until something is ready, while a process runs."""
    deadline = time.monotonic() + 120
    while not ready() and runs() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert ready()


def newest(run: Path) -> int:
    """Step of a run's newest checkpoint; -1 if there is none."""
    return max((int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("step-*")), default=-1)


@pytest.mark.parametrize(
    ("phase", "seconds", "signals", "says"),
    [
        pytest.param("load_data", 60, 1, ENDS, marks=pytest.mark.slow),
        pytest.param("_train_step", 0.3, 1, GOES_ON, marks=pytest.mark.slow),
        ("save_checkpoint", 60, 2, ENDS),
        pytest.param("final test", 0.3, 1, GOES_ON, marks=pytest.mark.slow),
        pytest.param("_publish", 60, 1, ENDS, marks=pytest.mark.slow),
    ],
)
def test_interrupt_ends_every_phase_with_a_line(tmp_path, data, uninterrupted, phase, seconds, signals, says):
    words = command(tmp_path, data, tmp_path / "run")
    (tmp_path / "small.py").write_text(SLOW)
    process = begin([*words[:2], phase, str(seconds), *words[2:]], tmp_path)
    wait_for((tmp_path / "ready").exists, lambda: process.poll() is None)
    for _ in range(signals):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.1)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert shown.strip().splitlines()[-1].startswith(says)
    finish(tmp_path / "run", data)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signal_to_all_leaves_worker_processes_to_the_main_one(tmp_path, data, number):
    """A terminal sends Ctrl-C to all of them; a worker that ended would end the run without a checkpoint."""
    process = begin(command(tmp_path, data, tmp_path / "run", streaming=True, num_workers=2, epochs=60), tmp_path)
    wait_for(lambda: newest(tmp_path / "run") >= 1, lambda: process.poll() is None)
    os.killpg(process.pid, number)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 128 + number, shown
    assert "Traceback" not in shown
    assert number.name in shown
    assert shown.strip().splitlines()[-1].startswith(GOES_ON)
    assert f"--output-dir {tmp_path / 'run'} --resume" in shown


def test_run_killed_at_random_moments_equals_the_uninterrupted_one(tmp_path, data):
    chance, folder = random.Random(7), tmp_path / "run"
    server = get_context("forkserver")  # imports PyTorch once
    server.set_forkserver_preload(["torch._dynamo", "ttfs_triton.train.run"])
    for kill in range(5):
        process = server.Process(target=finish, args=(folder, data), kwargs=KILLED)
        process.start()
        step = 4 * kill + chance.randrange(4)
        wait_for(lambda step=step: newest(folder) >= step, process.is_alive)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    finish(folder, data, **KILLED)
    finish(tmp_path / "whole", data, **KILLED)
    assert_same_run(folder, tmp_path / "whole")
    assert not list((folder / "checkpoints").glob(".*"))


def test_resume_leaves_an_ended_run_as_it_is(data, uninterrupted, capsys):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    finish(uninterrupted, data)
    assert "has ended already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, "rank 1"), (signal.SIGINT, "all")])
def test_signal_to_one_of_two_processes_or_to_all_and_their_launcher_saves(tmp_path, data, number, to):
    words = command(tmp_path, data, tmp_path / "run", epochs=500, checkpoint_steps=5, processes=2)
    script = tmp_path / "small.py"
    script.write_text("import os\nopen('rank-' + os.environ['RANK'], 'w').write(str(os.getpid()))" + script.read_text())
    process = begin(words, tmp_path)
    wait_for(lambda: newest(tmp_path / "run") >= 1, lambda: process.poll() is None)
    ranks = [int((tmp_path / f"rank-{rank}").read_text()) for rank in (0, 1)]
    for target in ranks[1:] if to == "rank 1" else [*ranks, process.pid]:
        os.kill(target, number)
    _, shown = process.communicate(timeout=120)
    assert process.returncode != 0
    last = tmp_path / "run" / "checkpoints" / f"step-{newest(tmp_path / 'run'):08}.safetensors"
    lines = [line for line in shown.splitlines() if " received: stopped after step " in line]
    assert f"{number.name} received" in "".join(lines), shown
    assert all(line.endswith(f"checkpoint {last}.") for line in lines), shown
    assert GOES_ON in shown
    assert not any((tmp_path / "run" / "checkpoints").glob(".*"))
