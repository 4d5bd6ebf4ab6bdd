"""A run's folder and its checkpoints: one run at a time, whole files or none, whatever damage and kills leave."""

import logging
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from ttfs_triton.train import RunFolderError, TrainConfig, checkpoint, train
from ttfs_triton.train.checkpoint import checkpoint_bytes, checkpoint_path, latest_checkpoint, load_checkpoint
from ttfs_triton.train.run import _new_folder
from ttfs_triton.train.run_folder import LOCK, RunFolder

HOLD = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
HOLD += "print('locked', flush=True); time.sleep(60)"
SAMPLE = TrainConfig.model_validate({"dataset": "sample", "overwrite": True})


def begin(path: Path, **flags: bool) -> None:
    """Claim a folder, prepare it for a run that overwrites, and give it up."""
    folder = RunFolder(path)
    folder.claim(**flags)
    try:
        folder.prepare(SAMPLE)
    finally:
        folder.release()


def test_folder_of_a_process_that_is_killed_is_free_again(tmp_path):
    (tmp_path / "run").mkdir()
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run" / LOCK)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RunFolderError, match=r"must belong to one run; another process owns it\. Wait for"):
            RunFolder(tmp_path / "run").claim()
        process.kill()
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    folder.release()
    assert not (tmp_path / "run").exists()


def test_unusable_folder_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"file' must be a folder that can be read; got .*Not a directory"):
        RunFolder(tmp_path / "file").claim()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(FileLock, "acquire", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(RunFolderError, match="must be a folder that can be written; got Read-only file system"):
        RunFolder(tmp_path / "run").claim()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("config.yaml", {}, r"already holds a run\. Resume it with --resume"),
        ("thesis.txt", {}, "is not a run's folder"),
        ("thesis.txt", {"overwrite": True}, r"--overwrite: .* is not a run's folder"),
        ("thesis.txt", {"resume": True}, "must hold a run"),
    ],
)
def test_existing_files_are_not_touched_unasked(tmp_path, name, flags, message):
    (tmp_path / name).write_text("precious")
    with pytest.raises(RunFolderError, match=message):
        RunFolder(tmp_path).claim(**flags)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_start_that_was_killed_early_can_be_repeated(tmp_path, overwrite):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".config.yaml.partial-1").touch()
    begin(tmp_path / "run", overwrite=overwrite)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "config.yaml"}


@pytest.mark.parametrize("name", ["notes.txt", ".git/HEAD", "checkpoints/mine/a", "best/model.safetensors~"])
def test_overwriting_removes_only_what_a_run_wrote_and_can_be_repeated(tmp_path, monkeypatch, name):
    """Also what has come since the folder was claimed; in the target of a link, which stays."""
    disk, run, unlink = tmp_path / "disk", tmp_path / "run", Path.unlink
    disk.mkdir()
    run.symlink_to(disk)
    written = ["checkpoints/step-00000003.safetensors", "best/config.json", "profile/steps.txt", "summary.json"]
    written += ["config.yaml", "metrics.jsonl", ".summary.json.partial-1", "trackers/tensorboard/events"]
    for each in written:
        (run / each).parent.mkdir(exist_ok=True, parents=True)
        (run / each).write_text(SAMPLE.to_yaml())
    before = sorted(run.rglob("*"))
    folder = RunFolder(run)
    folder.claim(overwrite=True)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("precious")
    with pytest.raises(RunFolderError, match=rf"nothing but a run; got also {re.escape(name.split('/')[0])}"):
        folder.prepare(SAMPLE)
    folder.release()
    assert set(before) < set(run.rglob("*"))
    assert (run / name).read_text() == "precious"
    shutil.rmtree(run / name.split("/")[0]) if "/" in name else (run / name).unlink()

    def killed(path, **options):
        if path.name == "metrics.jsonl":
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        begin(run, overwrite=True)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert not (run / "summary.json").exists(), "what says that the run has ended goes first"
    with pytest.raises(RunFolderError, match="already holds a run"):
        begin(run)
    begin(run, overwrite=True)
    assert run.is_symlink()
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml"}


def test_overwriting_spares_another_program_s_configuration_and_the_run_s_inputs(tmp_path):
    (tmp_path / "config.yaml").write_text("theme: dark\n")
    with pytest.raises(RunFolderError, match=r"got also a config\.yaml that is no run's\. Nothing was removed"):
        RunFolder(tmp_path).claim(overwrite=True)
    (tmp_path / "config.yaml").write_text(SAMPLE.to_yaml())
    (tmp_path / "best").mkdir()
    for key, path in (("teacher", tmp_path), ("weights", tmp_path / "best"), ("data_dir", tmp_path)):
        with pytest.raises(RunFolderError, match=f"{key} must lie outside of the folder that is emptied"):
            train(SAMPLE.model_copy(update={"output_dir": tmp_path, "cpu": True, key: path}))
    assert (tmp_path / "best").is_dir()


