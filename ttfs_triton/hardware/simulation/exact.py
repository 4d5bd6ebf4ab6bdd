"""Sums of integers in floating point that are exact: the type that holds them, and the switches that would round."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import backends
from torch.backends import cudnn, mkldnn

# Every sum of integers within these bounds is exact in any order.
FLOAT32_BOUND, FLOAT64_BOUND = 2**24, 2**53


def exact_dtype(bound: int) -> torch.dtype:
    """The fastest floating point type in which sums of products of integers are exact.

    Args:
        bound: on the sum of all absolute products, and so on each partial sum.
    Raises:
        ValueError: no type holds such sums.
    """
    if bound <= FLOAT32_BOUND:
        return torch.float32
    if bound <= FLOAT64_BOUND:
        return torch.float64
    raise ValueError(f"exact_dtype: bound must be at most 2^53; got {bound}. Use fewer steps or fewer weight_bits.")


@contextmanager
def exact_products() -> Iterator[None]:
    """Contract in plain float32 or float64 inside the `with` block, whatever is allowed outside.

    Off are TF32 and bfloat16 products, autocast, and the libraries that may transform a convolution (Winograd, FFT):
    cuDNN and NNPACK. What remains sums products of the numbers themselves.
    """
    switches = [backends.cuda.matmul, *(getattr(mkldnn, name) for name in ("matmul", "conv"))]
    precisions, enabled = [switch.fp32_precision for switch in switches], cudnn.enabled
    with (
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        backends.nnpack.flags(enabled=False),
    ):
        try:
            cudnn.enabled = False
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            cudnn.enabled = enabled
            for switch, precision in zip(switches, precisions, strict=True):
                switch.fp32_precision = precision
