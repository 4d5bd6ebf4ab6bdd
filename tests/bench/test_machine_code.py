"""What the default configurations compile to on every target, and that what must not be built is recognised.

Here Triton interprets; kernels are compiled in a process of its own for each target, which calls `main` below. A chip
takes about a minute of processor time: by default, one layer for sm_90.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from tests.bench.modules import BENCH, kernels_compile, kernels_layers, machine_code
from ttfs_kernels.triton_backend import standardisation
from ttfs_kernels.triton_backend.configs import Config, default_config
from ttfs_kernels.triton_backend.formulation import Form
from ttfs_kernels.triton_backend.launch import Launch
from ttfs_kernels.triton_backend.problem import PASSES, Problem

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
WITH_SURROGATE = ("few_channels", "narrow", "wide", "linear", "tf32")
SURROGATE = " with surrogate"
BROKEN = ("racing", "starved")
STANDARDISATION = ("standardise", "standardise_backward")
NAMES = [
    *(f"{problem} {which}" for problem in PROBLEMS for which in PASSES),
    *(f"{problem} {which}{SURROGATE}" for problem in WITH_SURROGATE for which in ("forward", "grad_x")),
]


def is_quick(target: str, name: str) -> bool:
    """Whether a launch, or a problem's launches, are compiled by default."""
    return target == "sm_90" and name.split()[0] in ("linear", *STANDARDISATION, *BROKEN)


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
        problem = dataclasses.replace(PROBLEMS[kind], surrogate=name.endswith(SURROGATE))
        precision = "tf32" if kind == "tf32" else "ieee"
        config = default_config(which, problem, device.chip, precision, device.processors)
        yield name, kernels_layers.plan_pass(which, problem, config, precision, device).launches[0]
    if target == "sm_90":
        problem, older = PROBLEMS["linear"], DEVICES["sm_80"]
        # Planned for a chip where the form is safe: planning refuses it for this one.
        config = default_config("forward", problem, older.chip, "ieee", older.processors)
        assert config.form == Form.ACTIVATIONS_FIRST
        yield "racing", kernels_layers.plan_pass("forward", problem, config, "ieee", older).launches[0]
        starved = Config(128, 128, 64, 4, 3, Form.WEIGHTS_FIRST)
        yield "starved", kernels_layers.plan_pass("forward", problem, starved, "ieee", device).launches[0]
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


def built(target: str, name: str) -> "machine_code.MachineCode":
    """Machine code of a launch."""
    done = compile_all(target, is_quick(target, name))
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)[name]
    return machine_code.MachineCode(
        **values | {"loop": Counter(values["loop"]), "serialised": tuple(values["serialised"])}
    )


@cache
def compile_all(target: str, quick: bool) -> subprocess.CompletedProcess[str]:
    """`main` in a process where Triton compiles; once, even if it fails."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {
        "OMP_NUM_THREADS": "1"
    }
    words = [sys.executable, "-c", f"from {__name__} import main; main({target!r}, {quick})"]
    return subprocess.run(words, cwd=BENCH.parent, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize(("target", "name"), cases(NAMES))
def test_defaults_compile_to_clean_loops(target, name):
    """On sm_90, no product has its first operand in registers, which may race."""
    code = built(target, name)
    assert code.loop_spills == 0
    assert code.serialised == ()
    assert code.loop_tensor_core > 0
    assert code.loop_register_operands == 0
    assert code.programs_per_processor
    if target == "sm_90" and name.startswith(("narrow", "wide", "linear")):
        assert code.loop_shared_operands == code.loop["HGMMA"] == code.loop_tensor_core


@pytest.mark.parametrize(("target", "name"), cases(STANDARDISATION))
def test_standardisation_of_many_layers_spills_nothing(target, name):
    code = built(target, name)
    assert code.spilled_bytes == 0
    assert code.programs_per_processor
    assert code.programs_per_processor >= 4


@pytest.mark.parametrize(("target", "problem"), cases(WITH_SURROGATE))
def test_surrogate_adds_one_product_to_grad_x(target, problem):
    """Twice the products a step; the forward pass has as many as without, and the rule is outside its loop."""
    for which, factor in (("grad_x", 2), ("forward", 1)):
        plain, surrogate = (built(target, f"{problem} {which}{suffix}") for suffix in ("", SURROGATE))
        assert surrogate.loop_tensor_core == factor * plain.loop_tensor_core


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize(("target", "problem"), cases(["units_of_8", "units_of_4", "short"], list(DEVICES)[:3]))
def test_channels_that_are_no_multiple_of_16_are_copied_as_others_are(target, problem, which):
    """Straight to shared memory, 8 or 16 bytes at once; a load to registers would be one an element."""
    loop = built(target, f"{problem} {which}").loop
    assert loop["LDGSTS"] > 0
    assert loop["LDG"] == 0


def test_what_must_not_be_built_is_recognised():
    racing, starved = (built("sm_90", name) for name in BROKEN)
    assert racing.mixes_operands
    assert all(message.startswith("C75") for message in starved.serialised)
    assert starved.serialised
    assert starved.loop_spills > 0
    assert starved.spilled_bytes > 0
    assert starved.registers == 255


def test_interpreted_kernels_cannot_be_compiled():
    config, device = Config(16, 16, 16, 4, 1), DEVICES["sm_80"]
    plan = kernels_layers.plan_pass("forward", Problem(4, 1, 1, 8, 8), config, "ieee", device)
    interpreted = dataclasses.replace(plan.launches[0], kernel=lambda: None)
    with pytest.raises(RuntimeError, match="kernels must not be interpreted; start without TRITON_INTERPRET"):
        machine_code.compile_launch(interpreted, device.chip)


def test_main_loop_is_the_innermost_with_the_most_products():
    names = ["IADD3", "FFMA", "FFMA", "HMMA", "HMMA", "LDS", "BRA", "HMMA", "BRA", "FFMA", "EXIT"]
    lines = [machine_code.Line(index, name, name) for index, name in enumerate(names)]

    def loop(*spans: tuple[int, int]) -> list[int]:
        return [line.address for line in machine_code.main_loop(lines, list(spans))]

    assert loop((1, 6), (3, 6), (7, 8)) == [3, 4, 5, 6]
    assert loop((0, 8), (3, 6)) == list(range(9))
    assert loop((0, 2), (9, 9)) == [0, 1, 2]
    # No loop holds a product: the kernel takes a single step.
    assert loop((5, 5)) == loop() == list(range(11))
