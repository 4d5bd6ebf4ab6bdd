"""What was tried for our kernels, compiled beside what they do instead; rows of "Tried" in `kernels/DESIGN.md`.

    python bench/kernels_tried.py         needs no GPU; a minute of one core

Writes bench/results/kernels-tried.csv, with the columns of `kernels.py --compile-only`. Layers are those of shapes.json
with batches of 256.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import tyro
from _kernels_cases import FORMATS, Number, load
from _kernels_compile import TARGETS, Kernel, Target, build, row
from _record import ROOT, environment, write
from rich.console import Console

from ttfs_kernels.triton_backend import passes
from ttfs_kernels.triton_backend.configs import default_config
from ttfs_kernels.triton_backend.launch import Launch
from ttfs_triton.terminal import TerminalTable

BATCH = 256
SHOWN = ("tried", "as", "target", "pass", "layers", "blocks", "registers", "loop_spills", "verdict")


@dataclass(frozen=True)
class Trial:
    """One kernel, as tried or as it is.

    Attributes:
        tried: the question.
        variant: an answer to it.
        target, number, which, layer: what is compiled.
        surrogate: whether derivatives have one.
        changes: fields of the default `Config` that differ.
        pool: side of the windows that the epilogue pools over, 1 for none.
        neurons_first, fused: of the order of grad_w's operands, and of multiply and add.
    """

    tried: str
    variant: str
    target: Target
    number: Number
    which: str
    layer: str
    surrogate: bool = False
    changes: Mapping[str, int] = field(default_factory=dict)
    pool: int = 1
    neurons_first: bool = False
    fused: bool = False


def trials() -> Iterator[Trial]:
    """All of them, each beside its alternative."""
    for layer in ("c3-64-64-32", "c3-512-512-4"):
        for first in (True, False):
            variant = "neurons first" if first else "inputs first"
            yield Trial("order of grad_w", variant, "sm_80", "bf16", "grad_w", layer, neurons_first=first)
        for warps in (4, 8):
            changes = {"num_warps": warps}
            yield Trial("warps of float32 ieee", f"{warps} warps", "sm_90", "fp32", "forward", layer, changes=changes)
    for target in ("sm_80", "sm_90"):
        for surrogate in (False, True):
            for rows in (128, 64):
                what = ("positions of joint steps", f"{rows} positions", target, "bf16", "forward", "c3-3-64-32")
                yield Trial(*what, surrogate=surrogate, changes={"block_m": rows})
    for name, side in (("columns", "block_n"), ("neurons a step", "block_k")):
        for size in (16, 32):
            what = (f"{name} of grad_x", f"{size} {name}", "sm_90", "bf16", "grad_x", "c3-64-64-32")
            yield Trial(*what, changes={side: size})
    for which in ("forward", "grad_x", "grad_w"):
        for stages in (3, 2):
            what = ("stages of tf32", f"{stages} stages", "gfx942", "tf32", which, "c3-512-512-4")
            yield Trial(*what, changes={"num_stages": stages})
        for target in ("sm_80", "sm_90"):
            for fused in (True, False):
                what = ("multiply and add", "fused" if fused else "apart", target, "bf16", which, "c3-512-512-4")
                yield Trial(*what, fused=fused)
    for target in ("sm_80", "sm_90"):
        for layer in ("c3-64-64-32", "c3-128-128-16"):
            for pool in (2, 1):
                variant = "with a pool" if pool > 1 else "without"
                yield Trial("pool in the epilogue", variant, target, "bf16", "forward", layer, pool=pool)


@contextmanager
def as_tried(trial: Trial) -> Iterator[None]:
    """Within its `with` block, launches are planned and built as tried."""

    def options(launch: Launch) -> dict[str, Any]:
        return {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": trial.fused}

    inputs_first = (lambda chip: False) if trial.neurons_first else passes.inputs_first
    with patch.object(passes, "inputs_first", inputs_first), patch.object(Launch, "options", property(options)):
        yield


def kernel_of(trial: Trial) -> Kernel:
    """What a trial compiles."""
    layer = next(layer for layer in load(ROOT / "bench/shapes.json") if layer.name == trial.layer)
    problem = layer.problem(BATCH, trial.number, 1.0, surrogate=trial.surrogate)
    problem = dataclasses.replace(problem, pool=trial.pool)
    device = TARGETS[trial.target]
    config = default_config(trial.which, problem, device.chip, FORMATS[trial.number].precision, device.processors)
    config = dataclasses.replace(config, **cast(dict[str, Any], trial.changes))
    return Kernel(trial.target, trial.number, trial.which, problem, config, 0, [trial.layer])


@dataclass
class Options:
    """Compile what was tried, and what is done instead."""

    output: Path = ROOT / "bench/results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if os.environ.pop("TRITON_INTERPRET", "0") == "1":
        sys.exit("kernels_tried: TRITON_INTERPRET must be unset; got 1, with which nothing is compiled.")
    rows = []
    for trial in trials():
        with as_tried(trial):
            kernel = kernel_of(trial)
            rows.append({"tried": trial.tried, "as": trial.variant, **row(kernel, build(kernel))})
    console = Console()
    console.print(TerminalTable("", SHOWN, [[str(line[key]) for key in SHOWN] for line in rows]))
    for path in write(options.output, "kernels-tried", rows, environment(torch.device("cpu"))):
        print(f"written: {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
