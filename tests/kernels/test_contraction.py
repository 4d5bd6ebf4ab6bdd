"""Products over columns: where they serve, and that they sum in float32; `test_layers.py` has their numbers."""

import pytest
import torch

from ttfs_kernels import contraction
from ttfs_kernels.contraction import Geometry, columns_are_faster, gradient_of_input


@pytest.mark.parametrize(
    ("side", "channels", "dtype", "groups", "device", "columns"),
    [
        (2, 512, torch.float32, 1, "cpu", True),
        (4, 512, torch.float32, 1, "cpu", True),
        (4, 256, torch.float32, 1, "cpu", False),
        (4, 256, torch.bfloat16, 1, "cpu", True),
        (8, 512, torch.bfloat16, 1, "cpu", False),
        (2, 512, torch.float64, 1, "cpu", False),
        (2, 512, torch.float32, 2, "cpu", False),
        (2, 512, torch.float32, 1, "meta", False),
    ],
)
def test_columns_serve_small_maps_with_many_weights(side, channels, dtype, groups, device, columns):
    x = torch.empty(2, channels, side, side, dtype=dtype, device=device)
    geometry = Geometry((1, 1), (1, 1), (1, 1), groups)
    assert columns_are_faster(x, x.new_empty(channels, channels // groups, 3, 3), geometry) is columns


@pytest.mark.parametrize("function", [gradient_of_input, contraction._scattered_products])
def test_columns_sum_input_gradients_in_float32(monkeypatch, function):
    """25 products meet in each input; summed in bfloat16, the error would be 1.2 units in the last place, not 0.6."""
    geometry = Geometry((1, 1), (2, 2), (1, 1), 1)
    monkeypatch.setattr(contraction, "WEIGHTS_PER_NEURON", {torch.bfloat16: 0})
    h, weight = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((4, 64, 4, 4), (64, 32, 5, 5)))
    h, weight = (maps.contiguous(memory_format=torch.channels_last) for maps in (h, weight))
    x = torch.empty(4, 32, 4, 4, dtype=torch.bfloat16)
    expected = torch.nn.grad.conv2d_input(x.shape, weight.double(), h.double(), padding=2)
    error = function(h, x, weight, geometry).double() - expected
    assert error.norm() < 0.9 * 2**-8 * expected.norm()
