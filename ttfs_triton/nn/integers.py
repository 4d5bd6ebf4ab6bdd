"""Weights as signed integers of few bits, exact sums of integers, and gradients straight through rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, backends
from torch.backends import cudnn, mkldnn

from ttfs_kernels.checks import reverse_mode_only

# Smallest unit, in threshold heights: the unit of channels of zeros; it keeps a layer's integers in their registers.
SMALLEST_UNIT = 2.0**-30

# Smallest unit of a layer on a grid: it keeps potentials below 2^53 for all numbers of steps that a grid allows.
SMALLEST_GRID_UNIT = 2.0**-20

# Weights without quantisation are integers of so many bits: relative to the largest weight, as fine as float32.
UNQUANTISED_BITS = 24

# Weights disturbed by noise are integers in units finer by this factor.
FINER = 2**8

# Sums of integers within these bounds are exact in any order.
FLOAT32_BOUND, FLOAT64_BOUND = 2**24, 2**53


class QuantisedWeight(NamedTuple):
    """Integer weights and their units (quantisation scales): weight ≈ integers · unit.

    Attributes:
        integers: shape of the weight, float32 that holds whole numbers, |integers| ≤ limit.
        unit: [C_out] float64, weight of the integer 1 in threshold heights; the same in all channels if per tensor.
        limit: largest integer, 2^(bits − 1) − 1.
        finer: how many of these units make one unit of the chip, in which registers count; 1 without weight noise.
        skip_weight: weights of delayed spikes, [C_out] int64 in the channels' units; None for a layer without a skip.
    """

    integers: Tensor
    unit: Tensor
    limit: int
    finer: int = 1
    skip_weight: Tensor | None = None

    def multiplied(self, factors: Tensor, skip_factors: Tensor | None) -> QuantisedWeight:
        """The weights times factors of the same shapes, in units finer by `FINER`."""
        integers, skip_weight = (self.integers.double() * factors.double() * FINER).round(), self.skip_weight
        limit = int(FINER * self.limit * max(1.0, float(factors.abs().max()))) + 1
        if skip_weight is not None and skip_factors is not None:
            skip_weight = (skip_weight.double() * skip_factors.double() * FINER).round().long()
        integers = integers if limit > FLOAT32_BOUND else integers.float()
        return QuantisedWeight(integers, self.unit / FINER, limit, FINER, skip_weight)

    def with_skip_weights(self, weights: Tensor | None) -> QuantisedWeight:
        """The same weights, with rounded weights of delayed spikes: [C_out] in threshold heights, or None for none.

        These weights are far larger than others, so they are integers up to `limit`, times a power of two, which is a
        shift in hardware.
        """
        if weights is None:
            return self
        exact = weights.detach().double() / self.unit
        if not bool(exact.isfinite().all()):
            raise ValueError("quantise_weight: weights of delayed spikes must be finite; got inf or nan. Train again.")
        shift = torch.exp2((exact.abs() / self.limit).clamp_min(1).log2().ceil())
        return self._replace(skip_weight=((exact / shift).round() * shift).long())

    def dequantise(self) -> Tensor:
        """The weights that the integers stand for, float64."""
        return self.integers.double() * _per_channel(self.unit, self.integers)


def quantise_weight(
    weight: Tensor, bits: int | None, *, per_channel: bool = True, unit: Tensor | None = None
) -> QuantisedWeight:
    """Round weights [C_out, ...] to integers from −limit to limit = 2^(bits − 1) − 1, symmetrically; zero stays zero.

    Weights beyond limit · `unit`, [C_out] float64, are clipped. By default, the largest weight of a channel, or of the
    layer, is the largest integer. Without `bits`, weights stay as fine as float32 beside the largest.
    """
    limit = largest_integer(bits)
    if unit is None:
        unit = _widest_unit(weight, limit, per_channel)
        if not bool(unit.isfinite().all()):
            raise ValueError(f"quantise_weight: weight must be finite; got {weight.abs().max().item()}. Train again.")
    integers = in_units(weight, unit).round_().clamp_(-limit, limit)
    return QuantisedWeight(integers.float(), unit, limit)


def fitting_unit(weight: Tensor, bits: int, *, per_channel: bool = True) -> Tensor:
    """Units [C_out], float64, in which rounded weights have the least squared error; few bits clip the largest."""
    weight, limit = weight.detach().double(), largest_integer(bits)
    widest = _widest_unit(weight, limit, per_channel)
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in range(100, 4, -1):
        unit = widest * (share / 100)
        integers = in_units(weight, unit).round_().clamp_(-limit, limit)
        error = (integers * _per_channel(unit, weight) - weight).square_().flatten(1).sum(1)
        if not per_channel:
            error = error.sum().expand_as(error)
        best, least = torch.where(error < least, unit, best), torch.minimum(error, least)
    return best


def largest_integer(bits: int | None) -> int:
    """2^(bits − 1) − 1; None stands for `UNQUANTISED_BITS`."""
    return 2 ** ((UNQUANTISED_BITS if bits is None else bits) - 1) - 1


def in_units(weight: Tensor, unit: Tensor) -> Tensor:
    """Weights [C_out, ...] divided by their channels' units [C_out], float64."""
    return weight.detach().double() / _per_channel(unit, weight)


def _widest_unit(weight: Tensor, limit: int, per_channel: bool) -> Tensor:
    """Units [C_out], float64, in which the largest weights are the largest integers."""
    largest = weight.detach().double().abs().flatten(1).amax(1)
    return ((largest if per_channel else largest.max().expand_as(largest)) / limit).clamp_min(SMALLEST_UNIT)


def quantise_potential(potential: Tensor | float, unit: Tensor, steps: int, *, checked: bool = True) -> Tensor:
    """Initial membrane potentials [C_out], whole numbers in float64, in the unit of potentials: weight unit · step.

    `potential` is in threshold heights. If `checked`, potentials must be finite, and the host waits for the device.
    """
    potential = (potential if isinstance(potential, Tensor) else unit.new_full((), potential)).detach().double()
    if checked and not bool(potential.isfinite().all()):
        raise ValueError(f"quantise_potential: potential must be finite; got {potential.tolist()}. Train again.")
    return (potential * steps / unit).round()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products and convolutions in plain float32 or float64 inside the `with` block.

    Switches off TF32 and bfloat16 products, autocast, and cuDNN and NNPACK, which may transform a convolution.
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


def straight_through(smooth: Tensor, exact: Tensor) -> Tensor:
    """The values of `exact` with the gradient of `smooth`; dtype of `smooth`, but at least float32."""
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
