"""`bench/compile.py`: which kernels, what is said of them, and which are refused.

Whatever compiles runs in a process of its own: here, Triton interprets.
"""

import json
from collections import Counter

import pytest
import torch

from tests.bench.modules import BENCH, modules, run_python
from ttfs_kernels.triton.blocks import Chip, blocks_of
from ttfs_kernels.triton.problem import Problem

bench, kernels_compile, machine_code = modules("_bench", "_kernels_compile", "_machine_code")

LINEAR = {"name": "f", "height": 1, "width": 1, "in_channels": 128, "out_channels": 32}
AMPERE, HOPPER, BLACKWELL = (Chip("cuda", architecture, 132) for architecture in (80, 90, 100))
MI300 = Chip("hip", "gfx942", 304)


@pytest.mark.parametrize(
    ("target", "config", "dtype", "verdict"),
    [
        ("gfx942", "64, 64, 32, 4, 2", "bf16", "ok"),
        ("sm_90", "16, 16, 24, 4, 1", "fp32", "refused: cannot be built, CompilationError"),
    ],
)
def test_kernel_is_compiled_or_refused_with_a_reason(tmp_path, target, config, dtype, verdict):
    """These blocks instead of the default ones, in one pass."""
    code = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import compile, _kernels_compile as c\n"
    code += f"c.WHICH = ('inference',); c.blocks_of = lambda *_: c.Config({config})\ncompile.main()"
    refused = int(verdict != "ok")
    (tmp_path / "shapes.json").write_text(json.dumps([LINEAR]), encoding="utf-8")
    words = ["--workers", "1", "--shapes", f"{tmp_path}/shapes.json", "--output", f"{tmp_path}", "--batch-size", "64"]
    words += ["--targets", target, "--dtypes", dtype, "--sigma", "1"]
    said = run_python("-c", code, *words, status=refused)
    (row,), _ = bench.read(tmp_path / "kernels-compile.csv")
    assert (row["compiled"], row["refused"]) == ("1", str(refused))
    assert row["verdict"].startswith(verdict)
    assert bool(row["max_registers"]) == (dtype == "bf16")
    assert f"1 kernels compiled, {refused} refused" in said
    assert (f"  {target} {dtype} 1 conv2d_forward" in said) == bool(refused)


def test_floor_is_the_higher_of_two_bounds():
    """Operands once, x and weight in 16 bits and both potentials in 32; or two products, of A and W, in each step."""
    for inputs, bound in ((64, "memory"), (4096, "products")):
        problem = Problem(4096, 1, 1, inputs, 1024, dtype=torch.bfloat16)
        config = blocks_of("forward", problem, HOPPER, "ieee")
        kernel = kernels_compile.Kernel("sm_90", "bf16", "forward", problem, config, False, 0)
        moved = 2 * (4096 * inputs + 1024 * inputs) + 4 * 2 * 4096 * 1024
        by_bound = {"memory": moved / 3.35e12, "products": 2 * 2 * 4096 * inputs * 1024 / 989.4e12}
        assert kernels_compile.floor(kernel.launch(), kernel) == (pytest.approx(1e3 * by_bound[bound]), bound)


def code(**changes) -> "machine_code.MachineCode":
    values = {"registers": 128, "spilled_bytes": 0, "shared_kib": 96.0, "programs_per_processor": 2, "tensor_core": 8}
    values |= {"loop": Counter({"HGMMA": 8, "IADD3": 12}), "loop_register_operands": 0, "loop_shared_operands": 8}
    return machine_code.MachineCode(**values | {"loop_spills": 0, "serialised": ()} | changes)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"serialised": ("C7510", "C7511")}, ["serialised (C7510 C7511)"]),
        ({"loop_register_operands": 4}, ["mixes register and shared operands"]),
        ({"loop_register_operands": 8, "loop_shared_operands": 0}, ["register operands"]),
        ({"programs_per_processor": 0}, ["does not fit"]),
        ({"loop_spills": 1, "tensor_core": 0}, ["1 spills in the loop", "no tensor cores"]),
    ],
)
def test_what_is_refused(changes, reasons):
    """Float32 needs no tensor cores; other chips take operands from registers as they like."""
    assert kernels_compile.refusals(code(**changes), HOPPER, True) == reasons
    assert kernels_compile.refusals(code(tensor_core=0), HOPPER, False) == []
    only_registers = code(loop_register_operands=8, loop_shared_operands=0)
    assert kernels_compile.refusals(only_registers, MI300, True) == []


@pytest.mark.parametrize(
    ("chip", "registers", "warps", "shared", "columns", "programs"),
    [
        (AMPERE, 129, 8, 0, 0, 1),  # 136 registers · 32 threads · 8 warps are more than half of 65536
        (AMPERE, 128, 8, 0, 0, 2),
        (AMPERE, 32, 4, 48 * 1024, 0, 3),  # 164 KiB, 1 KiB a program for the system
        (HOPPER, 32, 4, 227 * 1024, 0, 1),
        (HOPPER, 32, 4, 227 * 1024 + 1, 0, 0),
        (BLACKWELL, 32, 4, 0, 256, 2),  # 512 columns of tensor memory
        (MI300, 128, 8, 0, 0, 2),  # 4 units, each of 512 registers: 4 warps of 64 threads a unit
        (Chip("hip", "gfx90a", 104), 64, 4, 0, 0, None),  # unknown
    ],
)
def test_programs_that_fit_on_a_processor(chip, registers, warps, shared, columns, programs):
    assert machine_code.fitting(chip, registers, warps, shared, columns) == programs