def test_default_folders_are_unique(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: _new_folder("cnn-mnist"), range(24)))
    assert len(set(folders)) == 24
    with pytest.raises(RunFolderError, match=r"--resume needs the folder of the run to resume\. Add --output-dir"):
        train(TrainConfig(dataset="sample", resume=True, cpu=True))
    (tmp_path / "runs").rename(tmp_path / "moved")
    (tmp_path / "runs").touch()
    with pytest.raises(RunFolderError, match="runs must be a folder that can be written; got"):
        _new_folder("run")


def save(folder: Path, step: int, keep_last: int = 100, precision: str = "no") -> Path:
    state = {"configuration": {}, "precision": precision, "data": "1", "test_data": "2", "scaler": None}
    tensors = {"model": {"weight": torch.full((5,), float(step))}, "average": {}}
    run = checkpoint.RunState(**state, position=checkpoint.Position(step=step))
    checkpoint.save_checkpoint(folder, run, tensors, keep_last=keep_last)
    return checkpoint_path(folder, step)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("*"))


def test_latest_checkpoint_goes_by_step_number(tmp_path):
    for name in ("step-best.safetensors", ".step-00000002.safetensors.partial-1"):
        (tmp_path / name).touch()
    assert latest_checkpoint(tmp_path) is None
    for step in (100, 9):  # not the order of time
        save(tmp_path, step)
    checkpoint_path(tmp_path, 9).rename(tmp_path / "step-9.safetensors")  # nor of names
    assert latest_checkpoint(tmp_path).path == checkpoint_path(tmp_path, 100)


def of_another_version(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT_VERSION", 3)
        path.write_bytes(checkpoint_bytes("{}", {}))


DAMAGES = {
    "SafetensorError": lambda path: os.truncate(path, 50),
    "its content is not as it was written": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
    "ValueError: its content": lambda path: path.write_bytes(path.read_bytes().replace(b"test_data", b"test-data")),
    "KeyError: '__metadata__'": lambda path: path.write_bytes(b"\2\0\0\0\0\0\0\0{}"),
    "its format version 3 must be 2": of_another_version,
    "JSONDecodeError": lambda path: path.write_bytes(checkpoint_bytes("{", {})),
    "ValidationError": lambda path: path.write_bytes(checkpoint_bytes('{"position": {"best_accuracy": NaN}}', {})),
    "RecursionError": lambda path: path.write_bytes(checkpoint_bytes("[" * 10**5, {})),
    "no regular file": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize(("message", "damage"), DAMAGES.items(), ids=DAMAGES)
def test_damage_is_named_and_passed_over(tmp_path, caplog, message, damage):
    save(tmp_path, 9)
    path = save(tmp_path, 10)
    damage(path)
    with pytest.raises(checkpoint.CheckpointError, match=f"load_checkpoint: .*{message}"):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).path == checkpoint_path(tmp_path, 9)
    (record,) = caplog.records
    assert f"checkpoint passed over: load_checkpoint: {path} must be a whole checkpoint" in record.message


def test_the_newest_checkpoints_are_kept_and_the_one_just_written(tmp_path):
    for step in (1, 2, 3, 60):
        save(tmp_path, step)
    save(tmp_path, 5, keep_last=2)  # after a resume from an older one
    assert steps(tmp_path) == [3, 5, 60]
    save(tmp_path, 60, keep_last=1, precision="bf16")
    assert steps(tmp_path) == [60]
    assert load_checkpoint(checkpoint_path(tmp_path, 60)).state.precision == "bf16"


def test_disk_has_a_checkpoint_before_older_ones_are_deleted(tmp_path, monkeypatch):
    """In the order that a loss of power asks for: content, then name, then removals."""
    calls: list[str] = []

    def note(home: Any, name: str) -> None:
        call = getattr(home, name)
        monkeypatch.setattr(home, name, lambda *values, **options: calls.append(name) or call(*values, **options))

    save(tmp_path, 1)
    for home, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        note(home, name)
    save(tmp_path, 2, keep_last=1)
    assert calls == ["fsync", "replace", "fsync", "unlink"]
