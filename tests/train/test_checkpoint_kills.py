"""Processes killed while they save: after each kill the newest checkpoint is whole."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ttfs_triton.train.checkpoint import clean_partial, latest_checkpoint, load_checkpoint

# Reads `<folder> <size> <first step> <last step> <event at which to die, or 0>` a line and forks a child that saves
# these steps, so that torch is imported once.
SERVER = """
import os, sys, torch
from pathlib import Path
from ttfs_triton.train.checkpoint import save_checkpoint

def save_steps(folder, size, first, last, fatal_event):
    events = 0
    def count(event, _):
        nonlocal events
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            events += 1
            if events == fatal_event:
                os._exit(9)
    if fatal_event:
        sys.addaudithook(count)
    Path(folder).mkdir(exist_ok=True)
    for step in range(first, last + 1):
        tensors = {"model": {"weight": torch.full((size,), float(step))}, "ema": {"a": torch.ones(3)}}
        save_checkpoint(Path(folder), step, tensors=tensors, state={"step": step, "run": os.getpid()}, keep_last=2)

torch.set_num_threads(1)
for line in sys.stdin:
    folder, *numbers = line.split()
    child = os.fork()
    if child == 0:
        save_steps(folder, *map(int, numbers))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class SaveServer:
    """A process that forks children which save checkpoints."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )

    def start(self, folder: Path, size: int, first: int, last: int, fatal_event: int = 0) -> int:
        """Fork a child that saves `size` float32 values a step; return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder} {size} {first} {last} {fatal_event}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> int:
        """After a start, the child's exit code when it has ended; minus the signal if one killed it."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[SaveServer]:
    server = SaveServer()
    yield server
    os.killpg(server.process.pid, signal.SIGKILL)  # its children too, should a test have failed
    server.process.communicate()


def check(folder: Path, size: int, at_least: int) -> int:
    """Clean up like a resuming run, load the newest checkpoint, return its step. All visible ones must be whole."""
    for path in folder.glob("step-*"):
        load_checkpoint(path)
    clean_partial(folder)
    latest = latest_checkpoint(folder)
    assert latest is not None
    loaded = load_checkpoint(latest)
    assert loaded.step >= at_least
    assert loaded.state["step"] == loaded.step
    assert torch.equal(loaded.tensors["model"]["weight"], torch.full((size,), float(loaded.step)))
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return loaded.step


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a checkpoint of this step or a later one appears."""
    deadline = time.monotonic() + 30
    while max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_sigkill_at_random_moments_leaves_a_whole_latest_checkpoint(
    tmp_path: Path, server: SaveServer, caplog: pytest.LogCaptureFixture
) -> None:
    size = 100_000
    rng = random.Random(0)
    begin = time.monotonic()
    server.start(tmp_path, size, 1, 3)
    assert server.answer() == 0
    save_seconds = (time.monotonic() - begin) / 3
    step, interrupted = 3, 0
    for _ in range(8):
        child = server.start(tmp_path, size, step, step + 1000)  # first replaces the newest, as a resumed run may
        wait_for_step(tmp_path, step + rng.randint(0, 2))
        time.sleep(rng.uniform(0, 1.5 * save_seconds))
        os.kill(child, signal.SIGKILL)
        assert server.answer() == -signal.SIGKILL
        interrupted += any(path.name.startswith(".") for path in tmp_path.iterdir())
        step = check(tmp_path, size, at_least=step)
    assert step > 3
    assert interrupted > 0  # else no kill hit a save
    assert "passed over" not in caplog.text


@pytest.mark.slow
def test_death_before_any_file_system_call_leaves_a_whole_latest_checkpoint(
    tmp_path: Path, server: SaveServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Save 1 and 2, then die before the n-th call while 2 is replaced, 3 is written and 1 is deleted."""
    before = tmp_path / "before"
    server.start(before, 5, 1, 2)
    assert server.answer() == 0
    code, last_steps = 9, []
    for event in range(1, 200):
        folder = tmp_path / str(event)
        shutil.copytree(before, folder)
        server.start(folder, 5, 2, 3, fatal_event=event)
        code = server.answer()
        last_steps.append(check(folder, 5, at_least=2))
        if code == 0:
            break
        assert code == 9
    assert code == 0
    assert last_steps == sorted(last_steps)
    assert {2, 3} == set(last_steps)
    assert len(last_steps) > 30
    assert "passed over" not in caplog.text
