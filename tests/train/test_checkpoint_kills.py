"""Processes killed while they save: after each kill the newest checkpoint is whole."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.train.forked import SERVER
from ttfs_triton.train.checkpoint import clean_partial, latest_checkpoint, load_checkpoint, save_checkpoint

CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def save_steps(folder: Path, size: int, first: int, last: int, fatal_call: int = 0) -> None:
    """Save `size` values a step; in a process that ends before a call of the file system, if one is given."""
    calls = 0

    def count(event: str, _: object) -> None:
        nonlocal calls
        calls += event in CALLS
        if calls == fatal_call:
            os._exit(9)

    if fatal_call:
        sys.addaudithook(count)
    for step in range(first, last + 1):
        tensors = {"model": {"weight": torch.full((size,), float(step))}, "ema": {"a": torch.ones(3)}}
        save_checkpoint(folder, step, tensors=tensors, state={"step": step, "run": os.getpid()}, keep_last=2)


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


def test_sigkill_at_random_moments_leaves_a_whole_latest_checkpoint(tmp_path, caplog):
    size, chance, begin = 100_000, random.Random(0), time.monotonic()
    save_steps(tmp_path, size, 1, 3)
    save_seconds = (time.monotonic() - begin) / 3
    step, interrupted = 3, 0
    for _ in range(8):
        # First the newest is replaced, as by a resumed run.
        process = SERVER.Process(target=save_steps, args=(tmp_path, size, step, step + 1000))
        process.start()
        wait_for_step(tmp_path, step + chance.randint(0, 2))
        time.sleep(chance.uniform(0, 1.5 * save_seconds))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        interrupted += any(path.name.startswith(".") for path in tmp_path.iterdir())
        step = check(tmp_path, size, at_least=step)
    assert step > 3
    assert interrupted > 0  # else no kill hit a save
    assert "passed over" not in caplog.text


@pytest.mark.slow
def test_death_before_any_file_system_call_leaves_a_whole_latest_checkpoint(tmp_path, caplog):
    """Save 1 and 2, then die before the n-th call while 2 is replaced, 3 is written and 1 is deleted."""
    save_steps(tmp_path / "before", 5, 1, 2)
    code, last_steps = 9, []
    for call in range(1, 200):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(call))
        process = SERVER.Process(target=save_steps, args=(folder, 5, 2, 3, call))
        process.start()
        process.join()
        code = process.exitcode
        last_steps.append(check(folder, 5, at_least=2))
        if code == 0:
            break
        assert code == 9
    assert code == 0
    assert last_steps == sorted(last_steps)
    assert {2, 3} == set(last_steps)
    assert len(last_steps) > 30
    assert "passed over" not in caplog.text
