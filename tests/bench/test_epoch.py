"""`bench/epoch.py`: a smallest run of this checkout, what becomes of the rounds, and what it refuses."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.modules import BENCH

SCRIPT = BENCH / "epoch.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_one_step_an_epoch_is_scaled_to_all(tmp_path: Path) -> None:
    flags = "--model 2C3s8-8 --auto-augment False --num-workers 0"
    done = run("--steps", "1", "--rounds", "1", "--threads", "1", f"--flags={flags}", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "epoch-cpu.csv").read_text().splitlines())
    assert row["steps"] == "1"
    assert float(row["epoch_s_lowest"]) == float(row["epoch_s"]) == float(row["epoch_s_highest"])
    assert float(row["epoch_s"]) == pytest.approx(0.39 * int(row["step_ms"]), abs=0.3)
    assert float(row["run_processor_s"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "epoch: --rounds and --steps must be at least 1; got 0 and 20."),
        (["--commits", "none-such"], "epoch: --commits must name commits of this checkout; got 'none-such'."),
    ],
)
def test_refuses_what_it_cannot_measure(options: list[str], message: str) -> None:
    done = run(*options)
    assert done.returncode == 1
    assert message in done.stderr
