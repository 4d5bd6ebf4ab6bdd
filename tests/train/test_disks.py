"""Runs on a disk that fills up, and on one that may only be read: a small real one."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.train.runs import assert_same_run, environment, run

# In a mount namespace of its own, so that nothing is left mounted whatever happens.
UNSHARED = ["unshare", "--mount", "--map-root-user"]
START = """
import subprocess, sys
from pathlib import Path
from tests.train.runs import run

folder, data = sys.argv[1:]
disk = Path(folder, "disk")
disk.mkdir()

def sh(command):
    subprocess.run(command, shell=True, check=True)

def start(output, *more):
    ended = run(Path(folder), Path(data), output, *more)
    sys.stdout.write(ended.stdout)
    sys.stderr.write(ended.stderr)
    return ended.returncode
"""


def can_mount() -> bool:
    """Whether this system lets us."""
    if shutil.which("unshare") is None:
        return False
    words = [*UNSHARED, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs unshare and the right to mount a tmpfs")


def on_disk(script: str, tmp_path: Path, data: Path) -> str:
    """Run a script that mounts things at `disk`, in the current folder, and calls `start` for runs; what it says."""
    words = [*UNSHARED, sys.executable, "-c", START + textwrap.dedent(script), str(tmp_path), str(data)]
    found = subprocess.run(words, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    return found.stderr


# Kilobytes: config.yaml does not fit; no checkpoint does; some do, but not all that is kept.
@pytest.mark.parametrize(
    "size", [pytest.param(4, marks=pytest.mark.slow), 16, pytest.param(40, marks=pytest.mark.slow)]
)
def test_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path, data, size):
    shown = on_disk(
        f"""
        sh("mount -t tmpfs -o size={size}k none disk")
        assert start(disk / "run") == 1
        sys.stderr.write("more room")
        sh("mount -o remount,size=20m disk")
        begun = (disk / "run" / "config.yaml").exists()
        assert start(disk / "run", *["--resume"] * begun) == 0
        sh("cp -r disk/run copy")
        """,
        tmp_path,
        data,
    )
    assert "No space left on device" in shown.partition("more room")[0]
    other = run(tmp_path, data, tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert_same_run(tmp_path / "copy", tmp_path / "other")


@pytest.mark.slow
def test_disk_that_may_only_be_read_is_told(tmp_path, data):
    shown = on_disk(
        """
        sh("mount -t tmpfs -o size=20m none disk")
        assert start(disk / "run") == 0
        sh("rm disk/run/summary.json; mount -o remount,ro disk")
        assert start(disk / "run", "--resume") == 1
        assert start(disk / "run", "--overwrite") == 1
        assert start(disk / "new") == 1
        """,
        tmp_path,
        data,
    )
    assert shown.count("must be a folder that can be written; got Read-only file system") == 3
