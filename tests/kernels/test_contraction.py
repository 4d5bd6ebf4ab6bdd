"""When products over columns and maps side by side are used, and how they sum; `test_layers.py` tests their results."""

import pytest
import torch

from ttfs_kernels import contraction
from ttfs_kernels.contraction import Geometry, columns_are_faster, gradient_of_input, strip_of


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
    weight = x.new_empty(channels, channels // groups, 3, 3)
    found = [columns_are_faster(x, weight, geometry._replace(stride=(stride, stride))) for stride in (1, 2)]
    assert found == [columns, False]


@pytest.mark.parametrize(
    ("side", "channels", "dtype", "potentials", "weights"),
    [
        (7, 512, torch.bfloat16, True, True),
        (7, 256, torch.bfloat16, False, True),
        (7, 16, torch.bfloat16, False, False),
        (15, 512, torch.bfloat16, False, False),
        (7, 512, torch.float32, False, False),
    ],
)
def test_narrow_maps_with_many_weights_lie_side_by_side(side, channels, dtype, potentials, weights):
    x, geometry = torch.empty(6, channels, side, side, dtype=dtype), Geometry((1, 1), (1, 1), (1, 1), 1)
    weight = x.new_empty(channels, channels, 3, 3)
    assert (strip_of(x, weight, geometry) is not None) is potentials
    assert (strip_of(x, weight, geometry, of_weight=True) is not None) is weights
    assert strip_of(x[:1], weight, geometry) is None
    assert strip_of(x, weight[:, ::2], geometry._replace(groups=2)) is None


def test_columns_sum_input_gradients_in_float32(monkeypatch):
    """25 products meet in each input; summed in bfloat16, the error would be 1.2 units in the last place, not 0.6."""
    geometry = Geometry((1, 1), (2, 2), (1, 1), 1)
    monkeypatch.setattr(contraction, "WEIGHTS_PER_NEURON", {torch.bfloat16: 0})
    h, weight = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((4, 64, 4, 4), (64, 32, 5, 5)))
    h, weight = (maps.contiguous(memory_format=torch.channels_last) for maps in (h, weight))
    expected = torch.nn.grad.conv2d_input((4, 32, 4, 4), weight.double(), h.double(), padding=2)
    error = gradient_of_input(h, h[:, :32], weight, geometry).double() - expected
    assert error.norm() < 0.9 * 2**-8 * expected.norm()
