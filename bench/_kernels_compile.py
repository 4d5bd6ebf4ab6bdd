"""The kernels that `compile.py` compiles, and its judgement of their machine code.

Launches that Triton would compile alike are compiled once. A kernel is refused if its asynchronous products are
serialised, if its main loop spills registers or, on sm_90, feeds products from registers (a race), if it does not fit
on a processor, or if it should use tensor cores and does not.
"""

import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import _bench as bench
import torch
from _kernels_layers import FORMATS, Layer, Number, plan_pass, useful_flops
from _machine_code import MachineCode, inspect, specialisation

from ttfs_kernels.triton.blocks import Config, blocks_of
from ttfs_kernels.triton.common import Chip, Launch
from ttfs_kernels.triton.problem import PASSES, Problem

Target = Literal["sm_80", "sm_90", "sm_100", "gfx942"]
TARGETS: dict[Target, Chip] = {  # A100, H100, B200 and MI300X
    "sm_80": Chip("cuda", 80, 108),
    "sm_90": Chip("cuda", 90, 132),
    "sm_100": Chip("cuda", 100, 148),
    "gfx942": Chip("hip", "gfx942", 304),
}
# Published for an H100 SXM, per second: operations of products in 16 bits, and bytes of memory.
H100_FLOPS, H100_BYTES = 989.4e12, 3.35e12
WHICH = ("forward", "normalised", "inference", "grad_x", "grad_w")
WORST = {
    **dict.fromkeys(("registers", "spilled_bytes", "loop_spills", "shared_kib", "others_per_product"), max),
    "programs_per_processor": min,
}
HEADINGS = "dtype σ|kernel|blocks|warps|stages|reg|spill|KiB|fit|MMA|others|RS/SS|verdict|layers".split("|")


@dataclass(frozen=True)
class Kernel:
    """One launch of a pass, described so that another process can plan it again."""

    target: Target
    number: Number
    which: str
    problem: Problem
    config: Config  # blocks of the contraction
    skip: bool
    index: int  # index of the launch in its plan
    layers: list[str] = field(default_factory=list, compare=False)  # names of the layers that launch it

    def launch(self) -> Launch:
        return plan_pass(self.which, self.problem, self.config, self.skip)[self.index]


def default_kernels(
    layers: Sequence[Layer],
    targets: Sequence[Target],
    numbers: Sequence[Number],
    sigmas: Sequence[float],
    batch: int,
    passes: Sequence[str] | None = None,
    gradients: Sequence[tuple[bool, bool]] = ((False, False), (True, False), (True, True)),
) -> list[Kernel]:
    """All kernels of the default configurations; kernels that compile alike occur once.

    `gradients` lists pairs: whether there is a surrogate, and whether both potentials share a gradient.
    """
    kernels: dict[tuple, Kernel] = {}
    for target, number, sigma, layer, which in product(targets, numbers, sigmas, layers, passes or WHICH):
        for surrogate, shared in gradients if sigma > 0 else ((False, False),):
            problem = layer.problem(batch, number, sigma, surrogate=surrogate, shared=shared)
            blocks = which if which in PASSES else "forward"
            config = blocks_of(blocks, problem, TARGETS[target], FORMATS[number].precision)
            for index, launch in enumerate(plan_pass(which, problem, config, layer.skip)):
                kernel = Kernel(target, number, which, problem, config, layer.skip, index)
                kernel = kernels.setdefault((target, number, *signature(launch, TARGETS[target])), kernel)
                if layer.name not in kernel.layers:
                    kernel.layers.append(layer.name)
    return list(kernels.values())


def signature(launch: Launch, chip: Chip) -> tuple[str, str]:
    """A key that is equal for launches that Triton compiles alike."""
    return launch.kernel.__name__, specialisation(launch, chip)


def build(kernel: Kernel) -> MachineCode | str:
    """The machine code of a kernel, or the error if it cannot be compiled."""
    try:
        return inspect(kernel.launch(), TARGETS[kernel.target])
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def build_all(kernels: list[Kernel], workers: int) -> list[MachineCode | str]:
    """`build` of all kernels, in order."""
    if workers == 1:
        return list(map(build, kernels))
    # Workers are fresh interpreters: forked ones would inherit PyTorch's threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(build, kernels))


def refusals(code: MachineCode, chip: Chip, wants_tensor_cores: bool) -> list[str]:
    """Reasons to refuse a kernel; empty if there are none."""
    reasons = []
    if code.serialised:
        reasons.append(f"serialised ({' '.join(code.serialised)})")
    if code.loop_spills:
        reasons.append(f"{code.loop_spills} spills in the loop")
    if code.mixes_operands:
        reasons.append("mixes register and shared operands")
    elif chip.has_wgmma and code.loop_register_operands:
        reasons.append("register operands")
    if wants_tensor_cores and not code.tensor_core:
        reasons.append("no tensor cores")
    if code.programs_per_processor == 0:
        reasons.append("does not fit")
    return reasons


