"""Forms, blocks and splits of a pass, by what chips allow."""

import dataclasses

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.modules import modules
from tests.kernels.triton.common import convolutions
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
from ttfs_kernels.triton_backend.launch import Device
from ttfs_kernels.triton_backend.problem import PASSES, Problem
from ttfs_kernels.triton_backend.work import STEPS_PER_SPLIT, split

kernels_layers, kernels_tune = modules("_kernels_layers", "_kernels_tune")

AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL = (Chip("cuda", sm) for sm in (80, 89, 90, 100, 120))
MI300 = Chip("hip", "gfx942")
CHIPS = (AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL, MI300)
VERSIONS = ((3, 5), (3, 8), (3, 9), (3, 10), (4, 0))
VGG = Problem(128, 16, 16, 128, 256, (3, 3), padding=(1, 1), dtype=torch.float16)


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


def test_racing_forms_are_not_launched_and_the_safe_one_is_named(monkeypatch):
    config, hopper = Config(16, 16, 16, 4, 1, Form.ACTIVATIONS_FIRST), Device("made up", HOPPER, 132)
    with pytest.raises(RuntimeError, match="ACTIVATIONS_FIRST is a register race on sm_90 with every Triton version"):
        kernels_layers.plan_pass("forward", VGG, config, "ieee", hopper)
    safe = dataclasses.replace(config, form=default_form(HOPPER))
    assert kernels_layers.plan_pass("forward", VGG, safe, "ieee", hopper).launches
    message = r"STACKED is a register race on sm_90 before Triton 3\.9; got Triton 3\.8\. Use WEIGHTS_FIRST, which is"
    with pytest.raises(RuntimeError, match=message):
        check_form(Form.STACKED, HOPPER, (3, 8))
    assert all(int(getattr(rule, form.name).value) == form for form in Form)  # numbered as in the kernels
    monkeypatch.setattr(triton, "__version__", "nightly")
    with pytest.raises(RuntimeError, match="Triton's version must start with two numbers; got 'nightly'"):
        triton_version()


@given(
    problem=convolutions,
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


@pytest.mark.parametrize("which", PASSES)
def test_candidates_try_forms_where_they_matter(which):
    """Only the forward pass with a slope has forms."""
    tried = kernels_tune.candidates(which, VGG, Device("made up", AMPERE, 108), "ieee")
    assert {config.form for config in tried} == (set(Form) if which == "forward" else {Form.ACTIVATIONS_FIRST})
    assert len(tried) > 10


def test_linear_layers_with_wide_offsets_get_blocks_that_hopper_does_not_serialise():
    for batch, block_n in ((2**19, 64), (2**19 - 1, 128)):
        problem = Problem(batch, 1, 1, 4096, 4096, dtype=torch.bfloat16)
        assert default_config("grad_x", problem, HOPPER, "tf32").block_n == block_n


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
