from contextlib import suppress

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import backends

from ttfs_triton.nn import integers, on_chip
from ttfs_triton.nn.integers import FLOAT32_BOUND, FLOAT64_BOUND, SMALLEST_UNIT, exact_products, quantise_weight


@settings(max_examples=40)
@given(
    st.sampled_from([2, 3, 4, 8, 12, 16, None]),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 50.0]),
)
def test_quantise_weight_is_symmetric_and_within_half_a_unit(bits, per_channel, seed, scale):
    """Fitting units, which clip weights, have no larger squared error."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.0, 1e-3, 0.1, 1.0], dtype=torch.float64).view(4, 1, 1, 1)  # a channel of zeros
    weight = scale * spread * torch.randn(4, 3, 2, 3, generator=generator, dtype=torch.float64)
    rounded = quantise_weight(weight, bits, per_channel=per_channel)
    unit = rounded.unit.view(-1, 1, 1, 1)
    assert ((weight - rounded.dequantise()).abs() <= unit / 2 * (1 + 1e-12)).all()
    assert (rounded.unit >= SMALLEST_UNIT).all()
    assert not rounded.integers[0].any()
    assert torch.equal(rounded.integers, rounded.integers.round())
    assert rounded.integers.abs().max() <= rounded.limit == 2 ** ((bits or 24) - 1) - 1
    opposite = quantise_weight(-weight, bits, per_channel=per_channel)
    assert torch.equal(opposite.integers, -rounded.integers)
    assert torch.equal(opposite.unit, rounded.unit)
    largest, above_floor = rounded.integers.abs().flatten(1).amax(1), rounded.unit > SMALLEST_UNIT
    if per_channel:
        assert (largest[above_floor] == rounded.limit).all()
    else:
        assert largest.max() == rounded.limit or not above_floor.any()
        assert len(rounded.unit.unique()) == 1
    if bits is not None:
        unit = integers.fitting_unit(weight, bits, per_channel=per_channel)
        fitted = quantise_weight(weight, bits, per_channel=per_channel, unit=unit)
        errors = [(weights.dequantise() - weight).square().flatten(1).sum(1) for weights in (fitted, rounded)]
        least, widest = errors if per_channel else (error.sum() for error in errors)
        assert (least <= widest * (1 + 1e-12)).all()
        assert per_channel or len(unit.unique()) == 1


@pytest.mark.parametrize(
    ("limit", "inputs", "channels", "dtype"), [(127, 64, 128, torch.float32), (32767, 128, 512, torch.float64)]
)
def test_convolution_at_the_bound_is_exact(limit, inputs, channels, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-limit, limit + 1, (2, channels, 3, 3), generator=generator)
    x = torch.randint(0, inputs + 1, (2, channels, 5, 5), generator=generator)
    x[:, :, ::2], weight[0] = inputs, limit  # some sums as large as they get
    assert limit * channels * 9 * inputs <= {torch.float32: FLOAT32_BOUND, torch.float64: FLOAT64_BOUND}[dtype]
    with exact_products():
        sums = F.conv2d(x.to(dtype), weight.to(dtype), padding=1).long()
        assert torch.equal(on_chip.by_taps(x.to(dtype), weight.to(dtype), None, (1, 1), (1, 1), (1, 1)).long(), sums)
    columns = F.unfold(x.double(), 3, padding=1).long()
    expected = torch.einsum("kj,njl->nkl", weight.flatten(1), columns).view(sums.shape)
    assert torch.equal(sums, expected)


def test_exact_products_switches_rounding_off_and_back():
    matmul = backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    with suppress(KeyError), torch.autocast("cpu", torch.bfloat16), exact_products():
        assert (backends.cudnn.enabled, matmul.fp32_precision) == (False, "ieee")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
        raise KeyError
    after, matmul.fp32_precision = matmul.fp32_precision, before
    assert (backends.cudnn.enabled, after) == (True, "tf32")
