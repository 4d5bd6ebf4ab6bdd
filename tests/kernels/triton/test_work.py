"""Executed operations against counts by hand and against the products that the interpreter is asked for."""

import dataclasses
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.triton.common import BLOCKS, LINEAR, convolutions, device_for, exact_layer, examples, small_maps
from ttfs_kernels import Neuron
from ttfs_kernels.triton_backend import passes, work
from ttfs_kernels.triton_backend.configs import Config
from ttfs_kernels.triton_backend.launch import interpreting
from ttfs_kernels.triton_backend.problem import PASSES, Problem
from ttfs_kernels.triton_backend.work import STEPS_PER_SPLIT, cut, executed_flops, split


@pytest.mark.parametrize("which", PASSES)
def test_layers_of_whole_blocks_execute_what_is_dense(which):
    problem = Problem(4, 8, 8, 32, 64, (3, 3), padding=(1, 1), dtype=torch.float16)
    assert executed_flops(which, problem, Config(32, 32, 32, 4, 1)) == problem.flops(which)


def test_edges_of_blocks_are_counted():
    """17 of 32 rows, 33 of 48 columns, 65 of 80 synapses."""
    problem, config = Problem(17, 1, 1, 65, 33), Config(32, 16, 16, 4, 1)
    assert executed_flops("forward", problem, config) == 4 * 32 * 48 * 80
    assert executed_flops("grad_x", problem, config) == 2 * 32 * 80 * 48
    assert executed_flops("grad_x", dataclasses.replace(problem, surrogate=True), config) == 4 * 32 * 80 * 48
    assert executed_flops("grad_w", problem, config) == 4 * 64 * 80 * 32


def test_strides_cost_the_input_gradient_no_taps():
    """Of 3 taps an even position meets 1 and an odd one 2, with padding 1 and stride 2."""
    problem = Problem(16, 4, 4, 16, 16, (3, 3), (2, 2), (1, 1))
    assert executed_flops("grad_x", problem, Config(16, 16, 16, 4, 1)) == 2 * 16 * (4 * 9) * 16 * 16


def test_taps_outside_the_map_are_not_executed():
    """On 2×2 maps, 16 of the 36 taps of four positions are inside; of each tap 4, 2 or 1 positions."""
    problem = Problem(32, 2, 2, 16, 16, (3, 3), padding=(1, 1))
    plain = Config(16, 16, 16, 4, 1)
    skipping = dataclasses.replace(plain, by_position=True)
    for which in PASSES:
        assert executed_flops(which, problem, plain) == problem.flops(which)
        assert executed_flops(which, problem, skipping) == problem.flops(which) * 16 // 36
    assert cut("forward", problem, skipping).longest == cut("grad_x", problem, skipping).longest == 4


def executed_products(which: str, problem: Problem, config: Config, device: torch.device) -> int:
    """Products of blocks that the interpreter is asked for, as floating point operations."""
    from triton.runtime.interpreter import interpreter_builder

    layer, here = exact_layer(problem, device), device_for(device, 80)
    slope_h = layer.slope_h if problem.with_slope else None
    if which == "forward":
        plan = passes.forward(problem, layer.x, layer.weight, None, Neuron(), True, config, "ieee", here.chip)
    elif which == "grad_x":
        plan = passes.grad_x(problem, layer.h, layer.x, layer.weight, config, "ieee")
    else:
        plan = passes.grad_w(problem, layer.h, slope_h, layer.x, config, "ieee", here)
    with patch.object(interpreter_builder, "create_dot", wraps=interpreter_builder.create_dot) as create_dot:
        plan.run()
    return 2 * create_dot.call_count * config.block_m * config.block_n * config.block_k


@examples(25)
@given(
    problem=convolutions() | small_maps() | st.sampled_from(list(LINEAR.values())),
    which=st.sampled_from(PASSES),
    blocks=st.sampled_from(BLOCKS),
    by_position=st.booleans(),
    with_slope=st.booleans(),
)
def test_executed_operations_are_those_of_the_kernels(device, problem, which, blocks, by_position, with_slope):
    if not interpreting():
        pytest.skip("products are counted in the interpreter")
    problem = dataclasses.replace(problem, with_slope=with_slope)
    config = dataclasses.replace(blocks, by_position=by_position)
    assert executed_flops(which, problem, config) == executed_products(which, problem, config, device)


@given(
    steps=st.lists(st.integers(1, 10**4), min_size=1, max_size=9),
    blocks=st.integers(1, 500),
    slots=st.integers(1, 400),
    wanted=st.integers(0, 200),
)
def test_splits_cover_all_steps_and_none_is_empty(steps, blocks, slots, wanted):
    splits, length = split(steps, blocks, slots, wanted, 64)
    assert (splits - 1) * length < max(steps) <= splits * length
    assert splits == 1 or length >= STEPS_PER_SPLIT
    assert not wanted or splits <= wanted


def test_splits_end_in_whole_waves(monkeypatch):
    """144 blocks in 132 slots: two waves, the second nearly empty, or in 8 splits 9 waves, all of them nearly full."""
    monkeypatch.setattr(work, "PART_ROWS", 0)
    splits, length = split([1100], 144, 132, 0, 64)
    waves = -(-144 * splits // 132)
    assert waves * length <= 1.05 * 1100 * 144 / 132
    assert split([1100], 132, 132, 0, 64) == (1, 1100)
