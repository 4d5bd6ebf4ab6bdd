"""Real processes that a signal, a kill or a full disk stops: what is resumed is the run, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import AUGMENTATION, SETTINGS, assert_same_run, command, environment, run
from ttfs_triton.train import TrainConfig, train

GOES_ON = "Go on with: "  # then "python", or its path if its environment is not active
# A checkpoint after every other step, so that a kill often falls into the writing of one.
KILLED: dict[str, Any] = {"checkpoint_steps": 2, **AUGMENTATION}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the processes have: results are compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def finish(folder: Path, data: Path, **values: Any) -> None:
    """Start a run, or go on with it, in this process, by one thread: results are compared bit by bit."""
    torch.set_num_threads(1)
    values = SETTINGS | {"data_dir": data, "output_dir": folder} | values
    train(TrainConfig(**values, resume=(folder / "config.yaml").exists()))


def begin(words: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    """Start in a process group of its own, as a terminal does."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, env=environment(tmp_path), cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, process_group=0
    )


def wait_for(ready: Callable[[], object], runs: Callable[[], bool]) -> None:
    """Wait until something is ready, while a process runs."""
    deadline = time.monotonic() + 120
    while not ready() and runs() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert ready()


def newest(folder: Path) -> int:
    """Step of a run's newest checkpoint; -1 if there is none."""
    return max((int(path.stem.split("-")[1]) for path in (folder / "checkpoints").glob("step-*")), default=-1)


def test_interrupt_of_all_processes_leaves_workers_to_the_main_one(tmp_path, data):
    """A terminal sends Ctrl-C to all of them; a worker that ended would end the run without a checkpoint."""
    process = begin(command(tmp_path, data, tmp_path / "run", streaming=True, num_workers=2, epochs=60), tmp_path)
    wait_for(lambda: newest(tmp_path / "run") >= 1, lambda: process.poll() is None)
    os.killpg(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert shown.strip().splitlines()[-1].startswith(GOES_ON)
    assert f"--output-dir {tmp_path / 'run'} --resume" in shown


def test_run_killed_at_random_moments_equals_the_uninterrupted_one(tmp_path, data, capsys):
    chance, folder = random.Random(7), tmp_path / "run"
    server = get_context("forkserver")  # imports PyTorch once
    server.set_forkserver_preload(["torch._dynamo", "ttfs_triton.train.run"])
    for kill in range(5):
        process = server.Process(target=finish, args=(folder, data), kwargs=KILLED)
        process.start()
        step = 4 * kill + chance.randrange(4)
        wait_for(lambda step=step: newest(folder) >= step, process.is_alive)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    finish(folder, data, **KILLED)
    finish(tmp_path / "whole", data, **KILLED)
    assert_same_run(folder, tmp_path / "whole")
    assert not list((folder / "checkpoints").glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    finish(folder, data, **KILLED)
    assert "has ended already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, "rank 1"), (signal.SIGINT, "all")])
def test_signal_to_one_of_two_processes_or_to_all_and_their_launcher_saves(tmp_path, data, number, to):
    words = command(tmp_path, data, tmp_path / "run", epochs=500, checkpoint_steps=5, processes=2)
    script = tmp_path / "small.py"
    script.write_text("import os\nopen('rank-' + os.environ['RANK'], 'w').write(str(os.getpid()))" + script.read_text())
    process = begin(words, tmp_path)
    wait_for(lambda: newest(tmp_path / "run") >= 1, lambda: process.poll() is None)
    ranks = [int((tmp_path / f"rank-{rank}").read_text()) for rank in (0, 1)]
    for target in ranks[1:] if to == "rank 1" else [*ranks, process.pid]:
        os.kill(target, number)
    _, shown = process.communicate(timeout=120)
    assert process.returncode != 0
    last = tmp_path / "run" / "checkpoints" / f"step-{newest(tmp_path / 'run'):08}.safetensors"
    lines = [line for line in shown.splitlines() if " received: stopped after step " in line]
    assert f"{number.name} received" in "".join(lines), shown
    assert all(line.endswith(f"checkpoint {last}.") for line in lines), shown
    assert GOES_ON in shown
    assert not any((tmp_path / "run" / "checkpoints").glob(".*"))


# In a mount namespace of its own, so that nothing is left mounted whatever happens.
UNSHARED = ["unshare", "--mount", "--map-root-user"]
SCRIPT = """
import subprocess, sys
from pathlib import Path
from tests.train.runs import run

folder, data = sys.argv[1:]

def sh(command):
    subprocess.run(command, shell=True, check=True)

def start(*flags):
    ended = run(Path(folder), Path(data), Path("disk/run"), *flags)
    sys.stderr.write(ended.stderr)
    return ended.returncode

sh("mkdir disk && mount -t tmpfs -o size=40k none disk")  # some checkpoints fit, but not all that is kept
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


@pytest.mark.skipif(not can_mount(), reason="needs unshare and the right to mount a tmpfs")
def test_full_disk_is_reported_and_the_run_resumes_when_there_is_room(tmp_path, data):
    words = [*UNSHARED, sys.executable, "-c", SCRIPT, str(tmp_path), str(data)]
    found = subprocess.run(words, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert "No space left on device" in found.stderr.partition("more room")[0]
    other = run(tmp_path, data, tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert_same_run(tmp_path / "copy", tmp_path / "other")
