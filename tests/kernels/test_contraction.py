"""The two providers of a convolution and its gradients, and the choice between them."""

import pytest
import torch

from ttfs_kernels import contraction
from ttfs_kernels.contraction import Geometry, columns_are_faster, contract, gradient_of_input, gradient_of_weight

SAME = Geometry((1, 1), (1, 1), (1, 1), 1)


def maps(*shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.channels_last):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("side", "channels", "dtype", "columns"),
    [
        (2, 512, torch.float32, True),
        (4, 512, torch.float32, True),
        (4, 256, torch.float32, False),
        (4, 256, torch.bfloat16, True),
        (8, 512, torch.float32, False),
        (8, 512, torch.bfloat16, False),
        (2, 512, torch.float64, False),
    ],
)
def test_columns_serve_small_maps_with_many_weights(side, channels, dtype, columns):
    x = torch.empty(2, channels, side, side, dtype=dtype)
    weight = x.new_empty(channels, channels, 3, 3)
    assert columns_are_faster(x, weight, SAME) is columns
    assert not columns_are_faster(x, weight, SAME._replace(groups=2))
    assert not columns_are_faster(x.to("meta"), weight.to("meta"), SAME)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    "geometry",
    [
        SAME,
        Geometry((1, 1), (0, 2), (2, 3), 1),
        Geometry((1, 1), (4, 3), (1, 1), 1),
        Geometry((2, 1), (0, 2), (1, 2), 1),
        Geometry((3, 3), (2, 2), (2, 2), 1),
    ],
)
def test_columns_equal_convolution(monkeypatch, dtype, layout, geometry):
    x, weight = maps(2, 6, 7, 6, dtype=dtype, layout=layout), maps(5, 6, 3, 2, dtype=dtype, layout=layout)
    bias = torch.randn(5, dtype=dtype)
    h = maps(2, 5, *geometry.map_size(x.shape[2:], weight.shape[2:]), dtype=dtype, layout=layout)
    results = []
    for largest in (-1, 1 << 20):
        monkeypatch.setattr(contraction, "LARGEST_MAP", largest)
        monkeypatch.setattr(contraction, "WEIGHTS_PER_NEURON", {dtype: 0})
        gradients = (gradient(h, x, weight, geometry) for gradient in (gradient_of_input, gradient_of_weight))
        results.append((contract(x, weight, bias, geometry), *gradients))
    for convolution, columns in zip(*results, strict=True):
        assert columns.is_contiguous(memory_format=torch.channels_last)
        assert convolution.is_contiguous(memory_format=torch.channels_last)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(columns, convolution, rtol=4 * eps, atol=40 * eps)


@pytest.mark.parametrize("function", [gradient_of_input, contraction._scattered_products])
def test_columns_sum_input_gradients_in_float32(monkeypatch, function):
    """25 products meet in each input; summed in bfloat16, the error would be 1.2 units in the last place, not 0.6."""
    geometry = Geometry((1, 1), (2, 2), (1, 1), 1)
    monkeypatch.setattr(contraction, "WEIGHTS_PER_NEURON", {torch.bfloat16: 0})
    h, weight = maps(4, 64, 4, 4, dtype=torch.bfloat16), maps(64, 32, 5, 5, dtype=torch.bfloat16)
    x = torch.empty(4, 32, 4, 4, dtype=torch.bfloat16)
    expected = torch.nn.grad.conv2d_input(x.shape, weight.double(), h.double(), padding=2)
    error = function(h, x, weight, geometry).double() - expected
    assert error.norm() < 0.9 * 2**-8 * expected.norm()
