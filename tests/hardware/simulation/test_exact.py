import pytest
import torch
import torch.nn.functional as F
from torch import backends

from ttfs_triton.hardware.simulation.exact import FLOAT32_BOUND, FLOAT64_BOUND, exact_dtype, exact_products


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
    before = (backends.cudnn.enabled, backends.cuda.matmul.fp32_precision)
    try:
        backends.cuda.matmul.fp32_precision = "tf32"
        with torch.autocast("cpu", torch.bfloat16):
            with exact_products():
                assert not backends.cudnn.enabled
                assert backends.cuda.matmul.fp32_precision == "ieee"
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
        assert backends.cuda.matmul.fp32_precision == "tf32"
        assert backends.cudnn.enabled == before[0]
        with pytest.raises(KeyError), exact_products():
            raise KeyError
        assert backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        backends.cuda.matmul.fp32_precision = before[1]
