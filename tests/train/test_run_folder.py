"""A folder holds one run: of several simultaneous starts one goes on, and a process that ended blocks none."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from tests.train.runs import environment
from ttfs_triton.train import RunFolderError, TrainConfig, train
from ttfs_triton.train.run import _new_folder
from ttfs_triton.train.run_folder import RunFolder

FRESH = {"resume": False, "overwrite": False}

HOLD = """
import sys, time
from pathlib import Path
from ttfs_triton.train.run_folder import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""
SAMPLE = TrainConfig.model_validate({"dataset": "sample", "overwrite": True})


def begin(path: Path, **flags: bool) -> RunFolder:
    """Claim a folder, prepare it for a run that overwrites, and give it up."""
    folder = RunFolder(path)
    folder.claim(**FRESH | flags)
    try:
        folder.prepare(SAMPLE)
    finally:
        folder.release()
    return folder


def test_folder_of_a_process_that_is_killed_is_free_again(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RunFolderError, match=r"must belong to one run; another process owns it\. Wait for"):
            RunFolder(tmp_path / "run").claim(**FRESH)
        process.kill()
    folder = RunFolder(tmp_path / "run")
    folder.claim(**FRESH)
    folder.release()
    folder.release()
    assert not (tmp_path / "run").exists()
    folder.claim(**FRESH)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").touch()
    folder.release()
    assert (tmp_path / "run").is_file()


def test_unusable_folder_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="file' must be a folder that can be read; got Not a directory"):
        RunFolder(tmp_path / "file").claim(**FRESH)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(FileLock, "acquire", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(RunFolderError, match="must be a folder that can be written; got Read-only file system"):
        RunFolder(tmp_path / "run").claim(**FRESH)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("config.yaml", {}, r"already holds something\. Resume that run with --resume"),
        ("thesis.txt", {}, "is not a run's folder"),
        ("thesis.txt", {"overwrite": True}, r"--overwrite: .* is not a run's folder"),
        ("thesis.txt", {"resume": True}, "must hold a run"),
    ],
)
def test_existing_files_are_not_touched_unasked(tmp_path, name, flags, message):
    (tmp_path / name).write_text("precious")
    with pytest.raises(RunFolderError, match=message):
        RunFolder(tmp_path).claim(**FRESH | flags)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_start_that_was_killed_early_can_be_repeated(tmp_path, overwrite):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".config.yaml.partial-1").touch()
    begin(tmp_path / "run", overwrite=overwrite)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "config.yaml"}


@pytest.mark.parametrize("removals", range(3))
def test_overwriting_that_was_cut_short_can_be_repeated(tmp_path, monkeypatch, removals):
    """In the target of a link, which stays."""
    disk, run = tmp_path / "disk", tmp_path / "run"
    (disk / "best").mkdir(parents=True)
    run.symlink_to(disk)
    for name in ("metrics.jsonl", "summary.json"):
        (disk / name).write_text("old")
    (disk / "config.yaml").write_text(SAMPLE.to_yaml())
    removed, unlink = [], Path.unlink

    def killed(path, **options):
        if path.name != ".lock":
            if len(removed) == removals:
                raise KeyboardInterrupt
            removed.append(path.name)
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(run, overwrite=True)
    assert removed == ["summary.json", "metrics.jsonl"][:removals], "what says that the run has ended goes first"
    with pytest.raises(RunFolderError, match="already holds something"):
        begin(run)
    begin(run, overwrite=True)
    assert run.is_symlink()
    assert {path.name for path in disk.iterdir()} == {"checkpoints", "config.yaml"}
    assert "dataset: sample" in (disk / "config.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["src/main.py", ".git/HEAD", "notes.txt", "best/notes.txt", "checkpoints/mine/a", "best/model.safetensors~"]
)
def test_overwriting_removes_only_what_a_run_wrote(tmp_path, name):
    """Also what has come since the folder was claimed."""
    run = tmp_path / "run"
    (run / "trackers" / "tensorboard").mkdir(parents=True)
    written = ["checkpoints/step-00000003.safetensors", "best/config.json", "profile/steps.txt", "summary.json"]
    for each in ("config.yaml", *written, ".summary.json.partial-1", "trackers/tensorboard/events"):
        (run / each).parent.mkdir(exist_ok=True)
        (run / each).write_text(SAMPLE.to_yaml())
    before = sorted(run.rglob("*"))
    folder = RunFolder(run)
    folder.claim(resume=False, overwrite=True)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("precious")
    message = rf"must hold nothing but a run; got also {re.escape(name.split('/')[0])}"
    with pytest.raises(RunFolderError, match=message):
        folder.prepare(SAMPLE)
    folder.release()
    with pytest.raises(RunFolderError, match=message):
        RunFolder(run).claim(resume=False, overwrite=True)
    assert set(before) < set(run.rglob("*"))
    assert (run / name).read_text() == "precious"
    (run / name).unlink()
    if (run / name).parent not in (run, *before):
        (run / name).parent.rmdir()
    begin(run, overwrite=True)
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml"}


def test_overwriting_spares_another_program_s_configuration_and_the_run_s_inputs(tmp_path):
    (tmp_path / "config.yaml").write_text("theme: dark\n")
    with pytest.raises(RunFolderError, match=r"got also a config\.yaml that is no run's\. Nothing was removed"):
        RunFolder(tmp_path).claim(resume=False, overwrite=True)
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
    assert all(folder.name.startswith("cnn-mnist-20") for folder in folders)
    with pytest.raises(RunFolderError, match=r"--resume needs the folder of the run to resume\. Add --output-dir"):
        train(TrainConfig(dataset="sample", resume=True, cpu=True))
    (tmp_path / "runs").rename(tmp_path / "moved")
    (tmp_path / "runs").touch()
    with pytest.raises(RunFolderError, match="must be a folder that can be made; got"):
        _new_folder("run")
