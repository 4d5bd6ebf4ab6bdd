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


def test_a_layer_s_share_of_a_network():
    """Calls of the layer in each mode, and what comes back; times are of one layer."""
    code = f"""
import sys; sys.path.insert(0, {str(BENCH)!r})
import _host_calls as calls, torch
counted = []
def layer(x, weight, bias):
    counted.append(1)
    return x * weight + bias
for mode in calls.MODES:
    run = calls.call(layer, (torch.rand(4), torch.rand(4), torch.rand(4)), mode)
    counted.clear()
    result = run()
    print(len(counted), len(result) if isinstance(result, tuple) else result.requires_grad)
calls.time.perf_counter = lambda: now[0]
calls.time.thread_time = lambda: 2 * now[0]
now = [0.0]
def run():
    now[0] += 8e-6
print(calls.times_us(run, 1), calls.times_us(run, 8))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *modes, times = done.stdout.splitlines()
    assert modes == ["1 False", "1 True", "1 3", "8 17"]
    columns = {"clock_us_lowest": 1, "clock_us_median": 1, "processor_us_lowest": 2, "processor_us_median": 2}
    one, eighth = ({column: us * factor for column, factor in columns.items()} for us in (8.0, 1.0))
    assert times == f"{one} {eighth}"
