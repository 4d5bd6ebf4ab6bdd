"""Freed memory stays with the process for a while: counted in pages that the system had to provide."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from ttfs_triton.train import device

COUNT = """
import resource, torch
from pathlib import Path
from ttfs_triton.train.device import freed_memory_kept

def pages_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large, larger = torch.ones(1 << 24), torch.ones(3 << 24)
    del large, larger
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

with freed_memory_kept() as kept:
    print(kept, pages_of_a_step(), [pages_of_a_step() for _ in range(5)][-1], resident_mib())
after = resident_mib()
pages_of_a_step()
print(after, resident_mib())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries keep what they like")
def test_later_steps_get_the_memory_of_the_first():
    """256 MiB are 65,536 pages, or 128 huge ones. Afterwards all of it goes back, and so does what comes later."""
    result = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    kept, first, later, within, after, end = result.stdout.split()
    assert kept == "True"
    assert int(first) > 100
    assert int(later) < 20
    assert int(after) < int(within) - 200
    assert int(end) < int(within) - 200


def test_other_c_libraries_are_left_alone(monkeypatch):
    for home, name, value in ((device.ctypes, "CDLL", lambda _: SimpleNamespace()), (device.sys, "platform", "win32")):
        monkeypatch.setattr(home, name, value)
        with device.freed_memory_kept() as kept:
            assert kept is False
