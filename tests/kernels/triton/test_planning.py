"""Blocks of a pass, and programs on a processor, by chip."""

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.triton.common import convolutions
from ttfs_kernels.triton_backend import launch
from ttfs_kernels.triton_backend.formulation import Chip, fitting
from ttfs_kernels.triton_backend.launch import Device, precision_of
from ttfs_kernels.triton_backend.planning import (
    SMALLEST_BLOCK,
    SMALLEST_SHARED,
    default_config,
    resident,
    skips,
    split,
    tap_steps,
    weight_blocks,
)
from ttfs_kernels.triton_backend.problem import PASSES, Problem

AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL = (Chip("cuda", sm) for sm in (80, 89, 90, 100, 120))
MI300 = Chip("hip", "gfx942")
CHIPS = (AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL, MI300)


@given(
    problem=convolutions,
    which=st.sampled_from(PASSES),
    chip=st.sampled_from(CHIPS),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    precision=st.sampled_from(["ieee", "tf32"]),
)
def test_blocks_are_safe_and_no_larger_than_what_they_cover(problem, which, chip, dtype, precision):
    problem = dataclasses.replace(problem, dtype=dtype)
    config = default_config(which, problem, chip, precision, 132)
    positions = problem.batch * problem.height * problem.width
    covered = {
        "forward": (problem.rows, problem.group_outputs, problem.depth),
        "grad_x": (positions, problem.group_inputs, problem.group_outputs),
        "grad_w": (problem.group_outputs, problem.depth, problem.rows),
    }[which]
    shared = which == "grad_x" and chip.has_wgmma and dtype == torch.float16
    smallest = (SMALLEST_BLOCK, *[SMALLEST_SHARED if shared else SMALLEST_BLOCK] * 2)
    for block, size, least in zip((config.block_m, config.block_n, config.block_k), covered, smallest, strict=True):
        assert block & (block - 1) == 0
        assert least == block or least < block < 2 * size


def test_blocks_of_the_networks_are_these():
    """Of VGG16, cifarnet and ResNet-20 on an H100 in bfloat16: sides, depth, warps, stages; splits of grad_w.

    Layers of three channels are encoders, at σ = 0.
    """
    with (Path(__file__).parent / "blocks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        batch, side, inputs, outputs, *moves = map(int, list(row.values())[:7])
        kernel, stride, padding = ((size, size) for size in moves)
        shape = kernel, stride, padding
        problem = Problem(batch, side, side, inputs, outputs, *shape, dtype=torch.bfloat16, with_slope=inputs > 3)
        for which in PASSES:
            config = default_config(which, problem, HOPPER, "ieee", 132)
            sizes = config.block_m, config.block_n, config.block_k, config.num_warps, config.num_stages
            text = " ".join(map(str, sizes)) + " by position" * skips(problem, config)
            if which == "grad_w":
                slots = 132 * resident(which, problem, config, HOPPER)
                steps, blocks = tap_steps(problem, config), weight_blocks(problem, config)
                text += f" {split(steps, blocks, slots, 0, config.block_k)[0]} splits"
            assert text == row[which], row
    assert len(rows) == 69


@pytest.mark.parametrize(
    ("chip", "expected"), [(("cuda", 80), "tf32"), (("hip", "gfx942"), "tf32"), (("hip", "gfx90a"), "ieee")]
)
def test_tf32_is_for_chips_that_have_it(monkeypatch, chip, expected):
    """PyTorch asks for it in convolutions on every GPU; of AMD's chips, Triton compiles it for one only."""
    gpu, layer = torch.device("cuda", 99), Problem(64, 16, 16, 128, 256, (3, 3))
    monkeypatch.setitem(launch._devices, gpu, Device("a GPU", Chip(*chip), 100))
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # until the test ends, see conftest.py
    assert precision_of(layer, gpu) == expected
    assert precision_of(dataclasses.replace(layer, dtype=torch.float16), gpu) == "ieee"


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
        (Chip("hip", "gfx90a"), 64, 4, 0, 0, None),  # unknown
    ],
)
def test_programs_that_fit_on_a_processor(chip, registers, warps, shared, columns, programs):
    assert fitting(chip, registers, warps, shared, columns) == programs
