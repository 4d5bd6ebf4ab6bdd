"""Tune our kernels on a GPU, or compile them without one, layer by layer.

    python bench/kernels.py --tune --dtypes bf16              # a table for backend="auto" on this GPU
    python bench/kernels.py --compile-only --targets sm_90    # registers, spills, instructions; needs no GPU

--tune times all candidate configurations of our kernels beside the library's stacked call, pass by pass, for all layers
of CNN1, VGG11 and VGG16. Results are compared with float64 before they are timed. A stopped run can be resumed. The
table goes into the package, unless --output names another folder. If a default configuration is wrong or does not run,
or the library is wrong, everything else is measured, and the exit status is 1. train_step.py times whole training
steps, beside the composition that a user would write and beside the ANN, compiled or not.

--compile-only has the exit status 1 if it refuses a kernel; `_kernels_compile.py` lists the reasons. Without --shapes,
it also compiles the layers of shapes-compile.json. Its table keeps the rows of other Triton versions.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import _bench as bench
import torch
from _kernels_layers import FORMATS, Number, load, plan_pass, products

from ttfs_kernels.triton_backend.problem import PASSES, Problem

SHAPES = bench.ROOT / "bench" / "shapes.json"
HARD_SHAPES = bench.ROOT / "bench" / "shapes-compile.json"  # channels off the grid, strides, offsets of 64 bits
Target = Literal["sm_80", "sm_90", "sm_100", "gfx942"]


@dataclasses.dataclass
class Options:
    """Tune or compile our kernels."""

    tune: bool = False  # time the candidate configurations and write a table for backend="auto"; needs a GPU
    compile_only: bool = False
    """Compile the default configurations for --targets and judge the machine code; needs no GPU."""
    device: Literal["cpu", "cuda"] = "cuda"  # device to tune on; the CPU needs TRITON_INTERPRET=1
    shapes: Path = SHAPES
    """JSON file of layers: name, fields of `ttfs_kernels.triton_backend.problem.Problem` without batch and dtype."""
    batch_size: int = 256
    dtypes: tuple[Number, ...] | None = None
    """tf32 is float32 with rounded products. Default: bf16 fp16 fp32; with --compile-only all."""
    sigma: tuple[float, ...] | None = None
    """σ of the neurons: 1 is the paper's neuron, 0 an ANN's clamped ReLU. Default: 1; with --compile-only 1 0."""
    quick: bool = False
    """Only check that tuning runs: default configurations, one call per measurement. The times mean nothing."""
    targets: tuple[Target, ...] | None = None
    """Chips to compile for. Default: all."""
    workers: int = os.cpu_count() or 1  # number of processes that compile
    output: Path | None = None
    """Folder of the results. Default: bench/results; with --tune the package's folder of tables."""


def main() -> None:
    import tyro  # here, since `gpu.py` calls `tune` also where tyro is missing

    options = tyro.cli(Options, description=__doc__)
    asked = [run for run in (tune, compile_only) if getattr(options, run.__name__)]
    if len(asked) != 1:
        sys.exit("kernels: --tune or --compile-only must be given. See --help.")
    sys.exit(asked[0](options))


def tune(options: Options) -> int:
    """Complete the table of this GPU; returns 1 if a result is wrong that must agree with float64."""
    from _kernels_tune import Tuner

    from ttfs_kernels.triton_backend.choice import SHIPPED, Entry, table_path
    from ttfs_kernels.triton_backend.launch import device_of, unavailable

    device = bench.device_of("kernels", options.device)
    path = (options.output or SHIPPED) / table_path(device_of(device)).name
    entries: list[Entry] = []
    faults: list[str] = []
    tuner = Tuner(device, path, not options.quick, report=partial(print, flush=True), fault=faults.append)
    if options.quick:
        tuner.time_ms = once_ms
    for number in options.dtypes or ("bf16", "fp16", "fp32"):
        if reason := unavailable(device, FORMATS[number].dtype):
            sys.exit(f"kernels: --device must be able to run Triton kernels; {reason}. {path} was not changed.")
        problems: list[Problem] = []
        for sigma, layer, surrogate in product(options.sigma or (1.0,), load(options.shapes), (False, True)):
            problems.append(layer.problem(options.batch_size, number, sigma, surrogate=surrogate))
        if device.type == "cuda" and not options.quick:
            compile_candidates(problems, number, options.workers)
        with products(number):
            entries = tuner.complete(problems)
    faster = sum(entry.triton_ms <= entry.library_ms for entry in entries)
    print(f"{path} holds {len(entries)} measurements; ours is the faster in {faster}", *faults, sep="\n")
    return int(bool(faults))


def once_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one call on the host's clock, for --quick."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def compile_candidates(problems: list[Problem], number: Number, workers: int) -> None:
    """Compile all candidates into Triton's cache, in parallel, so that tuning only loads them."""
    jobs: list[Any] = list(
        dict.fromkeys((which, problem.of_pass(which), number) for problem in problems for which in PASSES)
    )
    with get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        for done, failed in enumerate(pool.imap_unordered(compile_pass, jobs), 1):
            print(f"compiled {done} of {len(jobs)} passes; {failed} candidates are too large for this chip", flush=True)


def compile_pass(job: tuple[str, Problem, Number]) -> int:
    """Compile the candidates of a pass as a launch would, without launching; returns how many failed."""
    from _kernels_tune import candidates

    from ttfs_kernels.triton_backend.launch import device_of

    which, problem, number = job
    here, precision, failed = device_of(torch.device("cuda", 0)), FORMATS[number].precision, 0
    for config in candidates(which, problem, here, precision):
        try:
            for launch in plan_pass(which, problem, config, precision, here).launches:
                launch.kernel.warmup(**launch.arguments, **launch.options, grid=launch.grid)
        except Exception:  # tuning reports these candidates and leaves them out
            failed += 1
    return failed


def compile_only(options: Options) -> int:
    """Compile and judge the default configurations; returns 1 if a kernel is refused."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        # Triton decided at its import that kernels are interpreted: start a new process.
        variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=variables).returncode
    from _kernels_compile import TARGETS, build_all, default_kernels, others, row, show

    layers = load(options.shapes) + (load(HARD_SHAPES) if options.shapes == SHAPES else [])
    targets, numbers = options.targets or tuple(TARGETS), options.dtypes or tuple(FORMATS)
    kernels = default_kernels(layers, targets, numbers, options.sigma or (1.0, 0.0), options.batch_size)
    codes = build_all(kernels, min(options.workers, len(kernels)))
    rows = [row(kernel, code) for kernel, code in zip(kernels, codes, strict=True)]
    show(rows)
    about = {key: value for key, value in versions().items() if value is not None}
    folder, name = options.output or bench.RESULTS, "kernels-compile-only"
    kept, runs = others(folder / f"{name}.csv", about["triton"])
    bench.write(folder, name, [*kept, *rows], runs | {f"triton {about['triton']}": about})
    return int(any(row["verdict"] != "ok" for row in rows))


def versions() -> bench.Row:
    """The result of `bench.environment`, and Triton's version."""
    import triton

    return bench.environment(torch.device("cpu")) | {"triton": triton.__version__}


if __name__ == "__main__":
    main()
