"""`bench/kernels.py --compile-only`: which kernels, what is said of them, and which are refused.

Whatever compiles runs in a process of its own: here, Triton interprets.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.modules import BENCH, modules, run_python
from ttfs_kernels.triton_backend.formulation import Chip

bench, kernels, kernels_compile, kernels_layers, machine_code = modules(
    "_bench", "kernels", "_kernels_compile", "_kernels_layers", "_machine_code"
)

LINEAR = {"name": "f", "height": 1, "width": 1, "in_channels": 128, "out_channels": 32}
SM_90, GFX942 = Chip("cuda", 90), Chip("hip", "gfx942")
BATCH_NORM = ("moments", "merge", "fire_normalised", "reduce_gradient", "spread_gradient")
LINEAR_KERNELS = [
    ("forward", "conv2d_forward"),
    ("local_gradient", "local_gradient"),
    ("local_gradient", "sum_splits"),
    ("grad_x", "conv2d_grad_x"),
    ("grad_w", "conv2d_grad_w"),
    ("normalised", "conv2d_forward"),
    *[("normalised", name) for name in BATCH_NORM],
]


def compile_only(tmp_path: Path, *options: str, config: str = "", interpret: bool = False, status: int = 0):
    """Output, rows and their circumstances; `config` replaces the default blocks of the forward pass, the only one."""
    shapes = tmp_path / "shapes.json"
    shapes.write_text(json.dumps([LINEAR]), encoding="utf-8")
    arguments = ["--compile-only", "--workers", "1", "--shapes", str(shapes), "--output", str(tmp_path), *options]
    program = [str(BENCH / "kernels.py")]
    if config:
        code = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import kernels, _kernels_compile as c\n"
        code += f"c.WHICH = ('forward',); c.default_config = lambda *_: c.Config({config})\n"
        program = ["-c", f"{code}kernels.main()"]
    said = run_python(*program, *arguments, interpret=interpret, status=status)
    return said, *bench.read(tmp_path / "kernels-compile-only.csv")


def test_compiles_for_chips_that_are_not_there(tmp_path):
    """Started where kernels are interpreted, it starts anew."""
    options = ["--targets", "sm_90", "gfx942", "--dtypes", "bf16", "--sigma", "0", "--batch-size", "64"]
    said, rows, about = compile_only(tmp_path, *options, interpret=True)
    found = [(row["target"], row["pass"], row["kernel"]) for row in rows]
    assert found == [(target, *names) for target in ("sm_90", "gfx942") for names in LINEAR_KERNELS]
    for row in rows:
        assert (row["dtype"], row["sigma"], row["surrogate"], row["layers"]) == ("bfloat16", "0", "0", "f")
        assert (row["verdict"], row["serialised"], row["spilled_bytes"], row["loop_spills"]) == ("ok", "", "0", "0")
        assert 0 < int(row["registers"]) <= 512
        assert int(row["programs_per_processor"]) > 0
        assert row["loop_mix"]
        if row["kernel"].startswith("conv2d"):
            assert row["blocks"].count("×") == 2
            assert 0 < int(row["loop_tensor_core"]) <= int(row["tensor_core"])
            assert int(row["loop_tensor_core"]) < int(row["loop_instructions"])
            assert float(row["shared_kib"]) > 0
    forms = {(row["target"], row["form"]) for row in rows if row["pass"] == "forward"}
    assert forms == {("sm_90", "weights_first"), ("gfx942", "activations_first")}
    ((version, run),) = about.items()
    assert "--targets sm_90 gfx942" in json.loads(run)["command"]
    assert {row["triton"] for row in rows} == {".".join(version.split()[1].split(".")[:2])}
    assert "22 kernels compiled, 0 refused" in said


@pytest.mark.parametrize(
    ("config", "dtype", "verdict"),
    [
        # Blocks that four warps have no registers for.
        pytest.param("128, 128, 64, 4, 3", "bf16", "refused: serialised (C75", marks=pytest.mark.slow),
        ("16, 16, 24, 4, 1", "fp32", "refused: cannot be built, CompilationError"),
    ],
)
def test_refused_kernels_are_reported(tmp_path, config, dtype, verdict):
    options = ["--targets", "sm_90", "--dtypes", dtype, "--sigma", "1"]
    said, rows, _ = compile_only(tmp_path, *options, config=config, status=1)
    assert [row["surrogate"] for row in rows] == ["0", "1"]
    for row in rows:
        assert row["verdict"].startswith(verdict)
        assert ("registers" in row) == ("spills in the loop" in row["verdict"]) == (dtype == "bf16")
    assert "2 kernels compiled, 2 refused" in said
    assert f"sm_90 {dtype} 1δ conv2d_forward" in said


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
    assert kernels_compile.refusals(code(**changes), SM_90, True) == reasons
    assert kernels_compile.refusals(code(tensor_core=0), SM_90, False) == []
    only_registers = code(loop_register_operands=8, loop_shared_operands=0)
    assert kernels_compile.refusals(only_registers, GFX942, True) == []
