"""Time that a layer takes on the host, from the public function to the launcher, with a GPU that is not there.

    python bench/host_time.py --commits 2a87840

A GPU computes while Python prepares what comes next, as long as Python is the faster. Here Triton compiles for an H100
that is not there (see `_absent_gpu.py`), and what is timed ends where a call into its driver would begin: checks,
operators, autograd, planning, allocation, launches. The layers are small, since sizes do not matter to the host.

Each commit runs in processes of its own, in turns with the others, on the same machine; the kernels package is taken
from the commit, the measuring from this checkout. Times are the lowest and the median of many short batches of calls,
by the clock and by the processor's time of the thread: on a machine that others use too, the second tells more.
"""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from _record import ROOT, commit, environment, write
from rich.console import Console
from rich.table import Table
from torch import Tensor

CALLS, BATCHES, WARM_UP = 25, 40, 30
MODES = ("forward, no gradients", "forward", "forward and backward")


@dataclasses.dataclass
class Options:
    """Time layers on the host."""

    commits: tuple[str, ...] = ()
    """Commits whose kernels are measured before this checkout's, in the same run."""
    rounds: int = 5
    """Processes of each commit."""
    output: Path = ROOT / "bench" / "results"
    measure: bool = False
    """Only measure the package that Python finds, and print JSON; what the processes do."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.rounds < 1:
        sys.exit(f"host_time: --rounds must be at least 1; got {options.rounds}.")
    if options.measure:
        print(json.dumps(measure()))
        return
    import triton

    with tempfile.TemporaryDirectory() as folder:
        packages = {name: extract(name, Path(folder) / name) for name in options.commits}
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


def extract(name: str, folder: Path) -> Path:
    """The kernels package of a commit, in a folder."""
    try:
        archive = subprocess.run(["git", "archive", name, "kernels"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"host_time: --commits must name commits of this checkout; got {name!r}. {error}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(folder, filter="data")
    return folder / "kernels"


def in_process(package: Path) -> list[dict[str, Any]]:
    """What `measure` finds in a fresh process with a package."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure"]
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


def measure() -> list[dict[str, Any]]:
    """Rows of all layers and modes for the package that Python finds."""
    import _absent_gpu

    _absent_gpu.pretend()
    rows = []
    for name, layer, tensors in layers():
        for mode in MODES:
            run = call(layer, tensors, mode)
            run()
            _absent_gpu.launched.clear()
            run()
            launches, _absent_gpu.listening = len(_absent_gpu.launched), False
            rows.append({"layer": name, "mode": mode, "launches": launches} | times_us(run))
            _absent_gpu.listening = True
    return rows


def layers() -> list[tuple[str, Callable[..., Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """Name, function of (x, weight, bias), and operands; 16-bit activations and weights, as in mixed precision."""
    from ttfs_kernels import dft_conv2d, dft_linear

    def half(*shape: int) -> Tensor:
        tensor = torch.rand(shape).half()
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    convolution = half(4, 64, 8, 8), half(64, 64, 3, 3), torch.zeros(64)
    linear = half(16, 512), half(512, 512), torch.zeros(512)
    return [
        ("3×3 convolution, 64 → 64", lambda *a: dft_conv2d(*a, padding=1, backend="triton"), convolution),
        ("fully connected, 512 → 512", lambda *a: dft_linear(*a, backend="triton"), linear),
    ]


def call(layer: Callable[..., Tensor], tensors: tuple[Tensor, Tensor, Tensor], mode: str) -> Callable[[], object]:
    """One call in a mode."""
    if mode == MODES[0]:
        return lambda: layer(*tensors)
    operands = [tensor.detach().requires_grad_() for tensor in tensors]
    if mode == MODES[1]:
        return lambda: layer(*operands)
    grad = torch.ones_like(layer(*operands))
    return lambda: torch.autograd.grad(layer(*operands), operands, grad)


def times_us(run: Callable[[], object]) -> dict[str, float]:
    """Microseconds of a call: lowest and median of the batches, by the clock and by the thread's processor time."""
    for _ in range(WARM_UP):
        run()
    clock, processor = [], []
    for _ in range(BATCHES):
        start = time.perf_counter(), time.thread_time()
        for _ in range(CALLS):
            run()
        clock.append((time.perf_counter() - start[0]) / CALLS * 1e6)
        processor.append((time.thread_time() - start[1]) / CALLS * 1e6)
    return {
        "clock_us_lowest": round(min(clock), 1),
        "clock_us_median": round(median(clock), 1),
        "processor_us_lowest": round(min(processor), 1),
        "processor_us_median": round(median(processor), 1),
    }


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
