"""Layers on a chip's grid: forward passes in the chip's integers, gradients straight through the rounding.

Weights, initial potentials and spikes are rounded as `ttfs_triton.hardware.simulate` rounds them. Derivatives are those
of the closed form of the rounded weights, initial potentials and inputs. Units of weights are learned (Esser et al.,
"Learned step size quantization", 2020), by their logarithms: a step of the optimizer changes a unit by a share of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.autograd import reverse_mode_only
from ttfs_triton.nn.clocked import AnalogLayer, ClockedLayer
from ttfs_triton.nn.integers import QuantisedWeight, exact_products, in_units, quantise_potential, quantise_weight
from ttfs_triton.nn.straight_through import straight_through
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

# Input numbers of a layer that a CPU works on at a time, so that integers and potentials stay in its caches.
PART_NUMBERS = 1 << 18


class RoundedLayer:
    """A layer's integers in this pass, and the real numbers that they stand for, with gradients.

    Args:
        layer: on a grid.
        weight: its effective weight, with gradient.
        scale: on the weights, which makes up for the spikes that dropout removes.
    Attributes:
        quantised: integer weights.
        weight: [C_out, ...], rounded, differentiable by the effective weight and the units.
        bias: [C_out] or None, rounded, differentiable by the initial potentials.
    """

    def __init__(self, layer: WeightedLayer, weight: Tensor, scale: float = 1.0) -> None:
        assert layer.grid is not None
        self.layer, self.grid = layer, layer.grid
        bits, per_channel = self.grid.weight_bits, self.grid.per_channel
        unit = layer.unit_on_grid(bits, per_channel)
        found = quantise_weight(weight, bits, per_channel=per_channel, unit=unit)
        self.quantised = QuantisedWeight(found.integers, found.unit * scale, found.limit)
        if layer.log2_unit is None:
            self.weight = scale * straight_through(weight, found.dequantise())
        else:
            self.weight = scale * _Rounded.apply(weight, layer.log2_unit, found)
        factors = layer.factors_in_training(weight)
        self._off = factors is not None
        if factors is not None:
            self.quantised = self.quantised.multiplied(factors)
            self.weight = straight_through(self.weight * factors, self.quantised.dequantise())
        self.bias = None if layer.bias is None else straight_through(layer.bias, self._initial_potential(layer.bias))

    def _initial_potential(self, bias: Tensor) -> Tensor:
        """Rounded initial potentials, float64; those of an analog layer stay as they are."""
        bias = bias.detach().double()
        if self.layer.kind == "analog":
            return bias
        unit, steps, common = self.quantised.unit, self.grid.time_steps, self.layer.initial_potential
        return quantise_potential(bias + common, unit, steps, checked=False) * unit / steps - common

    @property
    def skip_weight(self) -> Tensor | None:
        """[C_out] weights of delayed spikes, rounded, differentiable by their own; None for a layer without."""
        weights = self.layer.skip_weights()
        late = self.quantised.late_weights(weights)
        return None if weights is None or late is None else straight_through(weights, late * self.quantised.unit)

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        """Rounded weights [C_out, ...] and initial potentials [C_out] or None, float64, detached."""
        bias = self.layer.bias
        return self.quantised.dequantise(), None if bias is None else self._initial_potential(bias)

    def registers(self) -> dict[str, Any]:
        """The registers of `ClockedLayer`, and its `reach` where the bits of the weights bound it."""
        unknown = self.grid.weight_bits is None or self._off or self.layer.skip > 0
        reach = None if unknown else self.quantised.limit * self.quantised.integers[0].numel()
        return {"register": self.grid.register, "reach": reach}

    def steps_left(self, x: Tensor) -> Tensor:
        """Steps that remain at each input's spike, of activations that are multiples of 1/T."""
        return (x.detach().float() * self.grid.time_steps).round_()


def fire_on_grid(
    layer: WeightedLayer,
    x: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    fire: Callable[..., Tensor],
    scale: float = 1.0,
) -> Tensor:
    """Activations of a layer's neurons, multiples of 1/T, differentiated as the closed form of rounded weights.

    Args:
        layer: on a grid.
        x: input activations, multiples of 1/T; for an encoder, normalised images.
        weight, scale: as of `RoundedLayer`.
        skip: delayed spikes, one a neuron.
        fire: the closed form, of inputs, weights and initial potentials, and `skip_weight`.
    """
    reverse_mode_only(type(layer).__name__, x, skip)
    rounded = RoundedLayer(layer, weight, scale)
    spikes = spikes_on_grid(rounded, x, skip)
    if not torch.is_grad_enabled():
        return spikes
    return straight_through(fire(x, rounded.weight, rounded.bias, skip_weight=rounded.skip_weight), spikes)


@torch.no_grad()
def spikes_on_grid(rounded: RoundedLayer, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """Activations of a layer's neurons, multiples of 1/T, float32; x and skip as of `fire_on_grid`."""
    clock = rounded.grid.clock
    with exact_products():
        if rounded.layer.kind == "analog":
            assert isinstance(rounded.layer, WeightedConv2d)
            analog = AnalogLayer(rounded.layer, rounded.quantised, rounded.layer.bias)
            return _in_parts(lambda part: clock.stamped(analog.activations(part)), x.detach())
        layer = ClockedLayer(rounded.layer, rounded.quantised, clock, **rounded.registers())
        ramp = layer.ramp()

        def run(remaining: Tensor, late: Tensor | None = None) -> Tensor:
            return clock.remaining(ramp.first_instant(*layer.integrate(remaining, late)))

        inputs = [rounded.steps_left(part) for part in (x, skip) if part is not None]
        return _in_parts(run, *inputs).div_(clock.steps)


def _in_parts(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    samples = max(1, PART_NUMBERS // max(1, math.prod(inputs[0].shape[1:])))
    if inputs[0].device.type != "cpu" or len(inputs[0]) <= samples:
        return run(*inputs)
    return torch.cat([run(*parts) for parts in zip(*(each.split(samples) for each in inputs), strict=True)])


class _Rounded(torch.autograd.Function):
    """Rounded weights, differentiable by the weights and their units.

    The gradient passes straight through the rounding, unless it would drive a clipped weight further out.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log2_unit: Tensor, found: QuantisedWeight) -> Tensor:
        ctx.found = found
        ctx.save_for_backward(weight, log2_unit)
        return found.dequantise().to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight, log2_unit), found = ctx.saved_tensors, ctx.found
        scaled = in_units(weight, found.unit)
        cut = scaled.abs() > found.limit
        # The derivative of each rounded weight by the unit: its integer, less the change by rounding.
        by_unit = (found.integers - scaled.masked_fill(cut, 0.0)) * grad
        by_logarithm = by_unit.flatten(1).sum(1, dtype=torch.float64) * found.unit * math.log(2)
        if len(log2_unit) == 1:
            by_logarithm = by_logarithm.sum(0, keepdim=True)
        return grad.masked_fill(cut & (grad * scaled < 0), 0.0), by_logarithm.to(log2_unit.dtype), None
