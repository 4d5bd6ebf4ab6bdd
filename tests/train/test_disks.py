"""Disks: after a loss of power, whatever the file system kept, a checkpoint is found; a run on one that fills up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.power_loss import Disk, lay_out, recorded
from tests.train.runs import assert_same_run, environment, run
from ttfs_triton.atomic import write_bytes
from ttfs_triton.train import TrainConfig
from ttfs_triton.train.checkpoint import clean_partial, latest_checkpoint, load_checkpoint, save_checkpoint
from ttfs_triton.train.run_folder import RunFolder


def states(disk: Disk, tmp_path: Path) -> list[tuple[Path, int]]:
    """Folders as the disk may have them, and the step that is certain in each."""
    folders = []
    for number, (tree, done) in enumerate(disk.states.values()):
        lay_out(tree, tmp_path / f"state-{number}")
        folders.append((tmp_path / f"state-{number}", done))
    return folders


@pytest.mark.parametrize("keep_last", [1, 2])
def test_whole_checkpoint_is_found_after_any_loss(tmp_path, keep_last):
    """From an empty folder: make the run's folder, save 1, 2, 3, and 3 again with other content."""
    root = tmp_path / "disk"
    root.mkdir()
    with recorded(root) as disk:
        folder = RunFolder(root / "runs" / "mine")
        folder.claim(resume=False, overwrite=False)
        folder.prepare(TrainConfig.model_validate({"dataset": "sample"}))
        for step, attempt in ((1, 1), (2, 1), (3, 1), (3, 2)):
            tensors, state = {"model": {"weight": torch.full((3,), float(step))}}, {"attempt": attempt}
            save_checkpoint(folder.checkpoints, step, tensors=tensors, state=state, keep_last=keep_last)
            disk.done = step  # certain when the call has returned
        folder.release()
    found = set()
    for state, certain in states(disk, tmp_path):
        checkpoints = state / "runs/mine/checkpoints"
        clean_partial(checkpoints)
        newest, step = latest_checkpoint(checkpoints), 0
        if newest is not None:
            checkpoint = load_checkpoint(newest)
            step = checkpoint.step
            assert torch.equal(checkpoint.tensors["model"]["weight"], torch.full((3,), float(step)))
        assert step >= certain
        assert not certain or (state / "runs/mine/config.yaml").read_text()
        found.add((certain, step))
    assert {(0, 0), (1, 1), (2, 2), (3, 3)} <= found


@pytest.mark.parametrize("forgotten", [None, "files", "folders"])
def test_file_is_the_old_or_the_new_one_after_any_loss(tmp_path, monkeypatch, forgotten):
    """The test of the test: without one kind of sync, some state has lost what was certain."""
    root = tmp_path / "disk"
    root.mkdir()

    def sync(descriptor: int) -> None:
        kind = "folders" if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir() else "files"
        if kind != forgotten:
            synced(descriptor)

    with recorded(root) as disk, monkeypatch.context() as patch:
        synced = os.fsync
        patch.setattr(os, "fsync", sync)
        for done, data in enumerate((b"first", b"second one"), start=1):
            write_bytes(root / "summary.json", data)
            disk.done = done
    allowed = {0: {None, b"first"}, 1: {b"first", b"second one"}, 2: {b"second one"}}
    found: dict[int, set[bytes | None]] = {}
    for state, certain in states(disk, tmp_path):
        path = state / "summary.json"
        found.setdefault(certain, set()).add(path.read_bytes() if path.exists() else None)
    assert all(found[certain] <= allowed[certain] for certain in found) == (forgotten is None)


# In a mount namespace of its own, so that nothing is left mounted whatever happens.
UNSHARED = ["unshare", "--mount", "--map-root-user"]
SCRIPT = """
import subprocess, sys
from pathlib import Path
from tests.train.runs import run

folder, data, size = sys.argv[1:]

def sh(command):
    subprocess.run(command, shell=True, check=True)

def start(*flags):
    ended = run(Path(folder), Path(data), Path("disk/run"), *flags)
    sys.stderr.write(ended.stderr)
    return ended.returncode

sh(f"mkdir disk && mount -t tmpfs -o size={size}k none disk")
assert start() == 1
sys.stderr.write("more room")
sh("mount -o remount,size=20m disk")
assert start(*["--resume"] * Path("disk/run/config.yaml").exists()) == 0
sh("cp -r disk/run copy")
"""


def can_mount() -> bool:
    """Whether this system lets us."""
    if shutil.which("unshare") is None:
        return False
    words = [*UNSHARED, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


# Kilobytes: no checkpoint fits; some do, but not all that is kept.
@pytest.mark.skipif(not can_mount(), reason="needs unshare and the right to mount a tmpfs")
@pytest.mark.parametrize("size", [16, pytest.param(40, marks=pytest.mark.slow)])
def test_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path, data, size):
    words = [*UNSHARED, sys.executable, "-c", SCRIPT, str(tmp_path), str(data), str(size)]
    found = subprocess.run(words, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert "No space left on device" in found.stderr.partition("more room")[0]
    other = run(tmp_path, data, tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert_same_run(tmp_path / "copy", tmp_path / "other")
