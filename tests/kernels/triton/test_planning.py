"""Sizes, forms, blocks, splits, operations of a pass: by hand, by what chips allow, and as the interpreter counts."""

import dataclasses
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.modules import modules
from tests.kernels.triton.common import BLOCKS, convolutions, device_for, exact_layer, examples, problems
from ttfs_kernels import Neuron
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.triton_backend import rule, work
from ttfs_kernels.triton_backend.configs import SMALLEST_BLOCK, SMALLEST_SHARED, Config, default_config
from ttfs_kernels.triton_backend.formulation import (
    Chip,
    Form,
    check_form,
    default_form,
    fitting,
    inputs_first,
    refused,
    triton_version,
    two_accumulators,
)
from ttfs_kernels.triton_backend.launch import Device, interpreting
from ttfs_kernels.triton_backend.problem import PASSES, Problem
from ttfs_kernels.triton_backend.work import STEPS_PER_SPLIT, cut, executed_flops, split

kernels_layers, kernels_tune = modules("_kernels_layers", "_kernels_tune")

AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL = (Chip("cuda", sm) for sm in (80, 89, 90, 100, 120))
MI300 = Chip("hip", "gfx942")
CHIPS = (AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL, MI300)
VERSIONS = ((3, 5), (3, 8), (3, 9), (3, 10), (4, 0))
# 2 images of 8×6, kernel 3×1, stride 2×1, padding 1×0: maps of 4×6; 2 groups of 5 inputs and 3 outputs.
LAYER = Problem(2, 8, 6, 10, 6, (3, 1), (2, 1), (1, 0), groups=2, dtype=torch.float16)


def test_problems_are_read_from_tensors():
    x, weight = torch.empty(2, 10, 8, 6, dtype=torch.float16), torch.empty(6, 5, 3, 1, dtype=torch.float16)
    assert Problem.of(x, weight, Geometry([2, 1], (1, 0), torch.Size([1, 1]), 2), Neuron()) == LAYER
    assert (LAYER.out_size, LAYER.rows, LAYER.group_inputs, LAYER.group_outputs, LAYER.depth) == ((4, 6), 48, 5, 3, 15)
    linear = Problem.of(torch.empty(3, 4), torch.empty(5, 4), None, Neuron(0.0))
    assert linear == Problem(3, 1, 1, 4, 5, with_slope=False)
    assert (linear.rows, linear.depth, linear.is_matrix_product, LAYER.is_matrix_product) == (3, 4, True, False)
    for changes in ({"kernel": (1, 2)}, {"stride": (2, 1)}, {"padding": (0, 1)}, {"groups": 2}):
        assert not dataclasses.replace(Problem(2, 4, 4, 8, 6), **changes).is_matrix_product


def test_each_pass_has_what_it_depends_on():
    """Backward passes read the local gradient, which has taken pool and skip into account."""
    layer = dataclasses.replace(LAYER, pool=2, skip=True, surrogate=True)
    assert layer.of_pass("forward") == dataclasses.replace(layer, surrogate=False)
    assert layer.of_pass("grad_x") == dataclasses.replace(LAYER, surrogate=True)
    assert layer.of_pass("grad_w") == LAYER


@pytest.mark.parametrize("version", VERSIONS)
def test_racing_forms_are_refused(version):
    """On Hopper: a mask in registers beside activations in shared memory always, all in registers before 3.9."""
    racing = {(chip, form) for chip in CHIPS for form in Form if refused(form, chip, version) is not None}
    assert racing == {(HOPPER, Form.ACTIVATIONS_FIRST), *([(HOPPER, Form.STACKED)] if version < (3, 9) else [])}
    for chip in CHIPS:
        assert refused(default_form(chip), chip, version) is None
        wide = chip in (HOPPER, BLACKWELL)
        assert default_form(chip) == (Form.WEIGHTS_FIRST if wide else Form.ACTIVATIONS_FIRST)
        assert (two_accumulators(chip), inputs_first(chip)) == (wide, not wide)


def test_racing_forms_are_not_launched_and_the_safe_one_is_named():
    config, hopper = Config(16, 16, 16, 4, 1, Form.ACTIVATIONS_FIRST), Device("made up", HOPPER, 132)
    with pytest.raises(RuntimeError, match="ACTIVATIONS_FIRST is a register race on sm_90 with every Triton version"):
        kernels_layers.plan_pass("forward", LAYER, config, "ieee", hopper)
    safe = dataclasses.replace(config, form=default_form(HOPPER))
    assert kernels_layers.plan_pass("forward", LAYER, safe, "ieee", hopper).launches
    message = r"STACKED is a register race on sm_90 before Triton 3\.9; got Triton 3\.8\. Use WEIGHTS_FIRST, which is"
    with pytest.raises(RuntimeError, match=message):
        check_form(Form.STACKED, HOPPER, (3, 8))
    assert all(int(getattr(rule, form.name).value) == form for form in Form)  # numbered as in the kernels


