"""Maps side by side: where they serve, and that they sum in float32; `test_layers.py` has their numbers."""

import pytest
import torch

from ttfs_kernels import contraction
from ttfs_kernels.contraction import Geometry, gradient_of_input, strip_of


@pytest.mark.parametrize(
    ("side", "channels", "options", "potentials", "weights"),
    [
        (2, 512, {}, True, True),
        (4, 512, {}, True, True),
        (4, 256, {}, False, False),
        (4, 256, {"dtype": torch.bfloat16}, True, True),
        (7, 256, {"dtype": torch.bfloat16}, False, True),
        (7, 512, {"dtype": torch.bfloat16}, True, True),
        (15, 512, {"dtype": torch.bfloat16}, False, False),
        (7, 16, {"dtype": torch.bfloat16}, False, False),
        (2, 512, {"dtype": torch.float64}, False, False),
        (2, 512, {"device": "meta"}, False, False),
    ],
)
def test_narrow_maps_with_many_weights_lie_side_by_side(side, channels, options, potentials, weights):
    x = torch.empty(6, channels, side, side, **options)
    weight, geometry = x.new_empty(channels, channels, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)
    assert (strip_of(x, weight, geometry) is not None) is potentials
    assert (strip_of(x, weight, geometry, of_weight=True) is not None) is weights
    assert strip_of(x, weight[:, ::2], geometry._replace(groups=2)) is None
    assert strip_of(x[:1], weight, geometry) is None


def test_input_gradients_are_summed_in_float32(monkeypatch):
    """25 products meet in each input; summed in bfloat16, the error would be 1.2 units in the last place, not 0.6."""
    geometry = Geometry((1, 1), (2, 2), (1, 1), 1)
    monkeypatch.setattr(contraction, "WEIGHTS_PER_NEURON", {torch.bfloat16: 0})
    h, weight = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((4, 64, 4, 4), (64, 32, 5, 5)))
    h, weight = (maps.contiguous(memory_format=torch.channels_last) for maps in (h, weight))
    x = torch.empty(4, 32, 4, 4, dtype=torch.bfloat16)
    assert strip_of(x, weight, geometry) is not None
    expected = torch.nn.grad.conv2d_input(x.shape, weight.double(), h.double(), padding=2)
    error = gradient_of_input(h, x, weight, geometry).double() - expected
    assert error.norm() < 0.9 * 2**-8 * expected.norm()
