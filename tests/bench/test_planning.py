"""What a pass would launch, planned without memory."""

import pytest
import torch

from tests.bench.modules import planning
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.formulation import Chip, Form
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.problem import PASSES, Problem

HOPPER = Device("made up", Chip("cuda", 90), 132)
CONFIG = Config(64, 64, 32, 4, 2, Form.WEIGHTS_FIRST)


@pytest.mark.parametrize("which", PASSES)
def test_plans_cover_the_layer(which):
    """One program a block: of output positions, input positions, or weights; and groups."""
    problem = Problem(8, 16, 16, 128, 192, (3, 3), padding=(1, 1), groups=2, dtype=torch.float16)
    positions = 8 * 16 * 16 // 64
    expected = {
        "forward": (positions * 2, 2),  # 96 channels in blocks of 64
        "grad_x": (positions, 1, 2),
        "grad_w": (2 * 9, 13, 2),  # 64 steps in splits of 5: 468 programs, of which 528 fit at once
    }
    plan = planning.plan_pass(which, problem, CONFIG, "ieee", HOPPER)
    assert plan.launches[0].grid == expected[which]
