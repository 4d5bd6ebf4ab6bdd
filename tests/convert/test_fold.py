"""Folded layers compute what the layers with normalisation compute, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.convert import ConversionError
from ttfs_triton.convert.fold import batch_norm_of, fold_average_pool, fold_input_normalisation

sizes = st.integers(1, 5)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(side=sizes, height=sizes, width=sizes, channels=sizes, seed=st.integers(0, 99))
def test_average_pool_folds_into_a_linear_layer(side, height, width, channels, seed):
    weight, x = normal(3, channels * side * side, seed=seed), normal(2, channels, height, width, seed=seed + 1)
    folded = fold_average_pool(weight, side, (height, width))
    expected = F.linear(F.adaptive_avg_pool2d(x, side).flatten(1), weight)
    torch.testing.assert_close(F.linear(x.flatten(1), folded), expected)


def test_replicated_place_adds_weights_up():
    weight = normal(2, 3 * 49, seed=0)
    torch.testing.assert_close(fold_average_pool(weight, 7, (1, 1)), weight.view(2, 3, 49).sum(2))


@given(inputs=sizes, seed=st.integers(0, 99), bias=st.booleans())
def test_input_normalisation_folds_without_padding(inputs, seed, bias):
    weight, images = normal(2, inputs, 3, 3, seed=seed), normal(2, inputs, 7, 6, seed=seed + 1)
    shift = normal(2, seed=seed + 2) if bias else None
    mean, std = normal(inputs, seed=seed + 3), normal(inputs, seed=seed + 4).abs() + 0.1
    folded_weight, folded_bias = fold_input_normalisation(weight, shift, mean.tolist(), std.tolist())
    expected = F.conv2d((images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), weight, shift)
    torch.testing.assert_close(F.conv2d(images, folded_weight, folded_bias), expected)


@pytest.mark.parametrize("epsilon", [0.0, -1e-5, float("nan")])
def test_epsilon_must_be_positive(epsilon):
    tensors = {"n.running_mean": torch.ones(2), "n.running_var": torch.ones(2)}
    with pytest.raises(ConversionError, match="batch_norm_epsilon must be positive"):
        batch_norm_of(tensors, "n", epsilon)


def test_negative_variance_is_refused():
    tensors = {"n.running_mean": torch.ones(2), "n.running_var": torch.tensor([1.0, -0.5])}
    with pytest.raises(ConversionError, match=r"n\.running_var must not be negative; got -0\.5"):
        batch_norm_of(tensors, "n", 1e-5)
