"""Every error that the public functions raise for their arguments, by its message."""

import re

import pytest
import torch

from ttfs_kernels import dft_conv2d, dft_linear

X, WEIGHT, SKIP = torch.rand(2, 4, 5, 5), torch.rand(6, 4, 3, 3), torch.rand(2, 6, 3, 3)
ROWS, MATRIX = torch.rand(2, 4), torch.rand(6, 4)
PAIR = "must be an integer or two integers ≥"
LINEAR_SHAPES = "x must be [..., in_features] and weight [out_features, in_features]; got"
CONV_SHAPES = "x must be [batch, in_channels, height, width] and weight [out_channels, in_channels / groups"
LINEAR = [
    ({"weight": MATRIX.T}, ValueError, f"{LINEAR_SHAPES} [2, 4] and [4, 6]"),
    ({"x": ROWS[0, 0]}, ValueError, f"{LINEAR_SHAPES} [] and [6, 4]"),
]
CONV2D = [
    ({"x": X[0]}, ValueError, CONV_SHAPES),
    ({"stride": 0}, ValueError, f"stride {PAIR} 1; got 0"),
    ({"stride": True}, ValueError, f"stride {PAIR} 1; got True"),
    ({"groups": True}, ValueError, "groups must be an integer ≥ 1; got True."),
    ({"padding": (1, 1, 1)}, ValueError, f"padding {PAIR} 0; got (1, 1, 1)"),
    ({"dilation": (1, 0)}, ValueError, f"dilation {PAIR} 1; got (1, 0)"),
    ({"groups": 4}, ValueError, "groups must divide out_channels (=6); got 4"),
    ({"groups": 2}, ValueError, "x must have 8 channels, as weight [6, 4, 3, 3] with groups=2 expects; got 4"),
    ({"dilation": 3}, ValueError, "the padded image must be at least as large as the dilated kernel; got image [5, 5]"),
    ({"skip": SKIP}, ValueError, "skip_weight must come with skip; got none"),
    ({"skip_weight": torch.rand(6)}, ValueError, "skip must come with skip_weight; got none"),
    ({"skip": X, "skip_weight": torch.rand(6)}, ValueError, "skip must have the shape of the output, [2, 6, 3, 3]"),
    ({"skip": SKIP, "skip_weight": torch.rand(5)}, ValueError, "skip_weight must have shape [6]"),
    ({"skip": SKIP.double(), "skip_weight": torch.rand(6)}, TypeError, "skip must have the dtype of x, torch.float32"),
]
BOTH = [
    ({"backend": "cuda"}, ValueError, "backend must be one of auto, triton, torch; got 'cuda'"),
    ({"bias": torch.rand(4)}, ValueError, "bias must have shape [6]"),
    ({"bias": torch.ones(6, dtype=torch.int32)}, TypeError, "bias must be float16, bfloat16, float32 or float64"),
    ({"bias": torch.ones(6, device="meta")}, ValueError, "bias must be on the device of x (cpu)"),
]
FUNCTIONS = {dft_linear: (ROWS, MATRIX, LINEAR), dft_conv2d: (X, WEIGHT, CONV2D)}
REFUSALS = [
    (function, {"x": x, "weight": weight} | changes, error, message)
    for function, (x, weight, own) in FUNCTIONS.items()
    for changes, error, message in [
        *own,
        *BOTH,
        ({"x": x.long()}, TypeError, "x must be float16, bfloat16, float32 or float64; got torch.int64"),
        ({"weight": weight[:0]}, ValueError, "weight must have at least one output and one input; got"),
        ({"weight": weight.double()}, TypeError, "x and weight must have one dtype"),
    ]
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), REFUSALS)
def test_refuses_wrong_arguments(function, arguments, error, message):
    with pytest.raises(error, match=re.escape(f"{function.__name__}: {message}")):
        function(**arguments)
