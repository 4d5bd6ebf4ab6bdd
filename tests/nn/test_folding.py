"""A layer with batch norm folded in computes what both compute, in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.nn import DFTConv2d, DFTLinear, Neuron
from ttfs_triton.nn.folding import BatchNorm, plain_synapses

sizes = st.integers(1, 5)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    channels=sizes,
    inputs=sizes,
    seed=st.integers(0, 99),
    bias=st.booleans(),
    affine=st.booleans(),
    convolution=st.booleans(),
)
def test_batch_norm_folds_into_a_layer(channels, inputs, seed, bias, affine, convolution):
    weight = normal(channels, inputs, *(3, 3) * convolution, seed=seed)
    x = normal(3, inputs, *(6, 5) * convolution, seed=seed + 1)
    contract = partial(F.conv2d, padding=1) if convolution else F.linear
    shift = normal(channels, seed=seed + 2) if bias else None
    gamma, beta = (normal(channels, seed=seed + 3), normal(channels, seed=seed + 4)) if affine else (None, None)
    mean, var = normal(channels, seed=seed + 5), normal(channels, seed=seed + 6) ** 2
    folded = BatchNorm(mean, var, gamma, beta, 1e-3).fold(weight, shift)
    expected = F.batch_norm(contract(x, weight, shift), mean, var, gamma, beta, eps=1e-3)
    torch.testing.assert_close(contract(x, *folded), expected)
    rounded = BatchNorm(mean.float(), var.float(), None, None).fold(weight.float(), None)
    assert {tensor.dtype for tensor in rounded} == {torch.float64}


@pytest.mark.parametrize(("kind", "sizes"), [(DFTConv2d, (2, 4, 3, 2, 1)), (DFTLinear, (6, 4))])
def test_batch_norm_of_a_layer_is_folded(kind, sizes):
    layer = kind(*sizes, batch_norm=True, neuron=Neuron(0.0), dtype=torch.float64).eval()
    norm = layer.batch_norm
    for seed, values in enumerate((norm.running_mean, norm.weight.data, norm.bias.data)):
        values.copy_(normal(4, seed=seed))
    norm.running_var.copy_(normal(4, seed=3) ** 2)
    weight, bias = plain_synapses(layer)
    if kind is DFTConv2d:
        x = normal(3, 2, 7, 6, seed=4)
        potential = F.conv2d(x, weight, bias, layer.stride, layer.padding)
    else:
        x = normal(3, 6, seed=4)
        potential = F.linear(x, weight, bias)
    torch.testing.assert_close(potential.clamp(0, 1), layer(x))