def row(kernel: Kernel, code: MachineCode | str) -> bench.Row:
    """One row of the table; without the columns of machine code if the kernel could not be compiled."""
    launch = kernel.launch()
    sizes = [launch.arguments[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K") if name in launch.arguments]
    about = {
        "target": kernel.target,
        "dtype": FORMATS[kernel.number].name,
        "sigma": int(kernel.problem.with_slope),
        "surrogate": int(kernel.problem.surrogate),
        "shared": int(kernel.problem.shared and kernel.which.startswith("grad")),
        "pass": kernel.which,
        "kernel": launch.kernel.__name__,
        "layers": " ".join(kernel.layers),
        "blocks": "×".join(map(str, sizes)),
        "warps": launch.options["num_warps"],
        "stages": launch.options["num_stages"],
    }
    if isinstance(code, str):
        return about | {"verdict": f"refused: cannot be built, {code}"}
    is_contraction = len(sizes) == 3
    reasons = refusals(code, TARGETS[kernel.target], is_contraction and kernel.number != "fp32")
    return about | measured(code) | {"verdict": f"refused: {', '.join(reasons)}" if reasons else "ok"}


def measured(code: MachineCode) -> bench.Row:
    """Columns of machine code; unknown values are empty."""
    others, columns = code.others_per_product, ("registers", "spilled_bytes", "tensor_core", "loop_spills")
    return {name: getattr(code, name) for name in (*columns, "loop_register_operands", "loop_shared_operands")} | {
        "shared_kib": round(code.shared_kib, 1),
        "programs_per_processor": "" if code.programs_per_processor is None else code.programs_per_processor,
        "others_per_product": round(others, 1) if math.isfinite(others) else "",
    }


def summary(rows: list[bench.Row]) -> list[bench.Row]:
    """One row per chip, kernel and blocks of a contraction: layers that launch it, and the columns' worst values."""
    groups: dict[tuple[str, str, str], list[bench.Row]] = {}
    for row in rows:
        blocks = row["blocks"] if row["kernel"].startswith("conv2d") else ""
        groups.setdefault((row["target"], row["kernel"], blocks), []).append(row)
    lines = []
    for (target, kernel, blocks), compiled in groups.items():
        refused = [row["verdict"] for row in compiled if row["verdict"] != "ok"]
        layers = " ".join(dict.fromkeys(name for row in compiled for name in row["layers"].split()))
        line = {"target": target, "kernel": kernel, "blocks": blocks, "layers": layers}
        line |= {"compiled": len(compiled), "refused": len(refused)}
        for column, worst in WORST.items():
            values = [row[column] for row in compiled if row.get(column, "") != ""]
            line[f"{worst.__name__}_{column}"] = worst(values) if values else ""
        lines.append(line | {"verdict": refused[0] if refused else "ok"})
    return lines


def floor(launch: Launch, kernel: Kernel) -> tuple[float, str]:
    """Milliseconds that a launch takes at least on its target, an H100, and the bound that decides.

    The bounds: its products at the peak rate of 16-bit products, and one read or write of its operands in memory.
    """
    values = [part for value in launch.values for part in (value if isinstance(value, tuple) else (value,))]
    moved = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    flops = 0
    if launch.kernel.__name__.startswith("conv2d"):
        which = kernel.which if kernel.which in PASSES else "forward"
        flops = useful_flops(kernel.problem) * kernel.problem.contractions(which)
    seconds, bound = max((flops / H100_FLOPS, "products"), (moved / H100_BYTES, "memory"))
    return 1e3 * seconds, bound


def show_floors(kernels: list[Kernel], workers: int) -> None:
    """Compile kernels, and print what their machine code needs and their `floor`."""
    lines = []
    for kernel, code in zip(kernels, build_all(kernels, workers), strict=True):
        line, (ms, bound) = row(kernel, code), floor(kernel.launch(), kernel)
        cells = [line.get(key, "") for key in ("registers", "spilled_bytes", "shared_kib", "programs_per_processor")]
        lines.append((line["kernel"], line["blocks"], *cells, f"{ms:.2g}", bound, line["verdict"], kernel.layers[0]))
    headings = "kernel|blocks|registers|spilled|KiB|per processor|floor ms|bound by|verdict|layer".split("|")
    title = f"our kernels on {kernels[0].target}, {kernels[0].problem.batch} images: machine code, and a modelled floor"
    bench.print_table(headings, lines, title=title, left=("bound by", "verdict", "layer"), width=120)


def show(rows: list[bench.Row]) -> None:
    """Print one table per chip, then the refused kernels. δ marks a surrogate derivative, = a shared gradient."""
    numbers = {form.name: number for number, form in FORMATS.items()}
    what = [f"{numbers[row['dtype']]} {row['sigma']}{'δ' * row['surrogate']}{'=' * row['shared']}" for row in rows]
    shown = ("warps", "stages", "registers", "spilled_bytes", "shared_kib", "programs_per_processor", "tensor_core")
    for target in dict.fromkeys(row["target"] for row in rows):
        lines = []
        for line, kind in zip(rows, what, strict=True):
            if line["target"] == target:
                first, *more = line["layers"].split()
                operands = f"{line.get('loop_register_operands', '')}/{line.get('loop_shared_operands', '')}"
                code = [line.get(key, "") for key in (*shown, "others_per_product")]
                code.append(operands if target == "sm_90" else "")
                layers = f"{first} +{len(more)}" if more else first
                lines.append((kind, line["kernel"], line["blocks"], *code, line["verdict"].split(":")[0], layers))
        left = ("kernel", "verdict", "layers")
        bench.print_table(HEADINGS, lines, title=f"{target}, default blocks", left=left, width=140)
    refused = [(line, kind) for line, kind in zip(rows, what, strict=True) if line["verdict"] != "ok"]
    print(f"{len(rows)} kernels compiled, {len(refused)} refused")
    for line, kind in refused:
        where = f"{line['target']} {kind} {line['kernel']} {line['blocks']} {line['layers']}"
        print(f"  {where}: {line['verdict']}")
