import pytest
import torch
import torch.nn.functional as F

from tests.nn.common import activations, randomised
from ttfs_triton.nn import ANNConv2d, ANNLinear


@pytest.mark.parametrize("batch_norm", [False, True])
def test_conv2d_is_convolution_norm_and_clamp(batch_norm):
    layer = randomised(ANNConv2d(3, 4, 3, stride=2, padding=1, batch_norm=batch_norm, dtype=torch.float64), seed=1)
    x = activations(4, 3, 6, 6, seed=2)
    potential = F.conv2d(x, layer.effective_weight(), layer.bias, stride=2, padding=1)
    if batch_norm:
        norm = layer.batch_norm
        potential = F.batch_norm(potential, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(layer(x), potential.clamp(0, 1))
    assert (layer.bias is None) == batch_norm


@pytest.mark.parametrize("batch_norm", [False, True])
def test_linear_is_product_norm_and_clamp(batch_norm):
    layer = randomised(ANNLinear(6, 4, batch_norm=batch_norm, dtype=torch.float64), seed=1)
    x = activations(8, 6, seed=2)
    potential = F.linear(x, layer.effective_weight(), layer.bias)
    if batch_norm:
        norm = layer.batch_norm
        potential = F.batch_norm(potential, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(layer(x), potential.clamp(0, 1))


def test_clamp_has_no_gradient_at_its_borders():
    layer = ANNLinear(2, 3, weight_standardisation=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.0]]))
    x = torch.ones(1, 2, dtype=torch.float64)
    layer(x).sum().backward()  # potentials 1 (saturated), 0 (silent), 0.5
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [0, 0, 1]


def test_conv2d_is_channels_last_behind_one_channel_images():
    layer = ANNConv2d(1, 4, 3, padding=1)
    assert layer(torch.rand(2, 1, 6, 6)).is_contiguous(memory_format=torch.channels_last)
