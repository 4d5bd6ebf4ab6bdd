"""How products over columns sum; `test_layers.py` tests the results of every way."""

import torch

from ttfs_kernels import contraction
from ttfs_kernels.checks import Geometry
from ttfs_kernels.contraction import gradient_of_input


def test_columns_sum_input_gradients_in_float32(monkeypatch):
    """25 products meet in each input; summed in bfloat16, the error would be 1.2 units in the last place, not 0.6."""
    geometry = Geometry((1, 1), (2, 2), (1, 1), 1)
    monkeypatch.setattr(contraction, "WEIGHTS_PER_NEURON", {torch.bfloat16: 0})
    h, weight = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((4, 64, 4, 4), (64, 32, 5, 5)))
    h, weight = (maps.contiguous(memory_format=torch.channels_last) for maps in (h, weight))
    expected = torch.nn.grad.conv2d_input((4, 32, 4, 4), weight.double(), h.double(), padding=2)
    error = gradient_of_input(h, h[:, :32], weight, geometry).double() - expected
    assert error.norm() < 0.9 * 2**-8 * expected.norm()
