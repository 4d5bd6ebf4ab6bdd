"""The machine code of the default configurations on every target, and of kernels that must be refused.

Triton interprets in this process; for each target a process of its own compiles the kernels, by `main` below. A chip
takes about a minute of processor time, so by default only one layer is compiled, for sm_90.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from tests.bench.modules import modules, run_python
from ttfs_kernels.triton.blocks import Config, blocks_of
from ttfs_kernels.triton.problem import PASSES, Problem

kernels_compile, kernels_layers, machine_code = modules("_kernels_compile", "_kernels_layers", "_machine_code")

DEVICES = kernels_compile.TARGETS
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
NARROWEST = {  # of 16 inputs a tap, whose blocks are as narrow as any
    "narrowest": Problem(256, 32, 32, 16, 16, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "narrowest_by_position": Problem(256, 14, 14, 16, 32, (5, 5), dtype=torch.bfloat16),
}
WITH_SURROGATE = ("few_channels", "narrow", "wide", "linear", "tf32")
SURROGATE = " with surrogate"
BROKEN = ("racing", "starved")
BETWEEN = {"forward": 4, "normalised": 6}  # launches before grad_x
LAYERS_BETWEEN = ("linear", "wide")
NAMES = [
    *(f"{problem} {which}" for problem in PROBLEMS for which in (*PASSES, "inference")),
    *(f"{problem} grad_x" for problem in NARROWEST),
    *(f"{problem} grad_x{SURROGATE}" for problem in WITH_SURROGATE),
]
QUICK = ("linear", *BROKEN)
CASES = [("sm_90", True), *(pytest.param(target, False, marks=pytest.mark.slow) for target in DEVICES)]
on_targets = pytest.mark.parametrize(("target", "quick"), CASES)


def launches(target: str) -> Iterator[tuple[str, Any]]:
    """The contraction of every pass in its default configuration, and all that runs between contractions.

    On sm_90 also two kernels that must not be built.
    """
    chip = DEVICES[target]
    for name in NAMES:
        kind, which = name.split()[:2]
        problem = dataclasses.replace((PROBLEMS | NARROWEST)[kind], surrogate=name.endswith(SURROGATE))
        precision = "tf32" if kind == "tf32" else "ieee"
        config = blocks_of(which if which in PASSES else "forward", problem, chip, precision)
        yield name, kernels_layers.plan_pass(which, problem, config)[0]
    for kind, which in product(LAYERS_BETWEEN, BETWEEN):
        problem = dataclasses.replace(PROBLEMS[kind], surrogate=True)
        config = blocks_of("forward", problem, chip, "ieee")
        for index, launch in enumerate(kernels_layers.plan_pass(which, problem, config, skip=kind == "wide")):
            yield f"{kind} {which} {index} {launch.kernel.__name__}", launch
    if target == "sm_90":
        # With inputs first, as for an older chip.
        racing, starved = blocks_of("forward", PROBLEMS["linear"], DEVICES["sm_80"], "ieee"), Config(128, 128, 64, 4, 3)
        yield "racing", kernels_layers.plan_pass("forward", PROBLEMS["linear"], racing)[0]
        yield "starved", kernels_layers.plan_pass("forward", PROBLEMS["linear"], starved)[0]


def main(target: str, quick: bool) -> None:
    """Print the machine code of all launches, or of those that are quick, as JSON."""
    chip = DEVICES[target]
    chosen = [(name, launch) for name, launch in launches(target) if not quick or name.split()[0] in QUICK]
    print(json.dumps({name: vars(machine_code.inspect(launch, chip)) for name, launch in chosen}))


@cache
def built(target: str, quick: bool) -> dict[str, Any]:
    """Machine code by the launch's name, from a process where Triton compiles."""
    found = json.loads(run_python("-c", f"from {__name__} import main; main({target!r}, {quick})"))
    for values in found.values():
        values |= {"loop": Counter(values["loop"]), "serialised": tuple(values["serialised"])}
    return {name: machine_code.MachineCode(**values) for name, values in found.items()}


@on_targets
def test_kernels_compile_to_clean_loops(target, quick):
    """On sm_90, no product has its first operand in registers, which may race. What has no loop spills nothing at all.

    A surrogate doubles the products of a step of grad_x; the forward pass has as many, whether it fires or not.
    """
    codes = built(target, quick)
    between = sum(BETWEEN.values())
    count = (5 + between) if quick else len(NAMES) + between * len(LAYERS_BETWEEN)
    assert len(codes) == count + (len(BROKEN) if target == "sm_90" else 0)
    for name, code in codes.items():
        if name in BROKEN:
            continue
        assert (code.loop_spills, code.serialised, code.loop_register_operands) == (0, (), 0), name
        if name not in NAMES and not name.endswith("conv2d_forward"):
            assert code.spilled_bytes == 0, name
            assert code.programs_per_processor >= 2, name
            continue
        layer, which, *_ = name.split()
        products = codes[f"{layer} {which if which in PASSES else 'forward'}"].loop_tensor_core
        assert code.loop_tensor_core == (2 if name.endswith(f"grad_x{SURROGATE}") else 1) * products > 0, name
        assert code.programs_per_processor, name
        if target == "sm_90" and name in NAMES and layer in ("narrow", "wide", "linear"):
            assert code.loop_shared_operands == code.loop["HGMMA"] == code.loop_tensor_core, name


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_channels_that_are_no_multiple_of_16_are_copied_as_others_are(target):
    """Straight to shared memory, 8 or 16 bytes at once; a load to registers would be one an element."""
    for problem in ("units_of_8", "units_of_4", "short"):
        for which in PASSES:
            loop = built(target, False)[f"{problem} {which}"].loop
            assert loop["LDGSTS"] > 0, (problem, which)
            assert loop["LDG"] == 0, (problem, which)


def test_what_must_not_be_built_is_recognised():
    racing, starved = (built("sm_90", True)[name] for name in BROKEN)
    assert racing.mixes_operands
    assert starved.serialised
    assert all(message.startswith("C75") for message in starved.serialised)
    assert starved.loop_spills > 0
    assert starved.spilled_bytes > 0
    assert starved.registers == 255
