"""A run on a disk that fills up."""

import shutil
import subprocess
import sys

import pytest

from tests.train.runs import assert_same_run, environment, run

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
def test_full_disk_is_reported_and_the_run_resumes_when_there_is_room(tmp_path, data, size):
    words = [*UNSHARED, sys.executable, "-c", SCRIPT, str(tmp_path), str(data), str(size)]
    found = subprocess.run(words, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert "No space left on device" in found.stderr.partition("more room")[0]
    other = run(tmp_path, data, tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert_same_run(tmp_path / "copy", tmp_path / "other")
