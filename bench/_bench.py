"""Helpers of all benchmarks: result files with the circumstances of their run, tables, times and memory."""

import contextlib
import csv
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from ttfs_triton.evaluate.machine import processor_name

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"

Row = dict[str, Any]
Contender = TypeVar("Contender")


class DisagreementError(RuntimeError):
    """Two contenders that should compute the same results do not, so nothing may be timed."""


def device_of(command: str, name: str) -> torch.device:
    """The device called `name`; exits with a message if it is "cuda" and there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit(f"{command}: --device cuda must have a GPU that PyTorch can use; found none. Use --device cpu.")
    return torch.device(name)


# Result files


def environment(device: torch.device) -> Row:
    """Circumstances of a run, for its result file: command, commit, date, machine, threads and versions."""
    processor = f"{processor_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    gpu = device.type == "cuda"
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *portable(sys.argv[1:])]),
        "commit": commit(),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "device": torch.cuda.get_device_name(device) if gpu else processor,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
    }


def portable(arguments: Sequence[str]) -> list[str]:
    """A command line without paths of this machine: no --output, and only the last part of absolute paths."""
    words: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word.partition("=")[0] != "--output":
            words.append(Path(word).name if os.path.isabs(word) else word)
        skip = word == "--output"
    return words


def commit() -> str:
    """Commit of this checkout, with a plus sign if files have changed since; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        revision = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return revision.stdout.strip()


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Path:
    """Write NAME.csv: a line "# key: value" for each circumstance, then the rows; replaces an earlier file.

    Args:
        folder: folder of the file; made if it does not exist.
        name: name of the file, without its ending.
        rows: at least one row; columns that a row lacks stay empty.
        about: circumstances of the run; None is left out, anything but text is written as JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        for key, value in about.items():
            if value is not None:
                file.write(f"# {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n")
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")
    return path


def read(path: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Rows and circumstances of a file that `write` made; both are empty if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    about = [line for line in lines if line.startswith("# ")]
    found = (line.removeprefix("# ").rstrip("\n").partition(": ") for line in about)
    return list(csv.DictReader(lines[len(about) :])), {key: value for key, _, value in found}


# Tables


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    left: Collection[str] = (),
    width: int = 0,
) -> None:
    """Print a table.

    Args:
        headings: one heading per column.
        rows: rows of as many cells as headings.
        title: title above the table.
        left: headings of columns that are aligned left, like the first; all others are aligned right.
        width: smallest width in characters, also if the output is not a terminal.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if not place or heading in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    (console if console.width >= width else Console(width=width)).print(table)


def machine_line(about: Row) -> str:
    """One line for people: device, threads, PyTorch's version and date."""
    return f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc']} UTC"


def digits(value: float) -> str:
    """The value with at least three digits and no exponent."""
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"


# Times and memory


def now(device: torch.device) -> float:
    """The clock in seconds, read after all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turns(contenders: Sequence[Contender], rounds: int) -> Iterator[Contender]:
    """Every contender once per round, each round starting with the next one: the machine's noise hits all alike."""
    for round_ in range(rounds):
        first = round_ % max(1, len(contenders))
        yield from (*contenders[first:], *contenders[:first])


def percentiles(ms: Sequence[float], places: int = 2) -> dict[str, float]:
    """Columns of a result: median, 20th and 80th percentile of times in ms."""
    low, high = torch.tensor(ms).quantile(torch.tensor([0.2, 0.8])).tolist()
    return {"ms_p50": round(median(ms), places), "ms_p20": round(low, places), "ms_p80": round(high, places)}


def ratio(own: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of a contender's time divided by another contender's time in the same round."""
    return round(median(a / b for a, b in zip(own, base, strict=True)), 3)


def transient_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Peak memory in bytes of the tensors that a call makes, counted by PyTorch's allocators."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _silent_errors(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    raw: Any = profiler.profiler
    events = [event for event in raw.kineto_results.events() if event.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


@contextlib.contextmanager
def _silent_errors() -> Iterator[None]:
    """Keep the profiler's messages off the screen; it writes them to the file descriptor of standard error."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
