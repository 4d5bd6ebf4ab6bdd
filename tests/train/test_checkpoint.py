"""Checkpoints: exact, whole or absent, found by step number; what damage, full disks and kills leave."""

import errno
import hashlib
import json
import logging
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.train.forked import SERVER
from ttfs_triton.atomic import write_json
from ttfs_triton.train import TrainConfig
from ttfs_triton.train.build import build_optimizer
from ttfs_triton.train.checkpoint import (
    CheckpointError,
    clean_partial,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)


def content(step: int, size: int = 5) -> dict[str, dict[str, Tensor]]:
    return {"model": {"weight": torch.full((size,), float(step))}, "ema": {}}


def save(folder: Path, step: int, keep_last: int = 100, **state: Any) -> Path:
    return save_checkpoint(folder, step, tensors=content(step), state={"step": step, **state}, keep_last=keep_last)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def rewrite(path: Path, name: str, data: bytes) -> None:
    """Another file, and what the manifest says of it."""
    (path / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(path, lambda m: m["files"].update({name: entry}))


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    write_json(path / "manifest.json", manifest)


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"optimizer": "adam"}, {"optimizer": "adamw"}], ids=str)
def test_training_goes_on_bit_for_bit(tmp_path, options, steps_before):
    config = TrainConfig(**{"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.1} | options)

    def start(seed):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(64, 2, bias=False))
        network = network.to(memory_format=torch.channels_last)
        return network, build_optimizer(config, network)

    def train(network, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            network(torch.rand(2, 3, 6, 6).to(memory_format=torch.channels_last)).square().sum().backward()
            optimizer.step()

    network, optimizer = start(0)
    train(network, optimizer, range(steps_before))
    tensors = {"model": network.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    state = {"best": [0.1 + 0.2, math.inf], "epoch": None}
    path = save_checkpoint(tmp_path, 3, tensors=tensors, state=state, keep_last=1)

    resumed, other = start(1)
    loaded = load_checkpoint(path)
    resumed.load_state_dict(loaded.tensors["model"])
    load_optimizer_tensors(other, loaded.tensors["optimizer"])
    assert (path, loaded.step, loaded.state) == (tmp_path / "step-00000003", 3, state)
    train(network, optimizer, range(3, 6))
    train(resumed, other, range(3, 6))
    for own, expected in zip(resumed.parameters(), network.parameters(), strict=True):
        assert torch.equal(own, expected)
    for parameter, values in other.state.items():  # fused kernels walk memory in order
        assert all(v.stride() == parameter.stride() for v in values.values() if v is not None and v.dim() > 1)
    for broken in ({"9.step": torch.zeros(())}, {"x.step": torch.zeros(())}, {"0.exp_avg": torch.zeros(2)}):
        with pytest.raises(ValueError, match=r"optimizer: .* must be"):
            load_optimizer_tensors(other, broken)


def test_latest_checkpoint_goes_by_step_number(tmp_path):
    (tmp_path / "step-best").mkdir()
    (tmp_path / "step-00000001").touch()
    (tmp_path / ".step-00000002.partial-1").mkdir()
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None
    for step in (100, 9, 10):  # not the order of time
        save(tmp_path, step)
    shutil.move(tmp_path / "step-00000009", tmp_path / "step-9")  # nor of names
    for expected in ("step-00000100", "step-00000010", "step-9"):
        assert latest_checkpoint(tmp_path) == tmp_path / expected
        shutil.rmtree(tmp_path / expected)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "50 bytes where the manifest": lambda p: os.truncate(p / "model.safetensors", 50),
    r"ema\.safetensors is missing": lambda p: (p / "ema.safetensors").unlink(),
    r"manifest\.json is missing": lambda p: (p / "manifest.json").unlink(),
    "is not a manifest: Invalid JSON": lambda p: os.truncate(p / "manifest.json", 40),
    "cannot be read, no regular file": lambda p: ((p / "manifest.json").unlink(), os.mkfifo(p / "manifest.json")),
    "version .* must be 1; got 2": lambda p: edit_manifest(p, lambda m: m.update(format_version=2)),
    r"match pattern .*\.\./x": lambda p: rewrite(p, "../x", b""),
    "is of step 8": lambda p: edit_manifest(p, lambda m: m.update(step=8)),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGES.items(), ids=DAMAGES)
def test_damage_is_named_and_passed_over(tmp_path, caplog, message, damage):
    save(tmp_path, 9)
    path = save(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == path
    damage(path)
    with pytest.raises(CheckpointError, match=f"load_checkpoint: .*{message}"):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == tmp_path / "step-00000009"
    (record,) = caplog.records
    assert "checkpoint passed over: load_checkpoint: " in record.message
    assert str(path) in record.message


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("model.safetensors", b"{}", "SafetensorError"),
        ("state.json", b"{", "JSONDecodeError"),
        ("state.json", b"[" * 10**5, "RecursionError"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_file_that_is_not_what_it_says_is_rejected(tmp_path, name, data, error):
    path = save(tmp_path, 1)
    rewrite(path, name, data)
    with pytest.raises(CheckpointError, match=f"it cannot be decoded, {error}"):
        load_checkpoint(path)


def test_flipped_bit_anywhere_never_changes_what_is_loaded(tmp_path):
    path = save(tmp_path, 1)
    for file in sorted(path.iterdir()):
        data, undetected = file.read_bytes(), 0
        for position in range(0, len(data), 1 if file.name == "manifest.json" else 7):
            flip(file, position)
            with suppress(CheckpointError):
                loaded = load_checkpoint(path)
                undetected += 1
                assert (loaded.step, loaded.state) == (1, {"step": 1})
                assert torch.equal(loaded.tensors["model"]["weight"], torch.ones(5))
            file.write_bytes(data)
        assert undetected < (10 if file.name == "manifest.json" else 1), "white space of the manifest"


def test_the_newest_whole_checkpoints_are_kept_and_the_one_just_written(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    os.truncate(tmp_path / "step-00000004" / "model.safetensors", 9)
    save(tmp_path, 5, keep_last=2)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (2, 3, 4, 5)]
    damaged = save(tmp_path, 60)
    flip(damaged / "model.safetensors", -1)
    save(tmp_path, 55, keep_last=1)  # after a resume from an older one
    assert names(tmp_path) == ["step-00000055", "step-00000060"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000055"
    save(tmp_path, 60, keep_last=1, note="again")
    assert names(tmp_path) == ["step-00000060"]
    assert load_checkpoint(damaged).state == {"step": 60, "note": "again"}


def test_a_disk_that_fails_is_a_warning_where_nothing_is_lost(tmp_path, monkeypatch, caplog):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EACCES, "denied")))
        path = save(tmp_path, 2, keep_last=1)
    assert "old checkpoint could not be deleted" in caplog.text
    assert latest_checkpoint(tmp_path) == path
    read_bytes = Path.read_bytes

    def fail(self):
        if self.parent == path:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(self)

    save(tmp_path, 1)
    monkeypatch.setattr(Path, "read_bytes", fail)  # of the files; the manifest is small
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert "Input/output error" in caplog.text


def test_clean_partial_removes_litter_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    for name in (".step-00000002.partial-7", ".step-00000000.deleted-7", ".step-00000001.replaced-7"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / ".summary.json.partial-7").touch()
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000003.replaced-7")
    others = [".hidden-1", "step-5.partial-7", ".partial-7", ".a.partial-x"]
    for name in others:
        (tmp_path / name).touch()
    clean_partial(tmp_path)
    assert names(tmp_path) == sorted([*others, "step-00000001", "step-00000003"])
    clean_partial(tmp_path / "absent")


@pytest.mark.parametrize("call", range(1, 7))  # four files, the checkpoint, its parent
def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, call):
    save(tmp_path, 1)
    calls, fsync = [], os.fsync

    def fail_once(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, keep_last=1)
    # At the sixth the rename is done, only its durability is unknown: both stay.
    assert names(tmp_path) == ["step-00000001", *["step-00000002"] * (call == 6)]
    assert load_checkpoint(tmp_path / "step-00000001").state == {"step": 1}


def save_steps(folder: Path, size: int, first: int, last: int) -> None:
    """Save `size` values a step."""
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
