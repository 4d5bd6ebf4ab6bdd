from contextlib import suppress

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import backends

from ttfs_triton.nn.integers import (
    FLOAT32_BOUND,
    FLOAT64_BOUND,
    SMALLEST_UNIT,
    exact_dtype,
    exact_products,
    quantise_potential,
    quantise_weight,
)

BITS = st.sampled_from([2, 3, 4, 8, 12, 16, None])


@settings(max_examples=40)
@given(BITS, st.booleans(), st.integers(0, 10**6), st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 50.0]))
def test_quantise_weight_is_symmetric_and_within_half_a_unit(bits, per_channel, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.0, 1e-3, 0.1, 1.0], dtype=torch.float64).view(4, 1, 1, 1)  # a channel of zeros
    weight = scale * spread * torch.randn(4, 3, 2, 3, generator=generator, dtype=torch.float64)
    found = quantise_weight(weight, bits, per_channel=per_channel)
    unit = found.unit.view(-1, 1, 1, 1)
    assert ((weight - found.dequantise()).abs() <= unit / 2 * (1 + 1e-12)).all()
    assert (found.unit >= SMALLEST_UNIT).all()
    assert not found.integers[0].any()
    assert torch.equal(found.integers, found.integers.round())
    assert found.integers.abs().max() <= found.limit == 2 ** ((bits or 24) - 1) - 1
    opposite = quantise_weight(-weight, bits, per_channel=per_channel)
    assert torch.equal(opposite.integers, -found.integers)
    assert torch.equal(opposite.unit, found.unit)
    largest, above_floor = found.integers.abs().flatten(1).amax(1), found.unit > SMALLEST_UNIT
    if per_channel:
        assert (largest[above_floor] == found.limit).all()
    else:
        assert largest.max() == found.limit or not above_floor.any()
        assert len(found.unit.unique()) == 1


def test_quantise_rejects_values_that_are_not_finite():
    with pytest.raises(ValueError, match="quantise_weight: weight must be finite; got nan"):
        quantise_weight(torch.tensor([[1.0, torch.nan]]), 8)
    with pytest.raises(ValueError, match="quantise_potential: potential must be finite; got"):
        quantise_potential(torch.tensor([torch.inf]), torch.ones(1), 4)


def test_exact_dtype_is_the_fastest_that_holds_the_sums():
    assert exact_dtype(FLOAT32_BOUND) is torch.float32
    assert exact_dtype(FLOAT32_BOUND + 1) is torch.float64
    assert exact_dtype(FLOAT64_BOUND) is torch.float64
    with pytest.raises(ValueError, match=r"exact_dtype: bound must be at most 2\^53; got 9007199254740993"):
        exact_dtype(FLOAT64_BOUND + 1)


@pytest.mark.parametrize(
    ("limit", "inputs", "channels", "dtype"), [(127, 64, 128, torch.float32), (32767, 128, 512, torch.float64)]
)
def test_convolution_at_the_bound_is_exact(limit, inputs, channels, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-limit, limit + 1, (2, channels, 3, 3), generator=generator)
    x = torch.randint(0, inputs + 1, (2, channels, 5, 5), generator=generator)
    x[:, :, ::2], weight[0] = inputs, limit  # some sums as large as they get
    bound = limit * channels * 9 * inputs
    assert exact_dtype(bound) is dtype
    with exact_products():
        found = F.conv2d(x.to(dtype), weight.to(dtype), padding=1).long()
    columns = F.unfold(x.double(), 3, padding=1).long()
    expected = torch.einsum("kj,njl->nkl", weight.flatten(1), columns).view(found.shape)
    assert torch.equal(found, expected)


def test_exact_products_switches_rounding_off_and_back():
    matmul = backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    with suppress(KeyError), torch.autocast("cpu", torch.bfloat16), exact_products():
        assert (backends.cudnn.enabled, matmul.fp32_precision) == (False, "ieee")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
        raise KeyError
    after, matmul.fp32_precision = matmul.fp32_precision, before
    assert (backends.cudnn.enabled, after) == (True, "tf32")
