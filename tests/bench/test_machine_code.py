"""What the default configurations compile to on every target, and that what must not be built is recognised.

Here Triton interprets; kernels are compiled in a process of its own for each target, which calls `main` below.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.bench.modules import machine_code, planning
from ttfs_kernels.triton_backend import standardisation
from ttfs_kernels.triton_backend.configs import Config, default_config
from ttfs_kernels.triton_backend.formulation import Chip, Form, default_form
from ttfs_kernels.triton_backend.launch import Device, Launch
from ttfs_kernels.triton_backend.problem import PASSES, Problem

MachineCode = machine_code.MachineCode
ROOT = Path(__file__).parents[2]
DEVICES = {
    "sm_80": Device("A100", Chip("cuda", 80), 108),
    "sm_90": Device("H100", Chip("cuda", 90), 132),
    "sm_100": Device("B200", Chip("cuda", 100), 148),
    "gfx942": Device("MI300X", Chip("hip", "gfx942"), 304),
}
PROBLEMS = {
    "few_channels": Problem(64, 32, 32, 3, 64, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "narrow": Problem(64, 32, 32, 64, 64, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "wide": Problem(64, 8, 8, 256, 512, (3, 3), (2, 2), (1, 1), dtype=torch.bfloat16),
    "linear": Problem(64, 1, 1, 512, 4096, dtype=torch.bfloat16),
    "tf32": Problem(64, 8, 8, 128, 256, (3, 3), padding=(1, 1)),
    "small_maps": Problem(256, 2, 2, 512, 512, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "units_of_8": Problem(64, 16, 16, 96, 200, (3, 3), (2, 2), (1, 1), dtype=torch.bfloat16),
    "units_of_4": Problem(64, 16, 16, 100, 100, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "short": Problem(256, 1, 1, 4096, 100, dtype=torch.bfloat16),
}
# Layers of 16 inputs a tap, whose blocks are as narrow as any.
NARROWEST = {
    "narrowest": Problem(256, 32, 32, 16, 16, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "narrowest_by_position": Problem(256, 14, 14, 16, 32, (5, 5), dtype=torch.bfloat16),
}
# A chip takes about a minute of processor time: by default, one layer for sm_90. `test_kernels_compile.py` also builds
# some kernels for gfx942.
QUICK = ("linear",)
BROKEN = ("racing", "starved")
WITH_SURROGATE = ("few_channels", "narrow", "wide", "linear", "tf32")
SURROGATE = " with surrogate"
STANDARDISATION = ("standardise", "standardise_backward")
NAMES = [
    *(f"{problem} {which}" for problem in PROBLEMS for which in PASSES),
    *(f"{problem} grad_x" for problem in NARROWEST),
    *(f"{problem} {which}{SURROGATE}" for problem in WITH_SURROGATE for which in ("forward", "grad_x")),
]


def is_quick(target: str, name: str) -> bool:
    """Whether a launch, or a problem's launches, are compiled by default."""
    return target == "sm_90" and name.split()[0] in (*QUICK, *STANDARDISATION, *BROKEN)


def cases(names: Iterable[str], targets: Iterable[str] = DEVICES) -> list[Any]:
    """Every target with every name."""
    return [
        pytest.param(target, name, marks=[] if is_quick(target, name) else pytest.mark.slow)
        for target in targets
        for name in names
    ]


def launches(target: str) -> Iterator[tuple[str, Launch]]:
    """The contraction of every pass in its default configuration; on sm_90 also two that must not be built."""
    device = DEVICES[target]
    for name in NAMES:
        kind, which = name.split()[:2]
        problem = dataclasses.replace((PROBLEMS | NARROWEST)[kind], surrogate=name.endswith(SURROGATE))
        precision = "tf32" if kind == "tf32" else "ieee"
        config = default_config(which, problem, device.chip, precision, device.processors)
        plan = planning.plan_pass(which, problem, config, precision, device)
        yield name, plan.launches[0]
    if target == "sm_90":
        problem = PROBLEMS["linear"]
        # Planned for a chip where the form is safe: planning refuses it for this one.
        config = default_config("forward", problem, DEVICES["sm_80"].chip, "ieee", 108)
        assert config.form == Form.ACTIVATIONS_FIRST
        yield "racing", planning.plan_pass("forward", problem, config, "ieee", DEVICES["sm_80"]).launches[0]
        starved = Config(128, 128, 64, 4, 3, Form.WEIGHTS_FIRST)
        yield "starved", planning.plan_pass("forward", problem, starved, "ieee", device).launches[0]
    yield from zip(STANDARDISATION, standardisations(), strict=True)


