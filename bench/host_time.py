"""Time that a layer takes on the host, from the public function to the launcher, with a GPU that is not there.

    python bench/host_time.py --commits 2a87840

A GPU computes while Python prepares what comes next, as long as Python is the faster. Here Triton compiles for an H100
that is not there (see `_absent_gpu.py`), and what is timed ends where a call into its driver would begin: checks,
operators, autograd, planning, allocation, launches. The layers are small, since sizes do not matter to the host.
Beside them stands an operator that only allocates (`_empty_operator.py`). One call of autograd takes as long as a
layer, whatever it differentiates: the last rows share it among several layers, as a network does.

Each commit runs in processes of its own, in turns with the others, on the same machine; the kernels package is taken
from the commit, the measuring from this checkout. Times are the lowest and the median of many short batches of calls,
by the clock and by the processor's time of the thread: on a machine that others use too, the second tells more.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from _commits import extract
from _record import ROOT, commit, environment, write
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass
class Options:
    """Time layers on the host."""

    commits: tuple[str, ...] = ()
    """Commits whose kernels are measured before this checkout's, in the same run."""
    rounds: int = 5
    """Processes of each commit."""
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.rounds < 1:
        sys.exit(f"host_time: --rounds must be at least 1; got {options.rounds}.")
    import triton

    with tempfile.TemporaryDirectory() as folder:
        packages = {name: extract(name, Path(folder) / name, "kernels") / "kernels" for name in options.commits}
        packages[commit() or "checkout"] = ROOT / "kernels"
        found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in packages}
        for _ in range(options.rounds):
            for name, package in packages.items():
                found[name].append(in_process(package))
    rows = [
        {"commit": name} | {key: over_rounds(key, [rows[i] for rows in rounds]) for key in rounds[0][i]}
        for name, rounds in found.items()
        for i in range(len(rounds[0]))
    ]
    show(rows)
    about = environment(torch.device("cpu")) | {"triton": triton.__version__, "rounds": options.rounds}
    for path in write(options.output, "host-time", rows, about):
        print(f"written: {path}")


def in_process(package: Path) -> list[dict[str, Any]]:
    """What `_host_calls.py` finds in a fresh process with a package."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("_host_calls.py"))]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"host_time: measuring {package} failed.\n{done.stderr}")
    return json.loads(done.stdout)


def over_rounds(key: str, rows: list[dict[str, Any]]) -> Any:
    """A column over the rounds: the lowest of lowest times, the median of medians, anything else as it is."""
    values = [row[key] for row in rows]
    if key.endswith("_lowest"):
        return min(values)
    return round(median(values), 1) if key.endswith("_median") else values[0]


def show(rows: list[dict[str, Any]]) -> None:
    """A table of all rows."""
    table = Table(title="microseconds of a layer on the host", title_justify="left")
    for key in rows[0]:
        table.add_column(key, justify="left" if key in ("commit", "layer", "mode") else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
