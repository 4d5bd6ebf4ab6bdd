import errno
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
from ttfs_triton.train.checkpoint import (
    CheckpointError,
    clean_partial,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from ttfs_triton.train.states import pack_optimizer, unpack_optimizer


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


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    write_json(path / "manifest.json", manifest)


def test_round_trip_of_training(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(64, 2)).to(
            memory_format=torch.channels_last
        )
        return network, torch.optim.AdamW(network.parameters(), lr=1e-2)

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            network(torch.rand(2, 3, 6, 6)).square().sum().backward()
            optimizer.step()

    network, optimizer = make()
    train(network, optimizer, range(3))
    optimizer_tensors, optimizer_state = pack_optimizer(optimizer)
    path = save_checkpoint(
        tmp_path / "run" / "checkpoints",
        3,
        tensors={"model": network.state_dict(), "optimizer": optimizer_tensors},
        state={"optimizer": optimizer_state, "best": (0.1 + 0.2, math.inf), "epoch": None},
        keep_last=1,
    )
    train(network, optimizer, range(3, 6))

    resumed, resumed_optimizer = make()
    loaded = load_checkpoint(path)
    resumed.load_state_dict(loaded.tensors["model"])
    unpack_optimizer(resumed_optimizer, loaded.tensors["optimizer"], loaded.state["optimizer"])
    train(resumed, resumed_optimizer, range(3, 6))
    assert path == tmp_path / "run" / "checkpoints" / "step-00000003"
    assert (loaded.step, loaded.state["best"], loaded.state["epoch"]) == (3, (0.1 + 0.2, math.inf), None)
    for own, expected in zip(resumed.parameters(), network.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_latest_checkpoint_goes_by_step_number(tmp_path: Path) -> None:
    for step in (100, 9, 10):  # not the order of time
        save(tmp_path, step)
    shutil.move(tmp_path / "step-00000009", tmp_path / "step-9")  # nor of names
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000100"
    shutil.rmtree(tmp_path / "step-00000100")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000010"
    shutil.rmtree(tmp_path / "step-00000010")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-9"


def test_latest_checkpoint_of_an_empty_or_absent_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "step-best").mkdir()
    (tmp_path / "step-00000001").touch()
    (tmp_path / ".step-00000002.partial-1").mkdir()
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda p: os.truncate(p / "model.safetensors", 50),
        r"model\.safetensors has 50 bytes where the manifest says \d+",
    ),
    "payload byte": (
        lambda p: flip(p / "model.safetensors", -1),
        r"model\.safetensors differs from its checksum",
    ),
    "state byte": (lambda p: flip(p / "state.json", 5), r"state\.json differs from its checksum"),
    "file deleted": (lambda p: (p / "ema.safetensors").unlink(), r"ema\.safetensors is missing"),
    "manifest deleted": (lambda p: (p / "manifest.json").unlink(), r"manifest\.json is missing"),
    "manifest truncated": (
        lambda p: os.truncate(p / "manifest.json", 40),
        r"manifest\.json is not a manifest: Invalid JSON",
    ),
    "manifest not a dict": (
        lambda p: write_json(p / "manifest.json", [1]),
        r"manifest\.json is not a manifest: Input should be an object",
    ),
    "manifest without files": (
        lambda p: edit_manifest(p, lambda m: m.pop("files")),
        r"manifest\.json is not a manifest: Field required at \['files'\]",
    ),
    "version": (
        lambda p: edit_manifest(p, lambda m: m.update(format_version=2)),
        r"format version of .* must be 1; got 2\. Use the release that wrote it",
    ),
    "path above": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"../x": m["files"]["state.json"]})),
        r"manifest\.json is not a manifest: String should match pattern .* at \['files', '\.\./x'",
    ),
    "absolute path": (
        lambda p: edit_manifest(p, lambda m: m["files"].update({"/x": m["files"]["state.json"]})),
        r"manifest\.json is not a manifest: String should match pattern .* at \['files', '/x'",
    ),
    "another step": (
        lambda p: edit_manifest(p, lambda m: m.update(step=8)),
        r"manifest\.json is of step 8",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], message: str
) -> None:
    save(tmp_path, 9)
    path = save(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == path
    damage(path)
    with pytest.raises(CheckpointError, match=f"load_checkpoint: .*{message}"):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == tmp_path / "step-00000009"
    assert len(caplog.records) == 1
    assert "checkpoint passed over: load_checkpoint: " in caplog.text
    assert str(path) in caplog.text


def test_file_that_is_not_what_it_says_is_rejected(tmp_path: Path) -> None:
    path = save(tmp_path, 1)

    def swap(manifest: dict[str, Any]) -> None:
        manifest["files"]["model.safetensors"] = manifest["files"]["state.json"]

    shutil.copy(path / "state.json", path / "model.safetensors")
    edit_manifest(path, swap)
    with pytest.raises(CheckpointError, match="cannot be decoded; got SafetensorError"):
        load_checkpoint(path)


def test_latest_checkpoint_passes_over_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 9)
    path = save(tmp_path, 10)
    read_bytes = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.parent == path:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000009"
    assert "Input/output error" in caplog.text


def test_flipped_bit_anywhere_never_changes_what_is_loaded(tmp_path: Path) -> None:
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


def test_keep_last_keeps_the_newest(tmp_path: Path) -> None:
    for step in (9, 10, 100, 101):
        save(tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["step-00000100", "step-00000101"]
    save(tmp_path, 102, keep_last=1)
    assert names(tmp_path) == ["step-00000102"]


def test_keep_last_does_not_count_damaged_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    os.truncate(tmp_path / "step-00000004" / "model.safetensors", 9)
    save(tmp_path, 5, keep_last=2)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (2, 3, 4, 5)]


def test_resume_from_an_older_checkpoint_keeps_the_one_just_written(tmp_path: Path) -> None:
    save(tmp_path, 50)
    damaged = save(tmp_path, 60)
    flip(damaged / "model.safetensors", -1)
    save(tmp_path, 55, keep_last=1)
    assert names(tmp_path) == ["step-00000055", "step-00000060"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000055"
    save(tmp_path, 60, keep_last=1)
    assert names(tmp_path) == ["step-00000060"]
    assert load_checkpoint(damaged).step == 60


def test_old_checkpoint_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "unlink", fail)
    save(tmp_path, 2, keep_last=1)
    assert "old checkpoint could not be deleted" in caplog.text
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000002"


def test_same_step_and_content_keeps_the_existing_folder(tmp_path: Path) -> None:
    inode = save(tmp_path, 1).stat().st_ino
    assert save(tmp_path, 1).stat().st_ino == inode
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("damaged", [False, True])
def test_same_step_is_replaced_when_content_differs_or_is_damaged(tmp_path: Path, damaged: bool) -> None:
    path = save(tmp_path, 1)
    if damaged:
        flip(path / "model.safetensors", -1)
    save(tmp_path, 1, note=None if damaged else "second")
    assert load_checkpoint(path).state == {"step": 1, "note": None if damaged else "second"}
    assert names(tmp_path) == ["step-00000001"]


def test_clean_partial_removes_litter_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (".step-00000002.partial-7", ".step-00000000.deleted-7", ".step-00000001.replaced-7"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / ".summary.json.partial-7").touch()
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000003.replaced-7")
    for name in (".hidden-1", "step-5.partial-7", ".partial-7", ".a.partial-x"):
        (tmp_path / name).touch()
    clean_partial(tmp_path)
    assert names(tmp_path) == sorted(
        [".hidden-1", "step-5.partial-7", ".partial-7", ".a.partial-x", "step-00000001", "step-00000003"]
    )
    clean_partial(tmp_path / "absent")


@pytest.mark.parametrize("call", range(1, 7))  # four files, the checkpoint, its parent
def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save(tmp_path, 1)
    calls = 0
    fsync = os.fsync

    def fail_once(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, keep_last=1)
    if call == 6:  # the rename is done, only its durability is unknown: both stay
        assert names(tmp_path) == ["step-00000001", "step-00000002"]
    else:
        assert names(tmp_path) == ["step-00000001"]
    assert load_checkpoint(tmp_path / "step-00000001").state == {"step": 1}


def test_write_stopped_in_the_middle_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
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


def test_failed_replacement_puts_the_existing_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 1, note="second")
    assert names(tmp_path) == ["step-00000001"]
    assert load_checkpoint(path).state == {"step": 1}


@pytest.mark.parametrize(("step", "keep_last"), [(-1, 1), (1, 0)])
def test_save_checkpoint_rejects_numbers(tmp_path: Path, step: int, keep_last: int) -> None:
    with pytest.raises(ValueError, match=rf"keep_last at least 1; got {step} and {keep_last}\."):
        save(tmp_path, step, keep_last)


@pytest.mark.parametrize("stem", ["../model", "a/b", ".hidden", "", "model.safetensors"])
def test_save_checkpoint_rejects_file_stems(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ValueError, match=f"tensors must be keyed by plain file stems; got '{stem}'"):
        save_checkpoint(tmp_path / "c", 1, tensors={stem: {}}, state={}, keep_last=1)
    assert not (tmp_path / "c").exists()


def test_save_checkpoint_rejects_state_and_tensors_without_litter(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"to_json: state\.weight must be a JSON value; got Tensor"):
        save(tmp_path, 1, weight=torch.zeros(1))
    with pytest.raises(ValueError, match="weight must be a dense tensor"):
        save_checkpoint(tmp_path, 1, tensors={"m": {"weight": torch.zeros(1, device="meta")}}, state={}, keep_last=1)
    assert names(tmp_path) == []
