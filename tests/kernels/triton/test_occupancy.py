"""How many programs fit on a processor, by hand."""

import pytest

from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.occupancy import fitting

A100, H100, B200, MI300X = Chip("cuda", 80), Chip("cuda", 90), Chip("cuda", 100), Chip("hip", "gfx942")


@pytest.mark.parametrize(
    ("chip", "registers", "warps", "shared", "columns", "programs"),
    [
        (A100, 32, 4, 0, 0, 16),  # 64 warps
        (A100, 129, 8, 0, 0, 1),  # 136 registers · 32 threads · 8 warps are more than half of 65536
        (A100, 128, 8, 0, 0, 2),
        (A100, 32, 4, 48 * 1024, 0, 3),  # 164 KiB, 1 KiB a program for the system
        (H100, 32, 4, 48 * 1024, 0, 4),
        (H100, 32, 4, 227 * 1024, 0, 1),
        (H100, 32, 4, 227 * 1024 + 1, 0, 0),
        (H100, 16, 1, 0, 0, 32),
        (B200, 32, 4, 0, 256, 2),  # 512 columns of tensor memory
        (MI300X, 128, 8, 0, 0, 2),  # 4 units, each of 512 registers: 4 warps of 64 threads a unit
        (MI300X, 500, 4, 0, 0, 1),
        (MI300X, 32, 4, 24 * 1024, 0, 2),
        (MI300X, 32, 4, 65 * 1024, 0, 0),
        (MI300X, 16, 1, 0, 0, 16),
        (Chip("hip", "gfx90a"), 64, 4, 0, 0, None),  # unknown
    ],
)
def test_programs_that_fit(chip, registers, warps, shared, columns, programs):
    assert fitting(chip, registers, warps, shared, columns) == programs
