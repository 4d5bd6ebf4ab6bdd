"""Compile our kernels for GPUs that need not be present, and judge their machine code.

    python bench/compile.py                                             # all kernels, for four chips
    python bench/compile.py --targets sm_90 --dtypes bf16 --sigma 1     # registers, spills, instructions; a few minutes

The script compiles the default blocks of all layers of the networks and, without --shapes, of shapes-compile.json. The
exit status is 1 if a kernel is refused; `_kernels_compile.py` lists the reasons. A table shows every compiled kernel.
The result file has one row per chip and kernel, and for a contraction one per choice of blocks. A row names Triton's
version and the layers that launch the kernel, and has the most registers, spills and KiB of shared memory, and the
fewest programs that fit on a processor, over these layers, dtypes and σ. At most 200 rows for four chips, two Tritons.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import _bench as bench
import torch
import tyro
from _kernels_compile import TARGETS, Target, build_all, default_kernels, row, show, summary
from _kernels_layers import FORMATS, SHAPES, Number, load

HARD_SHAPES = bench.ROOT / "bench" / "shapes-compile.json"  # channels off the grid, strides, offsets of 64 bits


@dataclasses.dataclass
class Options:
    """Compile the default blocks of our kernels and judge the machine code; needs no GPU."""

    shapes: Path = SHAPES
    """JSON file of layers: name, fields of `ttfs_kernels.triton.problem.Problem` without batch and dtype."""
    batch_size: int = 256
    dtypes: tuple[Number, ...] = tuple(FORMATS)  # tf32 is float32 with rounded products
    sigma: tuple[float, ...] = (1.0, 0.0)  # σ of the neurons: 1 is the paper's neuron, 0 an ANN's clamped ReLU
    targets: tuple[Target, ...] = tuple(TARGETS)  # chips to compile for
    kernels: tuple[str, ...] = ()  # names of kernels, as in the table; without any, all kernels
    workers: int = os.cpu_count() or 1  # number of processes that compile
    output: Path = bench.RESULTS  # folder of the CSV file


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        # Triton decided at its import that kernels are interpreted: start a new process.
        variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        sys.exit(subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=variables).returncode)
    sys.exit(run(options))


def run(options: Options) -> int:
    """Compile, show and summarise; returns 1 if a kernel is refused."""
    import triton

    layers = load(options.shapes) + (load(HARD_SHAPES) if options.shapes == SHAPES else [])
    kernels = default_kernels(layers, options.targets, options.dtypes, options.sigma, options.batch_size)
    if options.kernels:
        kernels = [kernel for kernel in kernels if kernel.launch().kernel.__name__ in options.kernels]
    codes = build_all(kernels, min(options.workers, len(kernels)))
    rows = [row(kernel, code) for kernel, code in zip(kernels, codes, strict=True)]
    show(rows)
    lines = [{"triton": triton.__version__} | line for line in summary(rows)]
    bench.write(options.output, "kernels-compile", lines, bench.environment(torch.device("cpu")))
    return int(any(row["verdict"] != "ok" for row in rows))


if __name__ == "__main__":
    main()
