"""`bench/host_time.py`: what becomes of the rounds, and what it refuses. `test_programs.py` has the launcher."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.test_kernels_compile import BENCH

SCRIPT = Path(BENCH) / "host_time.py"


def test_columns_over_rounds():
    code = f"""
import sys; sys.path.insert(0, {str(BENCH)!r})
import host_time
rows = [{{"layer": "a", "us_lowest": low, "us_median": middle}} for low, middle in ((3.0, 5.0), (2.0, 9.0), (4.0, 6.0))]
print([host_time.over_rounds(key, rows) for key in rows[0]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a', 2.0, 6.0]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "host_time: --rounds must be at least 1; got 0."),
        (["--commits", "none-such"], "host_time: --commits must name commits of this checkout; got 'none-such'."),
    ],
)
def test_refuses_what_it_cannot_measure(options, message):
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
