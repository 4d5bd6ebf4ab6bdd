"""Fuzz readers: `python -m tests.fuzz.run KIND,KIND TRIES SEED` prints how many tries were read, refused, and failed.

The process gets 1 GiB more memory than it starts with. It is killed when a try takes 10 s of CPU time or a minute.
`python -m tests.fuzz.run all TRIES SEED --csv FILE` fuzzes all kinds, a process each, and writes the table.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

MEMORY_BYTES, SECONDS, WAITING = 2**30, 10, 60
COLUMNS = ("kind", "tries", "read", "refused", "failed", "seed", "commit", "utc")
# What has broken readers: too large, too long, of another type, not finite, nested, aliases.
VALUES = (
    *("-1", "0", "1e308", "1e-320", "NaN", ".nan", "inf", "-inf", "null", "true", '""', "[]", "{}", "[1, 2, 3]"),
    *("10.0", str(10**12), str(2**64), str(10**400), "9" * 5000, '"99999999C3"', '"1C1-1C1"', "2001-99-99"),
    *("&a [*a]", "*a", "!!python/name:os.system", "!!timestamp x", "0x", '"\\ud800"', "\x00", "[" * 2000),
    *("1e309", "-1e309", '"\\u0000"', f'"{"n" * 300}"', f'"{"../" * 9}x"'),
)
_VALUE = re.compile(rb'-?\d[\d.e+-]*|"[^"\n]*"|true|false|null', re.IGNORECASE)


def mutated(content: bytes, chance: random.Random, text: bool) -> bytes:
    """Content with one to four changes: bits, bytes, cuts, repeats, and in text also other values."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        places = list(_VALUE.finditer(content)) if text else []
        place = chance.randrange(len(content) + 1)
        kind = chance.randrange(5) if not places or chance.random() < 0.3 else 5
        if kind == 0 and content:
            place %= len(content)
            content = content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
        elif kind == 1:
            content = content[:place]
        elif kind == 2:
            content = content[:place] + chance.randbytes(chance.choice((1, 2, 4, 8))) + content[place + 4 :]
        elif kind == 3:
            content = content[:place] + content[max(0, place - 32) :]
        elif kind == 4:
            content = content[:place] + b"\xff" * chance.choice((1, 4, 8)) + content[place + 8 :]
        elif kind == 5:
            match = chance.choice(places)
            content = content[: match.start()] + chance.choice(VALUES).encode() + content[match.end() :]
    return content


def fuzz(kind: str, tries: int, seed: int) -> tuple[int, int, list[str]]:
    """Read changed content in this process, which gets bounds it never loses.

    Args:
        kind: a key of `TARGETS`.
        tries: how often.
        seed: of the changes.
    Returns:
        How many were read, how many refused as they should be, and what went wrong with the others.
    """
    from tests.fuzz.targets import TARGETS

    target, chance = TARGETS[kind], random.Random(f"{kind} {seed}")
    seeds, failed, read, refused = target.seeds(), [], 0, 0
    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        for content in seeds:  # also imports what is imported late, which needs memory of its own
            target.read(Path(name), content)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.RLIM_INFINITY))
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)  # ends the process, also within a library
        for attempt in range(tries):
            content = mutated(chance.choice(seeds), chance, target.text)
            print(f"\r{attempt}", end="", file=sys.stderr, flush=True)
            signal.alarm(WAITING)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                target.read(Path(name), content)
                read += 1
            except target.errors as error:
                if isinstance(error, UnicodeError):  # a ValueError, but nobody's sentence
                    failed.append(f"{attempt}: {error!r:.200}")
                else:
                    refused += 1
            except Exception:  # what a fuzzer looks for
                failed.append(f"{attempt}: {traceback.format_exc(limit=-3)}\n{content[:300]!r}")
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
    return read, refused, failed


def run(kind: str, tries: int, seed: int) -> dict[str, object]:
    """`fuzz` in a process of its own.

    Returns:
        A row of the table, by `COLUMNS`, and "problems"; a process that was killed is one of them.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", kind, str(tries), str(seed)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    head, _, problems = done.stdout.removeprefix(f"{kind} ").partition("\n")
    if done.returncode:
        last = done.stderr.rpartition("\r")[2][-2000:]
        return {"kind": kind, "tries": tries, "failed": 1, "problems": f"ended by {done.returncode} in try {last}"}
    values = dict(zip(("read", "refused", "failed"), map(int, head.split()), strict=True))
    return {"kind": kind, "tries": tries, **values, "seed": seed, "problems": problems}


def main(arguments: Sequence[str]) -> None:
    """The command line; exits with 1 if anything went wrong."""
    kinds, tries, seed = arguments[0], int(arguments[1]), int(arguments[2])
    if kinds != "all":
        for kind in kinds.split(","):
            read, refused, failed = fuzz(kind, tries, seed)
            print("\n".join([f"{kind} {read} {refused} {len(failed)}", *failed[:5]]))
        return
    from tests.fuzz.targets import TARGETS

    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = [run(name, tries, seed) for name in TARGETS]
    about = {"seed": seed, "commit": commit, "utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")}
    buffer = io.StringIO()
    table: csv.DictWriter[str] = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({**row, **about} for row in rows)
    if "--csv" in arguments:
        Path(arguments[arguments.index("--csv") + 1]).write_text(buffer.getvalue())
    print(buffer.getvalue(), *(f"{row['kind']}: {row['problems']}" for row in rows if row["failed"]), sep="\n")
    raise SystemExit(any(row["failed"] for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
