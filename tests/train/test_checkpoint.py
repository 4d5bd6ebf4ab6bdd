"""Checkpoints: exact, whole or absent, found by step number; what damage, full disks and kills leave."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ttfs_triton.train import TrainConfig, checkpoint
from ttfs_triton.train.checkpoint import (
    CheckpointError,
    checkpoint_bytes,
    checkpoint_path,
    clean_partial,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from ttfs_triton.train.run_folder import RunFolder


def save(folder: Path, step: int, keep_last: int = 100, **state: Any) -> Path:
    tensors = {"model": {"weight": torch.full((5,), float(step))}, "average": {}}
    save_checkpoint(folder, step, tensors=tensors, state={"step": step, **state}, keep_last=keep_last)
    return checkpoint_path(folder, step)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("*"))


def test_latest_checkpoint_goes_by_step_number(tmp_path):
    for name in ("step-best.safetensors", ".step-00000002.safetensors.partial-1"):
        (tmp_path / name).touch()

    def latest():
        found = latest_checkpoint(tmp_path)
        return found and found.path

    assert latest() is None
    assert latest_checkpoint(tmp_path / "absent") is None
    for step in (100, 9, 10):  # not the order of time
        save(tmp_path, step)
    checkpoint_path(tmp_path, 9).rename(tmp_path / "step-9.safetensors")  # nor of names
    for expected in ("step-00000100.safetensors", "step-00000010.safetensors", "step-9.safetensors"):
        assert latest() == tmp_path / expected
        (tmp_path / expected).unlink()


def of_another_version(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 3)
        path.write_bytes(checkpoint_bytes("{}", {}))


DAMAGES = {
    "SafetensorError": lambda path: os.truncate(path, 50),
    "KeyError: '__metadata__'": lambda path: path.write_bytes(b"\2\0\0\0\0\0\0\0{}"),
    "its format version 3 must be 2": of_another_version,
    "JSONDecodeError": lambda path: path.write_bytes(checkpoint_bytes("{", {})),
    "RecursionError": lambda path: path.write_bytes(checkpoint_bytes("[" * 10**5, {})),
    "no regular file": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGES.items(), ids=DAMAGES)
def test_damage_is_named_and_passed_over(tmp_path, caplog, message, damage):
    save(tmp_path, 9)
    path = save(tmp_path, 10)
    damage(path)
    with pytest.raises(CheckpointError, match=f"load_checkpoint: .*{message}"):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).path == checkpoint_path(tmp_path, 9)
    (record,) = caplog.records
    assert f"checkpoint passed over: load_checkpoint: {path} must be a whole checkpoint" in record.message


def test_flipped_bit_anywhere_never_changes_what_is_loaded(tmp_path):
    path = save(tmp_path, 1)
    data, undetected = path.read_bytes(), 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with suppress(CheckpointError):
            loaded = load_checkpoint(path)
            undetected += 1
            assert (loaded.step, loaded.state) == (1, {"step": 1})
            assert torch.equal(loaded.tensors["model"]["weight"], torch.ones(5))
    assert undetected < 10, "spaces behind the header"


def test_the_newest_checkpoints_are_kept_and_the_one_just_written(tmp_path):
    for step in (1, 2, 3, 60):
        save(tmp_path, step)
    save(tmp_path, 5, keep_last=2)  # after a resume from an older one
    assert steps(tmp_path) == [3, 5, 60]
    save(tmp_path, 60, keep_last=1, note="again")
    assert steps(tmp_path) == [60]
    assert load_checkpoint(checkpoint_path(tmp_path, 60)).state == {"step": 60, "note": "again"}


def test_clean_partial_removes_litter_and_nothing_else(tmp_path):
    others = [".hidden-1", "step-5.partial-7", ".partial-7", ".a.partial-x", "step-1.safetensors"]
    for name in (".step-00000002.safetensors.partial-7", ".summary.json.partial-7", *others):
        (tmp_path / name).touch()
    clean_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_disk_has_a_checkpoint_before_older_ones_are_deleted(tmp_path, monkeypatch):
    """In the order that a loss of power asks for: content, then name, then removals."""
    folder, calls = RunFolder(tmp_path / "runs" / "mine"), []

    def note(home, name, path_of):
        def noted(*values, **options):
            calls.append((name, path_of(values)))
            return call(*values, **options)

        call = getattr(home, name)
        monkeypatch.setattr(home, name, noted)

    note(os, "fsync", lambda values: Path(os.readlink(f"/proc/self/fd/{values[0]}")).name)
    note(os, "replace", lambda values: values[1].name)
    note(Path, "unlink", lambda values: values[0].name)
    folder.claim(resume=False, overwrite=False)
    folder.prepare(TrainConfig())
    assert calls[:3] == [("fsync", name) for name in ("runs", tmp_path.name, "mine")]
    save(folder.checkpoints, 1)
    calls.clear()
    save(folder.checkpoints, 2, keep_last=1)
    new, old = (checkpoint_path(tmp_path, step).name for step in (2, 1))
    written = [("fsync", f".{new}.partial-{os.getpid()}"), ("replace", new), ("fsync", "checkpoints")]
    assert calls == [*written, ("unlink", old)]
