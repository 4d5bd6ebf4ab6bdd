"""Freed memory stays with the process: counted in pages that the system had to provide."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from ttfs_triton import memory

COUNT = """
import resource, torch
from ttfs_triton.memory import keep_freed_memory

def pages_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large, larger = torch.ones(1 << 24), torch.ones(3 << 24)
    del large, larger
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory(), pages_of_a_step(), [pages_of_a_step() for _ in range(5)][-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries keep what they like")
def test_later_steps_get_the_memory_of_the_first():
    """In a process of its own, since there is no way back. 256 MiB are 65,536 pages, or 128 huge ones."""
    result = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    kept, first, later = result.stdout.split()
    assert kept == "True"
    assert int(first) > 100
    assert int(later) < 20


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "win32")
    assert memory.keep_freed_memory() is False
