"""The ranges of `Neuron`'s properties: the message of every error, and values at the ends of the ranges."""

import math
import re
from fractions import Fraction

import pytest
import torch

from ttfs_kernels import Neuron, dft_linear

NAN = math.nan
REFUSALS = [
    *(({name: "1"}, f"{name} must be a number; got '1'") for name in ("psp_persistence", "derivative_clip")),
    *(({k: v}, f"{k} must be a number; got {v}") for k, v in (("surrogate_width", None), ("psp_persistence", True))),
    *(({name: 1.5}, f"{name} must lie in [0, 1]; got 1.5") for name in ("psp_persistence", "split_gradient")),
    *(({"psp_persistence": sigma}, f"psp_persistence must lie in [0, 1]; got {sigma}") for sigma in (-0.1, NAN)),
    *(({"derivative_clip": clip}, f"derivative_clip must be positive or None; got {clip}") for clip in (0, -1.0, NAN)),
    *(
        ({"surrogate_width": width}, f"surrogate_width must be 0 or from 1e-06 to 1e+06; got {width}")
        for width in (-0.5, math.inf, NAN, 1e308, 1e-320)
    ),
]


@pytest.mark.parametrize(("properties", "message"), REFUSALS)
def test_neuron_refuses_properties_out_of_range(properties, message):
    with pytest.raises(ValueError, match=re.escape(f"Neuron: {message}")):
        Neuron(**properties)


@pytest.mark.parametrize("width", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_are_numbers_at_any_width(width, dtype):
    x = torch.tensor([[0.0, 1e-7, 0.5, 1.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[-1.0, 0.3, 0.2, -0.6]], dtype=dtype, requires_grad=True)
    y = dft_linear(x, weight, neuron=Neuron(0.5, surrogate_width=width))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), (x, weight)))


def test_fractions_are_numbers():
    assert Neuron(Fraction(1, 2)) == Neuron(0.5)
    assert isinstance(Neuron(Fraction(1, 2)).psp_persistence, float)
