"""Values of one computation with the gradient of another."""

from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.autograd import reverse_mode_only


def straight_through(smooth: Tensor, exact: Tensor) -> Tensor:
    """`exact`, differentiated as `smooth`; same shape, in the type of `smooth` but at least float32."""
    reverse_mode_only("straight_through", smooth)
    exact = exact.to(torch.promote_types(smooth.dtype, torch.float32))
    return _StraightThrough.apply(smooth, exact) if torch.is_grad_enabled() and smooth.requires_grad else exact


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        ctx.dtype = smooth.dtype
        return exact

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.to(ctx.dtype), None
