"""Every refusal of the public functions, by its message."""

import re

import pytest
import torch

from ttfs_kernels import dft_conv2d, dft_linear

X, WEIGHT = torch.rand(2, 4, 5, 5), torch.rand(6, 4, 3, 3)
ROWS, MATRIX = torch.rand(2, 4), torch.rand(6, 4)


def both(match, error=ValueError, **options):
    return [
        (dft_linear, (ROWS, MATRIX), options, error, f"dft_linear: {match}"),
        (dft_conv2d, (X, WEIGHT), options, error, f"dft_conv2d: {match}"),
    ]


PAIR = "must be an integer or two integers ≥"
LINEAR_SHAPES = "x must be [..., in_features] and weight [out_features, in_features]; got"
CONV_SHAPES = "x must be [batch, in_channels, height, width] and weight [out_channels, in_channels / groups"
REFUSALS = [
    *both("backend must be one of auto, triton, torch; got 'cuda'", backend="cuda"),
    (dft_linear, (ROWS, MATRIX.T), {}, ValueError, f"{LINEAR_SHAPES} [2, 4] and [4, 6]"),
    (dft_linear, (ROWS, MATRIX[0]), {}, ValueError, f"{LINEAR_SHAPES} [2, 4] and [4]"),
    (dft_linear, (ROWS[0, 0], MATRIX), {}, ValueError, f"{LINEAR_SHAPES} [] and [6, 4]"),
    (dft_linear, (ROWS, MATRIX, torch.rand(4)), {}, ValueError, "dft_linear: bias must have shape [6]"),
    (dft_conv2d, (X, WEIGHT, torch.rand(1, 6)), {}, ValueError, "dft_conv2d: bias must have shape [6]"),
    (dft_conv2d, (X[0], WEIGHT), {}, ValueError, CONV_SHAPES),
    (dft_conv2d, (X, WEIGHT[0]), {}, ValueError, CONV_SHAPES),
    (dft_conv2d, (X, WEIGHT), {"stride": 0}, ValueError, f"stride {PAIR} 1; got 0"),
    (dft_conv2d, (X, WEIGHT), {"stride": 1.5}, ValueError, f"stride {PAIR} 1; got 1.5"),
    (dft_conv2d, (X, WEIGHT), {"padding": (1, 1, 1)}, ValueError, f"padding {PAIR} 0; got (1, 1, 1)"),
    (dft_conv2d, (X, WEIGHT), {"padding": "same"}, ValueError, f"padding {PAIR} 0; got 'same'"),
    (dft_conv2d, (X, WEIGHT), {"dilation": (1, 0)}, ValueError, f"dilation {PAIR} 1; got (1, 0)"),
    (
        dft_conv2d,
        (X, WEIGHT),
        {"groups": 3},
        ValueError,
        "groups must divide in_channels (=4) and out_channels (=6); got 3",
    ),
    (dft_conv2d, (X, WEIGHT), {"groups": 0}, ValueError, "dft_conv2d: groups must be an integer ≥ 1; got 0."),
    (dft_conv2d, (X, WEIGHT), {"groups": 1.0}, ValueError, "dft_conv2d: groups must be an integer ≥ 1; got 1.0."),
    (
        dft_conv2d,
        (X, WEIGHT),
        {"groups": 2},
        ValueError,
        "x must have 8 channels, as weight [6, 4, 3, 3] with groups=2 expects; got 4",
    ),
    (
        dft_conv2d,
        (X, WEIGHT),
        {"dilation": 3},
        ValueError,
        "the padded image must be at least as large as the dilated kernel; got image [5, 5]",
    ),
]
for function, inputs in ((dft_linear, (ROWS, MATRIX)), (dft_conv2d, (X, WEIGHT))):
    x, weight = inputs
    name = function.__name__
    REFUSALS += [
        (function, (x.long(), weight), {}, TypeError, f"{name}: x must be float16, bfloat16, float32 or float64"),
        (function, (x, weight, torch.ones(6, dtype=torch.int32)), {}, TypeError, f"{name}: bias must be float16"),
        (function, (x, weight.double()), {}, TypeError, f"{name}: x and weight must have one dtype"),
        (function, (x, weight.to("meta")), {}, ValueError, f"{name}: weight must be on the device of x (cpu)"),
    ]


@pytest.mark.parametrize(("function", "inputs", "options", "error", "message"), REFUSALS)
def test_refuses_wrong_arguments(function, inputs, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        function(*inputs, **options)


def test_torch_backend_can_be_asked_for():
    for backend in ("torch", "auto"):
        assert torch.equal(dft_linear(ROWS, MATRIX, backend=backend), dft_linear(ROWS, MATRIX))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pool": 3}, ValueError, "dft_conv2d: pool must be one of 1, 2; got 3"),
        ({"pool": 1.0}, ValueError, "dft_conv2d: pool must be one of 1, 2; got 1.0"),
        ({"fuse_pool": 1}, ValueError, "dft_conv2d: fuse_pool must be True, False or None; got 1"),
        ({"pool": 2}, ValueError, "dft_conv2d: maps must be at least as large as the windows of pool=2; got 1×4"),
        ({"fuse_pool": True, "backend": "torch"}, RuntimeError, "dft_conv2d: fuse_pool must be None or False where"),
    ],
)
def test_dft_conv2d_refuses_pools_that_it_cannot_compute(options, error, message):
    with pytest.raises(error, match=message):
        dft_conv2d(torch.rand(1, 2, 3, 6), torch.rand(3, 2, 3, 3), **options)
