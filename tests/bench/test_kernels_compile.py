"""What `bench/compile.py` says of kernels; tests/kernels/triton/test_machine_code.py compiles them."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.bench.modules import modules
from ttfs_kernels.triton.blocks import blocks_of
from ttfs_kernels.triton.common import Chip
from ttfs_kernels.triton.problem import Problem

kernels_compile, machine_code = modules("_kernels_compile", "_machine_code")

AMPERE, HOPPER, BLACKWELL = (Chip("cuda", architecture, 132) for architecture in (80, 90, 100))
MI300 = Chip("hip", "gfx942", 304)


def test_floor_is_the_higher_of_two_bounds():
    """Operands once, x and weight in 16 bits and both potentials in 32; or two products, of A and W, in each step."""
    for inputs, bound in ((64, "memory"), (4096, "products")):
        problem = Problem(4096, 1, 1, inputs, 1024, dtype=torch.bfloat16)
        config = blocks_of("forward", problem, HOPPER, "ieee")
        kernel = kernels_compile.Kernel("sm_90", "bf16", "forward", problem, config, False, 0)
        moved = 2 * (4096 * inputs + 1024 * inputs) + 4 * 2 * 4096 * 1024
        by_bound = {"memory": moved / 3.35e12, "products": 2 * 2 * 4096 * inputs * 1024 / 989.4e12}
        assert kernels_compile.floor(kernel.launch(), kernel) == (pytest.approx(1e3 * by_bound[bound]), bound)


CODE = machine_code.MachineCode(128, 0, 96.0, 2, 8, Counter({"HGMMA": 8, "IADD3": 12}), 0, 8, 0, ())


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
    assert kernels_compile.refusals(replace(CODE, **changes), HOPPER, True) == reasons


@pytest.mark.parametrize(
    ("chip", "registers", "warps", "shared", "columns", "programs"),
    [
        (AMPERE, 129, 8, 0, 0, 1),  # 136 registers · 32 threads · 8 warps are more than half of 65536
        (AMPERE, 32, 4, 48 * 1024, 0, 3),  # 164 KiB, 1 KiB a program for the system
        (HOPPER, 32, 4, 227 * 1024 + 1, 0, 0),
        (BLACKWELL, 32, 4, 0, 256, 2),  # 512 columns of tensor memory
        (MI300, 128, 8, 0, 0, 2),  # 4 units, each of 512 registers: 4 warps of 64 threads a unit
        (Chip("hip", "gfx90a", 104), 64, 4, 0, 0, None),  # unknown
    ],
)
def test_programs_that_fit_on_a_processor(chip, registers, warps, shared, columns, programs):
    assert machine_code.fitting(chip, registers, warps, shared, columns) == programs
