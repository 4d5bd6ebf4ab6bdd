"""Checkpoints: exact, whole or absent, found by step number; what damage and a full disk leave."""

import errno
import hashlib
import json
import logging
import math
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def rewrite_state(path: Path, data: bytes) -> None:
    (path / "state.json").write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(path, lambda m: m["files"].update({"state.json": entry}))


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


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda p: os.truncate(p / "model.safetensors", 50),
        r"model\.safetensors has 50 bytes where the manifest says \d+",
    ),
    "payload byte": (lambda p: flip(p / "model.safetensors", -1), r"model\.safetensors differs from its checksum"),
    "file deleted": (lambda p: (p / "ema.safetensors").unlink(), r"ema\.safetensors is missing"),
    "manifest a pipe": (
        lambda p: ((p / "manifest.json").unlink(), os.mkfifo(p / "manifest.json")),
        r"manifest\.json cannot be read, no regular file",
    ),
    "state of brackets": (lambda p: rewrite_state(p, b"[" * 10**5), "it cannot be decoded, RecursionError"),
    "state no JSON": (lambda p: rewrite_state(p, b"{"), "it cannot be decoded, JSONDecodeError"),
    "manifest deleted": (lambda p: (p / "manifest.json").unlink(), r"manifest\.json is missing"),
    "manifest truncated": (
        lambda p: os.truncate(p / "manifest.json", 40),
        r"manifest\.json is not a manifest: Invalid JSON",
    ),
    "version": (
        lambda p: edit_manifest(p, lambda m: m.update(format_version=2)),
        r"format version of .* must be 1; got 2\. Use the release that wrote it",
    ),
    "path above": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"../x": m["files"]["state.json"]})),
        r"manifest\.json is not a manifest: String should match pattern .* at \['files', '\.\./x'",
    ),
    "another step": (lambda p: edit_manifest(p, lambda m: m.update(step=8)), r"manifest\.json is of step 8"),
}


# Files as the manifest says, but wrong: found when they are read, not when the newest whole checkpoint is looked for.
WRONG = ("state of brackets", "state no JSON")


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_passed_over(tmp_path, caplog, damage, message):
    save(tmp_path, 9)
    path = save(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == path
    damage(path)
    with pytest.raises(CheckpointError, match=f"load_checkpoint: .*{message}"):
        load_checkpoint(path)
    if damage in [DAMAGES[name][0] for name in WRONG]:
        return
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == tmp_path / "step-00000009"
    assert len(caplog.records) == 1
    assert "checkpoint passed over: load_checkpoint: " in caplog.text
    assert str(path) in caplog.text


def test_file_that_is_not_what_it_says_is_rejected(tmp_path):
    path = save(tmp_path, 1)
    shutil.copy(path / "state.json", path / "model.safetensors")
    edit_manifest(path, lambda m: m["files"].update({"model.safetensors": m["files"]["state.json"]}))
    with pytest.raises(CheckpointError, match="it cannot be decoded, SafetensorError"):
        load_checkpoint(path)


def test_flipped_bit_anywhere_never_changes_what_is_loaded(tmp_path):
    path = save(tmp_path, 1)
    undetected = 0
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        for position in range(0, len(data), 1 if file.name == "manifest.json" else 7):
            flip(file, position)
            try:
                loaded = load_checkpoint(path)
            except CheckpointError:
                pass
            else:  # white space of the manifest
                undetected += 1
                assert file.name == "manifest.json"
                assert (loaded.step, loaded.state) == (1, {"step": 1})
                assert torch.equal(loaded.tensors["model"]["weight"], torch.ones(5))
            file.write_bytes(data)
    assert undetected < 10


def test_the_newest_whole_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    os.truncate(tmp_path / "step-00000004" / "model.safetensors", 9)
    save(tmp_path, 5, keep_last=2)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (2, 3, 4, 5)]
    save(tmp_path, 100, keep_last=1)
    assert names(tmp_path) == ["step-00000100"]


def test_resume_from_an_older_checkpoint_keeps_the_one_just_written(tmp_path):
    save(tmp_path, 50)
    damaged = save(tmp_path, 60)
    flip(damaged / "model.safetensors", -1)
    save(tmp_path, 55, keep_last=1)
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


def test_write_stopped_in_the_middle_keeps_the_previous_checkpoint(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, 2, tensors=content(2, size=100_000), state={}, keep_last=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"


def test_failed_replacement_is_undone_by_the_next_start(tmp_path, monkeypatch):
    path, rename = save(tmp_path, 1), Path.rename

    def fail(self, target):
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="Input/output error"):
            save(tmp_path, 1, note="second")
    clean_partial(tmp_path)
    assert names(tmp_path) == ["step-00000001"]
    assert load_checkpoint(path).state == {"step": 1}


def test_what_cannot_be_saved_is_refused_without_litter(tmp_path):
    save_tensors = {"m": {"weight": torch.zeros(1, device="meta")}}
    with pytest.raises(TypeError, match="Tensor is not JSON serializable"):
        save(tmp_path, 1, weight=torch.zeros(1))
    with pytest.raises(ValueError, match="weight must be a dense tensor"):
        save_checkpoint(tmp_path, 1, tensors=save_tensors, state={}, keep_last=1)
    assert names(tmp_path) == []
