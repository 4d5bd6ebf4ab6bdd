"""Block sizes: defaults that fit the layer, candidates that are worth timing, and their way through JSON."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.triton.common import convolutions
from tests.kernels.triton.test_formulation import CHIPS, HOPPER, VERSIONS
from ttfs_kernels.triton_backend.configs import SMALLEST_BLOCK, SMALLEST_SHARED, Config, candidates, default_config
from ttfs_kernels.triton_backend.formulation import Form, refused
from ttfs_kernels.triton_backend.problem import PASSES, Problem

VGG = Problem(128, 16, 16, 128, 256, (3, 3), padding=(1, 1), dtype=torch.float16)


@given(
    problem=convolutions(),
    which=st.sampled_from(PASSES),
    chip=st.sampled_from(CHIPS),
    precision=st.sampled_from(["ieee", "tf32"]),
    version=st.sampled_from(VERSIONS),
)
def test_candidates_are_safe_and_start_with_the_default(problem, which, chip, precision, version):
    tried = candidates(which, problem, chip, precision, version)
    assert tried[0] == default_config(which, problem, chip, precision)
    assert len(set(tried)) == len(tried)
    for config in tried:
        assert refused(config.form, chip, version) is None
        for side in (config.block_m, config.block_n, config.block_k):
            assert side >= SMALLEST_BLOCK
            assert side & (side - 1) == 0


@pytest.mark.parametrize("which", PASSES)
def test_candidates_try_forms_where_they_matter(which):
    """Only the forward pass with a slope has forms."""
    forms = {config.form for config in candidates(which, VGG, HOPPER, "ieee", (3, 9))}
    assert forms == ({Form.WEIGHTS_FIRST, Form.STACKED} if which == "forward" else {Form.WEIGHTS_FIRST})
    assert len(candidates(which, VGG, HOPPER, "ieee", (3, 9))) > 10


def test_linear_layers_with_wide_offsets_get_blocks_that_hopper_does_not_serialise():
    for batch, block_n in ((2**19, 64), (2**19 - 1, 128)):
        problem = Problem(batch, 1, 1, 4096, 4096, dtype=torch.bfloat16)
        assert default_config("grad_x", problem, HOPPER, "tf32").block_n == block_n


@given(problem=convolutions(), chip=st.sampled_from(CHIPS), dtype=st.sampled_from([torch.float16, torch.float32]))
def test_blocks_are_no_larger_than_what_they_cover(problem, chip, dtype):
    problem = dataclasses.replace(problem, dtype=dtype)
    positions = problem.batch * problem.height * problem.width
    sides = {
        "forward": (problem.rows, problem.group_outputs, problem.depth),
        "grad_x": (positions, problem.group_inputs, problem.group_outputs),
        "grad_w": (problem.group_outputs, problem.depth, problem.rows),
    }
    for which, covered in sides.items():
        config = default_config(which, problem, chip, "ieee")
        shared = which == "grad_x" and chip.has_wgmma and dtype == torch.float16
        smallest = (SMALLEST_BLOCK, *[SMALLEST_SHARED if shared else SMALLEST_BLOCK] * 2)
        for block, size, least in zip((config.block_m, config.block_n, config.block_k), covered, smallest, strict=True):
            assert least == block or least < block < 2 * size


@given(
    config=st.builds(
        Config,
        *[st.integers(1, 512)] * 5,
        form=st.sampled_from(Form),
        group=st.integers(1, 16),
        splits=st.integers(0, 64),
    )
)
def test_configs_survive_json(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "error"),
    [({"form": "sideways"}, KeyError), ({"form": "stacked", "block_q": 16}, TypeError), ({}, KeyError)],
)
def test_unknown_configs_are_refused(values, error):
    with pytest.raises(error):
        Config.from_dict(values)
