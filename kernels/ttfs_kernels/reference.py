"""The operators as a PyTorch user would write them: two contractions and the rule, differentiated by autograd.

Any device and dtype. The naive twin that tests compare with and the composition that benchmarks have to beat. Its
gradients differ in two ways: there is no derivative clip, and silent inputs get w·gain where the operators return 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compose_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, psp_persistence: float = 1.0) -> Tensor:
    """`dft_linear` by two matrix products and `torch.where`; gradients exact (no derivative clip)."""
    spikes = (x > 0).to(x.dtype)
    return _fire_by_cases(F.linear(x, weight, bias), psp_persistence * F.linear(spikes, weight))


def compose_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    psp_persistence: float = 1.0,
) -> Tensor:
    """`dft_conv2d` by two convolutions and `torch.where`; gradients exact (no derivative clip)."""
    spikes = (x > 0).to(x.dtype)
    A = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    W = psp_persistence * F.conv2d(spikes, weight, None, stride, padding, dilation, groups)
    return _fire_by_cases(A, W)


def _fire_by_cases(A: Tensor, W: Tensor) -> Tensor:
    """Eq. 7 case by case. The divisor is made safe before the division, or autograd would return 0 · inf."""
    inside = (A < 1) & (A + W > 0)
    divisor = torch.where(inside, 1 + W, torch.ones_like(W))
    crossing_inside = torch.where(inside, (A + W) / divisor, torch.zeros_like(A))
    return torch.where(A >= 1, torch.ones_like(A), crossing_inside)