def standardisations() -> Iterator[Launch]:
    """Forward and backward of the hidden layers of a VGG16."""
    shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (512, 256, 3, 3), *[(512, 512, 3, 3)] * 10, *[(4096, 4096)] * 2]
    weights = [torch.empty(shape, device="meta") for shape in shapes]
    gains, out = [torch.empty(len(w), device="meta") for w in weights], [w.bfloat16() for w in weights]
    stats = standardisation.new_stats(weights)
    yield from standardisation.forward_launches(weights, gains, out, stats, 1e-12)
    yield from standardisation.backward_launches(out, weights, gains, weights, gains, stats)


def main(target: str, quick: bool) -> None:
    """Print the machine code of all launches that are quick, or of the others, as JSON."""
    chip = DEVICES[target].chip
    chosen = [(name, launch) for name, launch in launches(target) if is_quick(target, name) == quick]
    print(json.dumps({name: vars(machine_code.inspect(launch, chip)) for name, launch in chosen}))


def built(target: str, name: str) -> MachineCode:
    """Machine code of a launch."""
    done = compile_all(target, is_quick(target, name))
    assert done.returncode == 0, done.stderr
    return from_json(json.loads(done.stdout)[name])


@cache
def compile_all(target: str, quick: bool) -> subprocess.CompletedProcess[str]:
    """`main` in a process where Triton compiles; once, even if it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = f"from {__name__} import main; main({target!r}, {quick})"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def from_json(values: dict[str, Any]) -> MachineCode:
    values |= {"loop": Counter(values["loop"]), "serialised": tuple(values["serialised"])}
    return MachineCode(**values)


@pytest.mark.parametrize(("target", "name"), cases(NAMES))
def test_defaults_compile_to_clean_loops(target, name):
    code = built(target, name)
    assert code.loop_spills == 0
    assert code.serialised == ()
    assert code.loop_tensor_core > 0
    assert code.programs_per_processor
    assert code.programs_per_processor > 0


@pytest.mark.parametrize(("target", "name"), cases(STANDARDISATION))
def test_standardisation_of_many_layers_spills_nothing(target, name):
    code = built(target, name)
    assert code.spilled_bytes == 0
    assert code.programs_per_processor
    assert code.programs_per_processor >= 4


@pytest.mark.parametrize(("target", "problem"), cases(WITH_SURROGATE))
def test_surrogate_adds_one_product_to_grad_x(target, problem):
    """Twice the products a step; the forward pass has as many as without, and the rule is outside its loop."""
    plain, surrogate = (built(target, f"{problem} grad_x{suffix}") for suffix in ("", SURROGATE))
    assert surrogate.loop_tensor_core == 2 * plain.loop_tensor_core
    plain, surrogate = (built(target, f"{problem} forward{suffix}") for suffix in ("", SURROGATE))
    assert surrogate.loop_tensor_core == plain.loop_tensor_core


@pytest.mark.parametrize(("target", "name"), cases(NAMES, ["sm_90"]))
def test_hopper_takes_all_operands_from_shared_memory(target, name):
    """None of the products whose first operand is in registers, which may race."""
    code = built(target, name)
    assert code.loop_register_operands == 0
    if name.startswith(("narrow", "wide", "linear")):
        assert code.loop_shared_operands == code.loop["HGMMA"] == code.loop_tensor_core > 0


@pytest.mark.parametrize("target", DEVICES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_forward_is_built_in_the_form_of_its_chip(target, problem):
    chip = DEVICES[target].chip
    forms = {launch.arguments["FORM"] for name, launch in launches(target) if name.startswith(f"{problem} forward")}
    assert forms == {int(default_form(chip))}


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize(("target", "problem"), cases(["units_of_8", "units_of_4", "short"], list(DEVICES)[:3]))
def test_channels_that_are_no_multiple_of_16_are_copied_as_others_are(target, problem, which):
    """Straight to shared memory, 8 or 16 bytes at once; a load to registers would be one an element."""
    loop = built(target, f"{problem} {which}").loop
    assert loop["LDGSTS"] > 0
    assert loop["LDG"] == 0


def test_the_racing_form_is_recognised():
    code = built("sm_90", "racing")
    assert code.mixes_operands
    assert code.loop_register_operands > 0
    assert code.loop_shared_operands > 0


def test_serialised_products_and_spills_are_recognised():
    code = built("sm_90", "starved")
    assert all(message.startswith("C75") for message in code.serialised)
    assert code.serialised
    assert code.loop_spills > 0
    assert code.spilled_bytes > 0
    assert code.registers == 255


def test_interpreted_kernels_cannot_be_compiled(monkeypatch):
    problem = Problem(4, 1, 1, 8, 8)
    launch = planning.plan_pass("forward", problem, Config(16, 16, 16, 4, 1), "ieee", DEVICES["sm_80"]).launches[0]
    interpreted = dataclasses.replace(launch, kernel=lambda: None)
    with pytest.raises(RuntimeError, match="kernels must not be interpreted; start without TRITON_INTERPRET"):
        machine_code.compile_launch(interpreted, DEVICES["sm_80"].chip)


@pytest.mark.parametrize(
    ("target", "registers", "warps", "shared", "columns", "programs"),
    [
        ("sm_80", 32, 4, 0, 0, 16),  # 64 warps
        ("sm_80", 129, 8, 0, 0, 1),  # 136 registers · 32 threads · 8 warps are more than half of 65536
        ("sm_80", 128, 8, 0, 0, 2),
        ("sm_80", 32, 4, 48 * 1024, 0, 3),  # 164 KiB, 1 KiB a program for the system
        ("sm_90", 32, 4, 48 * 1024, 0, 4),
        ("sm_90", 32, 4, 227 * 1024, 0, 1),
        ("sm_90", 32, 4, 227 * 1024 + 1, 0, 0),
        ("sm_90", 16, 1, 0, 0, 32),
        ("sm_100", 32, 4, 0, 256, 2),  # 512 columns of tensor memory
        ("gfx942", 128, 8, 0, 0, 2),  # 4 units, each of 512 registers: 4 warps of 64 threads a unit
        ("gfx942", 500, 4, 0, 0, 1),
        ("gfx942", 32, 4, 24 * 1024, 0, 2),
        ("gfx942", 32, 4, 65 * 1024, 0, 0),
        ("gfx942", 16, 1, 0, 0, 16),
    ],
)
def test_programs_that_fit_by_hand(target, registers, warps, shared, columns, programs):
    metadata = SimpleNamespace(num_warps=warps, shared=shared, tmem_size=columns)
    assert machine_code.programs_per_processor(DEVICES[target].chip, registers, metadata) == programs


def test_programs_on_an_unknown_chip():
    metadata = SimpleNamespace(num_warps=4, shared=0, tmem_size=0)
    assert machine_code.programs_per_processor(Chip("hip", "gfx90a"), 64, metadata) is None


def test_main_loop_is_the_innermost_with_the_most_products():
    names = ["IADD3", "FFMA", "FFMA", "HMMA", "HMMA", "LDS", "BRA", "HMMA", "BRA", "FFMA", "EXIT"]
    lines = [(index, name, name) for index, name in enumerate(names)]

    def loop(*spans: tuple[int, int]) -> list[int]:
        return [address for address, _, _ in machine_code._main_loop(lines, list(spans))]

    assert loop((1, 6), (3, 6), (7, 8)) == [3, 4, 5, 6]
    assert loop((0, 8), (3, 6)) == list(range(9))
    assert loop((0, 2), (9, 9)) == [0, 1, 2]
    # No loop holds a product: the kernel takes a single step.
    assert loop((5, 5)) == loop() == list(range(11))
