"""What a pass has to compute: sizes, floors by hand, and the way through JSON."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.triton.common import convolutions
from ttfs_kernels import Neuron
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.triton_backend.problem import Problem

# 2 images of 8×6, kernel 3×1, stride 2×1, padding 1×0: maps of 4×6; 2 groups of 5 inputs and 3 outputs.
LAYER = Problem(2, 8, 6, 10, 6, (3, 1), (2, 1), (1, 0), groups=2, dtype=torch.float16)


def test_sizes_by_hand():
    assert LAYER.out_size == (4, 6)
    assert LAYER.rows == 2 * 4 * 6
    assert (LAYER.group_inputs, LAYER.group_outputs) == (5, 3)
    assert LAYER.depth == 5 * 3
    assert not LAYER.is_matrix_product


@pytest.mark.parametrize("with_slope", [True, False])
def test_floors_by_hand(with_slope):
    """48 positions × 6 channels × 15 synapses; x has 960 elements, y and h 288, the weight 90; two bytes each."""
    layer = dataclasses.replace(LAYER, with_slope=with_slope)
    products = 48 * 6 * 15
    pair = 2 if with_slope else 1
    assert layer.flops("forward") == 2 * pair * products
    assert layer.flops("grad_x") == 2 * products
    assert layer.flops("grad_w") == 2 * pair * products
    assert layer.bytes("forward") == 2 * (960 + 90 + pair * 288)
    assert layer.bytes("grad_x") == 2 * (288 + 90 + pair * 960)
    assert layer.bytes("grad_w") == 2 * (pair * 288 + 960 + 90)
    assert layer.flops("grad_b") == 0
    assert layer.bytes("grad_b") == 2 * ((1 + pair) * 288 + 6)


def test_problems_are_read_from_tensors():
    x, weight = torch.empty(2, 10, 8, 6, dtype=torch.float16), torch.empty(6, 5, 3, 1, dtype=torch.float16)
    assert Problem.of(x, weight, Geometry([2, 1], (1, 0), torch.Size([1, 1]), 2), Neuron()) == LAYER
    linear = Problem.of(torch.empty(3, 4), torch.empty(5, 4), None, Neuron(0.0))
    assert linear == Problem(3, 1, 1, 4, 5, with_slope=False)
    assert linear.is_matrix_product
    assert (linear.rows, linear.depth) == (3, 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"kernel": (1, 2)}, False),
        ({"stride": (2, 1)}, False),
        ({"padding": (0, 1)}, False),
        ({"groups": 2}, False),
        ({"height": 1, "width": 1}, True),
    ],
)
def test_one_tap_without_stride_is_a_matrix_product(changes, expected):
    assert (
        Problem(
            **({"batch": 2, "height": 4, "width": 4, "in_channels": 8, "out_channels": 6} | changes)
        ).is_matrix_product
        == expected
    )


@given(
    problem=convolutions(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    with_slope=st.booleans(),
)
def test_problems_survive_json(problem, dtype, with_slope):
    problem = dataclasses.replace(problem, dtype=dtype, with_slope=with_slope)
    assert Problem.from_dict(json.loads(json.dumps(problem.to_dict()))) == problem


def test_problems_may_leave_out_defaults():
    values = {"batch": 2, "height": 8, "width": 8, "in_channels": 3, "out_channels": 4, "kernel": [3, 3]}
    assert Problem.from_dict(values) == Problem(2, 8, 8, 3, 4, (3, 3))


@pytest.mark.parametrize(("values", "error"), [({"bach": 2}, TypeError), ({"dtype": "float17"}, AttributeError)])
def test_unknown_problems_are_refused(values, error):
    with pytest.raises(error):
        Problem.from_dict(values)
