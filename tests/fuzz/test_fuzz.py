"""Whatever is read from outside is read or refused with a sentence: a little of it here, more behind `-m slow`."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.modules import run_python
from tests.fuzz.run import run
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
PLANTED = r"""
import sys, time
from tests.fuzz import run, targets
def unexpected(): raise KeyError('x')
def undecoded(): b'\xff'.decode()
def large(): bytearray(2**31)
def endless():
    while True: pass
def waiting(): time.sleep(60)
for what in (unexpected, undecoded, large, endless, waiting):
    def read(folder, content, what=what):
        if content != b"seed": what()
    targets.TARGETS[what.__name__] = targets.Target(lambda: [b"seed"], read, (ValueError,))
run.SECONDS, run.WAITING = 1, 1 if sys.argv[1] == "waiting" else 60
run.main([sys.argv[1], "5", "0"])
"""


def test_nothing_escapes_in_a_few_tries():
    # One process for all: importing takes longer than reading.
    shown = run_python("-m", "tests.fuzz.run", ",".join(TARGETS), "10", "1", interpret=True)
    found = re.findall(r"^(\S+) (\d+) (\d+) (\d+)$", shown, re.MULTILINE)
    assert [kind for kind, *_ in found] == list(TARGETS)
    assert {(int(read) + int(refused), failed) for _, read, refused, failed in found} == {(10, "0")}, shown


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_nothing_escapes_in_many_tries(kind):
    row = run(kind, 3000, 2)
    assert row["failed"] == 0, row["problems"]


@pytest.mark.slow
def test_fuzzer_finds_what_is_planted():
    for kinds, number in (("waiting", signal.SIGALRM), ("unexpected,undecoded,large,endless", signal.SIGPROF)):
        done = subprocess.run([sys.executable, "-uc", PLANTED, kinds], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -number, done.stderr
    for problem in (
        r"^unexpected 0 0 5\n0: Traceback(.|\n)*?KeyError: 'x'",
        r"^undecoded 0 0 5\n0: UnicodeDecodeError",
        r"^large 0 0 5\n0: Traceback(.|\n)*?MemoryError",
    ):
        assert re.search(problem, done.stdout, re.MULTILINE), done.stdout
    assert "endless" not in done.stdout
