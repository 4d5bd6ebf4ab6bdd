"""Runs on a disk that fills up, that may only be read, and that is mounted where the run is to be: a small real one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train.runs import assert_same_run, command, environment, run

# In a mount namespace of its own, so that nothing is left mounted whatever happens.
MOUNT = ["unshare", "--mount", "--map-root-user", "sh", "-euc"]


def can_mount() -> bool:
    """Whether this system lets us."""
    if shutil.which("unshare") is None:
        return False
    words = [*MOUNT, "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs unshare and the right to mount a tmpfs")


def on_disk(script: str, tmp_path: Path, data: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which $RUN starts a run in `disk/run`, or in what $AT names, with more flags behind it."""
    (tmp_path / "disk").mkdir()
    words = command(tmp_path, data, Path("AT"), *flags)
    at = words.index("AT")
    variables = {"RUN": " ".join(words[:at]), "FLAGS": " ".join(words[at + 1 :]), "DISK": str(tmp_path / "disk")}
    return subprocess.run(
        [*MOUNT, "start() { at=$1; shift; $RUN $at $FLAGS $*; }\n" + script],
        env=environment(tmp_path) | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )


# Kilobytes: config.yaml does not fit; no checkpoint does; some do, but not all that is kept.
@pytest.mark.parametrize(
    "size", [pytest.param(4, marks=pytest.mark.slow), 16, pytest.param(40, marks=pytest.mark.slow)]
)
def test_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path, data, size):
    found = on_disk(
        f"""
        mount -t tmpfs -o size={size}k none $DISK
        start $DISK/run || echo "code $?"
        df $DISK >&2
        mount -o remount,size=20m $DISK
        if [ -e $DISK/run/config.yaml ]; then start $DISK/run --resume; else start $DISK/run; fi
        cp -r $DISK/run copy
        """,
        tmp_path,
        data,
    )
    assert found.returncode == 0, found.stderr
    assert "\ncode 1\n" in "\n" + found.stdout
    assert "Traceback" not in found.stderr
    assert "No space left on device" in found.stderr.partition("Filesystem")[0]
    other = run(tmp_path, data, tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert_same_run(tmp_path / "copy", tmp_path / "other")


def test_disk_that_may_only_be_read_is_told(tmp_path, data):
    found = on_disk(
        """
        mount -t tmpfs -o size=20m none $DISK
        start $DISK/run
        rm $DISK/run/summary.json
        mount -o remount,ro $DISK
        for flags in --resume --overwrite; do start $DISK/run $flags || echo "code $?"; done
        start $DISK/new || echo "code $?"
        """,
        tmp_path,
        data,
    )
    assert found.stdout.count("code 1\n") == 3, found.stdout
    assert "Traceback" not in found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3, found.stderr
    assert all("must be a folder that can be written; got Read-only file system" in line for line in lines)


def test_overwriting_replaces_a_run_on_a_mount_point_and_behind_a_link(tmp_path, data):
    found = on_disk(
        """
        mount -t tmpfs -o size=20m none $DISK
        ln -s $DISK link
        start $DISK
        touch $DISK/old
        start link --overwrite
        touch $DISK/old2
        start $DISK --overwrite
        mountpoint $DISK
        ls $DISK
        """,
        tmp_path,
        data,
        "--epochs",
        "1",
    )
    assert found.returncode == 0, found.stderr
    assert os.path.islink(tmp_path / "link")
    names = found.stdout.partition("is a mountpoint\n")[2].split()
    assert names == ["best", "checkpoints", "config.yaml", "metrics.jsonl", "summary.json"]


def test_run_goes_on_that_lost_its_disk_for_a_while(tmp_path, data):
    """As of a network share that is not mounted when the run is to go on: there is no run, and none is begun."""
    found = on_disk(
        """
        mount -t tmpfs -o size=20m none $DISK
        start $DISK/run
        mkdir elsewhere
        mount --move $DISK elsewhere
        start $DISK/run --resume || echo "code $?"
        mount --move elsewhere $DISK
        start $DISK/run --resume
        """,
        tmp_path,
        data,
    )
    assert found.returncode == 0, found.stderr
    assert "must hold a run (a config.yaml); there is none" in found.stderr
    assert not (tmp_path / "disk" / "run").exists()
    assert "This run has ended already" in found.stdout
