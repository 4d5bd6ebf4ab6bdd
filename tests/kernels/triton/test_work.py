"""Executed operations against counts by hand."""

import pytest
import torch

from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.problem import PASSES, Problem
from ttfs_kernels.triton_backend.work import executed_flops


@pytest.mark.parametrize("which", PASSES)
def test_layers_of_whole_blocks_execute_what_is_dense(which):
    problem = Problem(4, 8, 8, 32, 64, (3, 3), padding=(1, 1), dtype=torch.float16)
    assert executed_flops(which, problem, Config(32, 32, 32, 4, 1)) == problem.flops(which)


def test_edges_of_blocks_are_counted():
    """17 of 32 rows, 33 of 48 columns, 65 of 80 synapses."""
    problem, config = Problem(17, 1, 1, 65, 33), Config(32, 16, 16, 4, 1)
    assert executed_flops("forward", problem, config) == 4 * 32 * 48 * 80
    assert executed_flops("grad_x", problem, config) == 2 * 32 * 80 * 48
    assert executed_flops("grad_x", problem, config, surrogate=True) == 4 * 32 * 80 * 48
    assert executed_flops("grad_w", problem, config) == 4 * 64 * 80 * 32


def test_strides_cost_the_input_gradient_no_taps():
    """Of 3 taps an even position meets 1 and an odd one 2, with padding 1 and stride 2."""
    problem = Problem(16, 4, 4, 16, 16, (3, 3), (2, 2), (1, 1))
    assert executed_flops("grad_x", problem, Config(16, 16, 16, 4, 1)) == 2 * 16 * (4 * 9) * 16 * 16
