"""Helpers of all benchmarks: result files that name the circumstances of their run, tables, times and memory."""

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
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from ttfs_triton.evaluate.machine import processor_name
from ttfs_triton.table import Table, print_whole
from ttfs_triton.wording import csv_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # PyTorch's profiler keeps its messages to itself

Row = dict[str, Any]
Contender = TypeVar("Contender")


class DisagreementError(RuntimeError):
    """Two contenders that should compute the same results do not, so nothing may be timed."""


def run_script(options: type[Any], run: Callable[[Any], object], description: str | None) -> None:
    """Run a script with the options of its command line; exits with a message if contenders disagree."""
    import tyro  # here, since `gpu.py` also uses scripts where tyro is missing

    try:
        run(tyro.cli(options, description=description))
    except DisagreementError as error:
        sys.exit(f"{error} Nothing more was timed.")


def device_of(name: str) -> torch.device:
    """The device called `name`; exits with a message if it is "cuda" and there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("device_of: --device cuda must have a GPU that PyTorch can use; got none. Use --device cpu.")
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
    """A command line without this machine's folders: no --output, and only the last part of absolute paths."""
    pairs = zip(["", *arguments], arguments, strict=False)
    kept = [word for before, word in pairs if before != "--output" and word.partition("=")[0] != "--output"]
    return [Path(word).name if os.path.isabs(word) else word for word in kept]


def commit() -> str:
    """Commit of this checkout, with a plus sign if files have changed since then; empty outside a checkout."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "describe", "--always", "--dirty=+"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Path:
    """Write NAME.csv into a folder: a line "# key: value" per circumstance, then the rows, which may lack columns.

    Circumstances that are None are left out; anything but text is written as JSON. An earlier file is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    given = {key: value for key, value in about.items() if value is not None}
    lines = [f"# {key}: {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}\n" for key, v in given.items()]
    path.write_text("".join(lines) + csv_text(rows), encoding="utf-8", newline="")
    print(f"written: {path}")
    return path


def read(path: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Rows and circumstances of a file that `write` made; both are empty if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    about = [line for line in lines if line.startswith("# ")]
    pairs = (line.removeprefix("# ").rstrip("\n").partition(": ") for line in about)
    return list(csv.DictReader(lines[len(about) :])), {key: value for key, _, value in pairs}


# Tables


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    left: Collection[str] = (),
    width: int = 0,
) -> None:
    """Print a table, at least `width` characters wide; the first column and those in `left` align left."""
    prose = [place for place, heading in enumerate(headings) if heading in left]
    table = Table(title or "", headings, [[str(cell) for cell in row] for row in rows], prose)
    console = Console()
    print_whole(table, console=Console(width=max(width, console.width)) if console.is_terminal else None)


def print_rows(rows: Sequence[Row], columns: Mapping[str, str], *, title: str | None = None) -> None:
    """Print rows as a table; `columns` map a heading to the format string that makes a cell from a row's values."""
    print_table(list(columns), [[cell.format(**row) for cell in columns.values()] for row in rows], title=title)


def machine_line(about: Row) -> str:
    """One line for people: device, threads, PyTorch's version and date."""
    return f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {about['utc']} UTC"


@contextlib.contextmanager
def picture(path: Path, *shape: int, size: tuple[float, float], **options: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its array of panels to draw on, written to `path` afterwards; equal drawings give equal bytes."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.hashsalt": path.stem.partition("-")[0], "font.size": 9}):
        figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, **options)
        for panel in axes.flat:
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        yield figure, axes
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    print(f"written: {path}")


# Times and memory


def now(device: torch.device) -> float:
    """The clock in seconds, read when the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turns(contenders: Sequence[Contender], rounds: int) -> Iterator[Contender]:
    """Every contender once per round. Rounds begin with different ones, so that the machine's noise hits all alike."""
    for round_ in range(rounds):
        first = round_ % max(1, len(contenders))
        yield from (*contenders[first:], *contenders[:first])


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Times of calls in ms, a list of `rounds` per name; the time of a call under 5 ms is the mean of several calls."""
    ms: dict[str, list[float]] = {name: [] for name in runs}
    calls = dict.fromkeys(runs, 1)

    def time_once(name: str) -> float:
        start = now(device)
        for _ in range(calls[name]):
            runs[name]()
        return (now(device) - start) * 1e3 / calls[name]

    for name in in_turns(list(runs), warm_up):
        calls[name] = math.ceil(5.0 / time_once(name))
    for name in in_turns(list(runs), rounds):
        ms[name].append(time_once(name))
    return ms


def percentiles(ms: Sequence[float], places: int = 2) -> dict[str, float]:
    """Columns of a result: median, 20th and 80th percentile of times in ms."""
    low, high = torch.tensor(ms).quantile(torch.tensor([0.2, 0.8])).tolist()
    return {"ms_p50": round(median(ms), places), "ms_p20": round(low, places), "ms_p80": round(high, places)}


def ratio(ms: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of a contender's time divided by another contender's time in the same round."""
    return round(median(a / b for a, b in zip(ms, base, strict=True)), 3)


def transient_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Peak memory in bytes of the tensors that a call makes, counted by PyTorch's allocators."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    raw: Any = profiler.profiler
    events = [event for event in raw.kineto_results.events() if event.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest
