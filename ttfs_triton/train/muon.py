"""Muon for hidden layers' weights, SGD for everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

# Quintic Newton–Schulz iteration: the steepest at 0 whose results stay between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(SGD):
    """SGD with Nesterov momentum that rotates some weights and keeps their norm.

    A weight [outputs, ...] counts as a matrix [outputs, fan-in]. The orthogonal matrix nearest to its momentum, scaled
    to lr times the weight's norm, is subtracted, and the norm is put back. All directions learn at one rate, however
    small their gradients. This suits weights whose norm has no effect: those in front of batch norm, and standardised
    weights. Weight decay does nothing to them.

    Args:
        params: groups; weights of those with "rotated": True are rotated.
        lr: rate of groups that have none; of rotated weights the angle of a step, in radians.
        momentum: in (0, 1).
        dtype: of the iteration's products.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the norm as in Jordan's
        airbench94_muon.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float, dtype: torch.dtype) -> None:
        super().__init__(params, lr=lr, momentum=momentum, nesterov=True, fused=True)
        self.momentum, self.dtype = momentum, dtype
        for group in self.param_groups:
            if group.setdefault("rotated", False):
                # Momentum comes before the orthogonalisation, so SGD must not add it behind.
                group |= {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters from their gradients, which are overwritten.

        Nothing changes where `found_inf`, which gradient scaling and the trainer set, is 1.
        """
        scale, failed = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        groups = (group["params"] for group in self.param_groups if group["rotated"])
        rotated = [weight for weights in groups for weight in weights if weight.grad is not None]
        norms = [weight.norm() for weight in rotated]
        for weight, norm in zip(rotated, norms, strict=True):
            gradient = weight.grad if scale is None else weight.grad / scale
            buffer = self.state[weight]["momentum_buffer"]
            following = self.momentum * buffer + gradient
            buffer.copy_(following if failed is None else torch.where(failed > 0, buffer, following))
            matrix = (gradient + self.momentum * following).flatten(1).to(self.dtype)
            update = orthogonal(matrix).to(weight.dtype) * (norm / min(matrix.shape) ** 0.5)
            weight.grad.copy_((update if scale is None else update * scale).view_as(weight))
        super().step(closure)
        for weight, norm in zip(rotated, norms, strict=True):
            weight.mul_(norm / weight.norm().clamp_min(torch.finfo(weight.dtype).tiny))


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal matrix nearest to [rows, columns]: its singular values become 0.7 to 1.2, 0 stays 0."""
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if len(matrix) <= matrix.shape[1] else wide.T
