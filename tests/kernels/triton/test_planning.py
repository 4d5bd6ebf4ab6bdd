"""Blocks of a pass, and programs on a processor, by chip."""

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from ttfs_kernels.triton import blocks, common
from ttfs_kernels.triton.blocks import blocks_of
from ttfs_kernels.triton.common import Chip
from ttfs_kernels.triton.layer import precision_of
from ttfs_kernels.triton.problem import PASSES, Problem

HOPPER = Chip("cuda", 90, 132)


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
            config = blocks_of(which, problem, HOPPER, "ieee")
            sizes = config.block_m, config.block_n, config.block_k, config.num_warps, config.num_stages
            text = " ".join(map(str, sizes)) + " by position" * config.by_position
            if which == "grad_w":
                running, number = blocks.slots(problem, config), blocks.programs(which, problem, config)
                splits, _ = blocks.split(blocks.tap_steps(problem, config), number, running, 0, config.block_k)
                text += f" {splits} splits"
            assert text == row[which], row
    assert len(rows) == 69


@pytest.mark.parametrize(
    ("chip", "expected"), [(("cuda", 80), "tf32"), (("hip", "gfx942"), "tf32"), (("hip", "gfx90a"), "ieee")]
)
def test_tf32_is_for_chips_that_have_it(monkeypatch, chip, expected):
    """PyTorch asks for it in convolutions on every GPU; of AMD's chips, Triton compiles it for one only."""
    gpu, layer = torch.device("cuda", 99), Problem(64, 16, 16, 128, 256, (3, 3))
    monkeypatch.setitem(common._chips, gpu, Chip(*chip, 100))
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # until the test ends, see conftest.py
    assert precision_of(layer, gpu) == expected
    assert precision_of(dataclasses.replace(layer, dtype=torch.float16), gpu) == "ieee"