@given(
    problem=convolutions(),
    which=st.sampled_from(PASSES),
    chip=st.sampled_from(CHIPS),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    precision=st.sampled_from(["ieee", "tf32"]),
)
def test_blocks_are_safe_and_no_larger_than_what_they_cover(problem, which, chip, dtype, precision):
    problem = dataclasses.replace(problem, dtype=dtype)
    default, *tried = kernels_tune.candidates(which, problem, Device("made up", chip, 132), precision)
    assert default == default_config(which, problem, chip, precision)
    assert len({default, *tried}) == 1 + len(tried)
    positions = problem.batch * problem.height * problem.width
    covered = {
        "forward": (problem.rows, problem.group_outputs, problem.depth),
        "grad_x": (positions, problem.group_inputs, problem.group_outputs),
        "grad_w": (problem.group_outputs, problem.depth, problem.rows),
    }[which]
    shared = which == "grad_x" and chip.has_wgmma and dtype == torch.float16
    smallest = (SMALLEST_BLOCK, *[SMALLEST_SHARED if shared else SMALLEST_BLOCK] * 2)
    for config in (default, *tried):
        assert refused(config.form, chip, triton_version()) is None
        for block, size, least in zip((config.block_m, config.block_n, config.block_k), covered, smallest, strict=True):
            assert block & (block - 1) == 0
            assert least == block or least < block < 2 * size


def test_linear_layers_with_wide_offsets_get_blocks_that_hopper_does_not_serialise():
    for batch, block_n in ((2**19, 64), (2**19 - 1, 128)):
        problem = Problem(batch, 1, 1, 4096, 4096, dtype=torch.bfloat16)
        assert default_config("grad_x", problem, HOPPER, "tf32").block_n == block_n


@pytest.mark.parametrize(
    ("chip", "registers", "warps", "shared", "columns", "programs"),
    [
        (AMPERE, 32, 4, 0, 0, 16),  # 64 warps
        (AMPERE, 129, 8, 0, 0, 1),  # 136 registers · 32 threads · 8 warps are more than half of 65536
        (AMPERE, 32, 4, 48 * 1024, 0, 3),  # 164 KiB, 1 KiB a program for the system
        (HOPPER, 32, 4, 227 * 1024 + 1, 0, 0),
        (HOPPER, 16, 1, 0, 0, 32),
        (BLACKWELL, 32, 4, 0, 256, 2),  # 512 columns of tensor memory
        (MI300, 128, 8, 0, 0, 2),  # 4 units, each of 512 registers: 4 warps of 64 threads a unit
        (MI300, 32, 4, 65 * 1024, 0, 0),
        (Chip("hip", "gfx90a"), 64, 4, 0, 0, None),  # unknown
    ],
)
def test_programs_that_fit_on_a_processor(chip, registers, warps, shared, columns, programs):
    assert fitting(chip, registers, warps, shared, columns) == programs


def test_taps_outside_the_map_are_not_executed():
    """On 2×2 maps, 16 of the 36 taps of four positions are inside; of each tap 4, 2 or 1 positions."""
    problem = Problem(32, 2, 2, 16, 16, (3, 3), padding=(1, 1))
    plain = Config(16, 16, 16, 4, 1)
    skipping = dataclasses.replace(plain, by_position=True)
    for which in PASSES:
        assert executed_flops(which, problem, plain) == kernels_layers.dense_flops(which, problem)
        assert executed_flops(which, problem, skipping) == kernels_layers.dense_flops(which, problem) * 16 // 36
    # Of 3 taps an even position meets 1 and an odd one 2, with padding 1 and stride 2.
    strided = Problem(16, 4, 4, 16, 16, (3, 3), (2, 2), (1, 1))
    assert executed_flops("grad_x", strided, plain) == 2 * 16 * (4 * 9) * 16 * 16
    assert cut("forward", problem, skipping).longest == cut("grad_x", problem, skipping).longest == 4


@pytest.mark.skipif(not interpreting(), reason="products are counted in the interpreter")
@examples(25)
@given(
    problem=problems,
    which=st.sampled_from(PASSES),
    blocks=st.sampled_from(BLOCKS),
    by_position=st.booleans(),
    with_slope=st.booleans(),
)
def test_executed_operations_are_those_of_the_kernels(device, problem, which, blocks, by_position, with_slope):
    """Products of blocks that the interpreter is asked for."""
    from triton.runtime.interpreter import interpreter_builder

    problem = dataclasses.replace(problem, with_slope=with_slope)
    config = dataclasses.replace(blocks, by_position=by_position)
    layer = exact_layer(problem, device)
    operands = layer.x, layer.weight, layer.bias, layer.h, layer.slope_h if with_slope else None
    plan = kernels_layers.plan_from(which, problem, operands, config, "ieee", device_for(device, 80))
    with patch.object(interpreter_builder, "create_dot", wraps=interpreter_builder.create_dot) as create_dot:
        plan.run()
    products = 2 * create_dot.call_count * config.block_m * config.block_n * config.block_k
    assert executed_flops(which, problem, config) == products


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
    assert -(-144 * splits // 132) * length <= 1.05 * 1100 * 144 / 132
    assert split([1100], 132, 132, 0, 64) == (1, 1100)
