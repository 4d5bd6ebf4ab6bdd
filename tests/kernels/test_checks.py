"""Every error that `Neuron` and the public functions raise for their arguments, by its message."""

import math
import re

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ttfs_kernels import Neuron, dft_conv2d, dft_linear

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
    for function, (x, weight, refusals) in FUNCTIONS.items()
    for changes, error, message in [
        *refusals,
        *BOTH,
        ({"x": x.long()}, TypeError, "x must be float16, bfloat16, float32 or float64; got torch.int64"),
        ({"weight": weight[:0]}, ValueError, "weight must have at least one output and one input; got"),
        ({"weight": weight.double()}, TypeError, "x and weight must have one dtype"),
    ]
]
NAN = math.nan
PROPERTIES = [
    *(({k: v}, f"{k} must be a number; got {v}") for k, v in (("surrogate_width", None), ("psp_persistence", True))),
    *(({name: 1.5}, f"{name} must lie in [0, 1]; got 1.5") for name in ("psp_persistence", "split_gradient")),
    *(({"psp_persistence": sigma}, f"psp_persistence must lie in [0, 1]; got {sigma}") for sigma in (-0.1, NAN)),
    *(({"derivative_clip": clip}, f"derivative_clip must be positive or None; got {clip}") for clip in (0, -1.0, NAN)),
    *(
        ({"surrogate_width": width}, f"surrogate_width must be 0 or from 1e-06 to 1e+06; got {width}")
        for width in (-0.5, math.inf, NAN, 1e308, 1e-320)
    ),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), REFUSALS)
def test_refuses_wrong_arguments(function, arguments, error, message):
    function(*FUNCTIONS[function][:2], torch.rand(6))  # calls that pass are remembered
    with pytest.raises(error, match=re.escape(f"{function.__name__}: {message}")):
        function(**arguments)


def test_sizes_may_be_symbols():
    traced = make_fx(lambda x, weight: dft_conv2d(x, weight, padding=1), tracing_mode="symbolic")(X, WEIGHT)
    torch.testing.assert_close(traced(X, WEIGHT), dft_conv2d(X, WEIGHT, padding=1))


@pytest.mark.parametrize(("properties", "message"), PROPERTIES)
def test_neuron_refuses_properties_out_of_range(properties, message):
    with pytest.raises(ValueError, match=re.escape(f"Neuron: {message}")):
        Neuron(**properties)


def test_gradients_are_numbers_at_any_width():
    x = torch.tensor([[0.0, 1e-7, 0.5, 1.0]], requires_grad=True)
    weight = torch.tensor([[-1.0, 0.3, 0.2, -0.6]], requires_grad=True)
    for width in (1e-6, 1e6):
        y = dft_linear(x, weight, neuron=Neuron(0.5, surrogate_width=width))
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), (x, weight)))
