"""Layers that compute in integers, as hardware does, by one contraction or step by step; and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from ttfs_kernels import Neuron
from ttfs_kernels.checks import reverse_mode_only
from ttfs_kernels.rule import fire
from ttfs_triton.nn.grid import FRACTION_BITS, POTENTIAL_BITS, Clock, first_instant
from ttfs_triton.nn.integers import (
    FLOAT32_BOUND,
    FLOAT64_BOUND,
    SMALLEST_GRID_UNIT,
    QuantisedWeight,
    exact_products,
    in_units,
    quantise_potential,
    quantise_weight,
    straight_through,
)
from ttfs_triton.nn.weighted import WeightedLayer

# Potentials, thresholds and their differences stay below this, so that int64 does not overflow.
REGISTER_BOUND = 2.0**62

# Bound on initial potentials, in integers, for layers whose values the host does not wait to read.
LARGEST_PRESET = 2.0**35


class Membrane(NamedTuple):
    """Membrane potentials at the start of the firing window.

    Attributes:
        potential: [N, C, ...] int64, or float64 that holds whole numbers below 2^53, in weight units · steps / 2^17.
        drift: gain of the potential in half a step of the firing window, σ included; same shape, type and unit.
    """

    potential: Tensor
    drift: Tensor


class ClockedLayer:
    """A spiking layer or readout with integer weights, initial potentials and slopes, on a clock.

    Args:
        register: largest slope (in weight units) and potential (in weight units · steps); both saturate there after
            every step. None: registers are as wide as needed.
        reach: bound on a neuron's Σ|integers|, for a layer without a skip whose units are at least
            `SMALLEST_GRID_UNIT`; it spares a GPU synchronisation. None: computed from the weights.
    Attributes:
        weight: integer weights [C_out, ...], floating point.
        start: initial potentials [C_out, ...], in weight units · steps.
        common: the part of `start` that all channels share, V₀, in weight units · steps / 2^17.
        skip_weight: weights of delayed spikes [C_out, ...], in weight units; None without a skip.
    """

    def __init__(
        self,
        layer: WeightedLayer,
        quantised: QuantisedWeight,
        clock: Clock,
        *,
        register: int | None = None,
        reach: int | None = None,
    ) -> None:
        self.layer, self.clock, self.steps = layer, clock, clock.steps
        self.register = None if register is None else register * quantised.finer
        bounded = reach is not None
        if reach is None:
            reach = int(quantised.integers.double().abs().flatten(1).sum(1).max())
        # Sums are exact: the check of potentials below also keeps them under 2^53.
        self.weight = quantised.integers.to(torch.float32 if reach * clock.steps <= FLOAT32_BOUND else torch.float64)
        skip_weight = quantised.skip_weight
        reach += 0 if skip_weight is None else int(skip_weight.abs().max())
        shape = (-1, 1, 1) if layer.geometry else (-1,)
        self.unit = quantised.unit.view(shape)
        bias = layer.with_batch_norm(layer.weight.double())[1]
        initial = layer.initial_potential if bias is None else bias.detach().double() + layer.initial_potential
        preset = self.in_range(quantise_potential(initial, quantised.unit, clock.steps, checked=not bounded))
        common = self.in_range(quantise_potential(layer.initial_potential, quantised.unit, clock.steps, checked=False))
        if bounded:
            preset, smallest, first = preset.clamp_(-LARGEST_PRESET, LARGEST_PRESET), SMALLEST_GRID_UNIT, LARGEST_PRESET
        else:
            smallest, first = float(quantised.unit.min()), float(preset.abs().max())
        height = layer.threshold_height / smallest
        largest = 2.0**POTENTIAL_BITS * (clock.steps * (2 * reach + height) + first)
        if not largest < REGISTER_BOUND:
            raise ValueError(
                f"simulate: steps must keep potentials below 2^62; got {clock.steps} steps, which need {largest:.3g}. "
                "Use fewer steps or fewer weight_bits."
            )
        # float64 holds whole numbers below 2^53 exactly, and a CPU divides eight of them at a time.
        self.dtype = torch.float64 if largest < FLOAT64_BOUND else torch.int64
        self.may_saturate = self.register is not None and (bounded or first + reach * clock.steps > self.register)
        self.skip_weight = None if skip_weight is None else skip_weight.view(shape).to(self.dtype)
        self.start = preset.view(shape).to(self.dtype)
        self.common = (common.view(shape) * 2.0**POTENTIAL_BITS).to(self.dtype)
        self.persistence = round(psp_persistence(layer) * 2**FRACTION_BITS)  # 16 binary places

    def integrate(self, remaining: Tensor, skip: Tensor | None = None) -> Membrane:
        """Membranes after the integration window, by one contraction; step by step where registers may saturate.

        `remaining` [N, ...] are the steps that remain at the inputs' spikes, 0 for silent inputs. `skip` are those of
        delayed spikes, one per neuron.
        """
        if self.may_saturate:
            return self.integrate_stepped(remaining, skip)
        if self.persistence == 0:
            accumulated = self._contract(remaining).to(self.dtype)
            slope = torch.zeros_like(accumulated)
        else:
            both = self._contract(torch.cat([remaining, remaining.sign()])).to(self.dtype)
            accumulated, slope = both.chunk(2)
        if self.skip_weight is not None and skip is not None:
            accumulated.add_(self.skip_weight * skip.to(self.dtype))
            if self.persistence:
                slope.add_(self.skip_weight * skip.sign().to(self.dtype))
        # The potential has 17 binary places. Half a step of the slope brings one, σ brings the other 16.
        return Membrane(accumulated.add_(self.start).mul_(2**POTENTIAL_BITS), slope.mul_(self.persistence))

    def integrate_stepped(self, remaining: Tensor, skip: Tensor | None = None) -> Membrane:
        """As `integrate`, step by step: deliver the step's spikes, then add the slope to the potential."""
        slope = self._contract(torch.zeros_like(remaining)).to(self.dtype)
        potential = slope + self.start
        for step in range(self.steps):
            arrivals = (remaining == self.steps - step).to(self.weight.dtype)
            slope.add_(self._contract(arrivals).to(self.dtype))
            if self.skip_weight is not None and skip is not None:
                slope.add_(self.skip_weight * (skip == self.steps - step))
            slope = self.in_range(slope)
            potential = self.in_range(potential.add_(slope))
        return Membrane(potential.mul_(2**POTENTIAL_BITS), slope.mul_(self.persistence))

    def fall(self, threshold: float | None = None) -> Tensor:
        """Decrease of the threshold θ·(1 − s) in half a step, [C, ...]; θ is `threshold`, or else the layer's."""
        height = self.layer.threshold if threshold is None else threshold
        return (2.0**FRACTION_BITS * height / self.unit).round().to(self.dtype)

    def first_instant(self, membrane: Membrane) -> Tensor:
        """Indices of the instants [N, C, ...] at which the neurons fire."""
        return first_instant(*membrane, self.fall(), self.clock)

    def instants(self, remaining: Tensor, skip: Tensor | None = None) -> Tensor:
        """Indices of the instants at which the neurons fire; arguments as in `integrate`."""
        return self.first_instant(self.integrate(remaining, skip))

    def height(self, potential: Tensor) -> Tensor:
        """Potentials in threshold heights, float64."""
        return potential.double() * self.unit / (self.steps * 2.0**POTENTIAL_BITS)

    def in_range(self, numbers: Tensor, scale: int = 1) -> Tensor:
        """Clamp numbers in place to the range of the registers."""
        if self.register is None:
            return numbers
        largest = min(self.register * scale, int(REGISTER_BOUND))  # no number exceeds this bound
        return numbers.clamp_(-largest, largest)

    def _contract(self, x: Tensor) -> Tensor:
        return contract(self.layer, x.to(self.weight.dtype), self.weight)


class AnalogLayer:
    """A convolution that reads pixels, in float64: the order of its sums, which depends on N, then changes no spike.

    Weights and initial potentials include batch norm.
    """

    def __init__(self, layer: WeightedLayer, weight: QuantisedWeight, bias: Tensor | None, clock: Clock) -> None:
        self.layer, self.clock, self.persistence = layer, clock, psp_persistence(layer)
        self.quantised, self.bias = weight, None if bias is None else bias.detach().double()
        self._weight = weight.dequantise()

    def instants(self, images: Tensor) -> Tensor:
        """Indices of the instants [N, C, ...] at which the neurons fire; images are normalised."""
        images = images.double()
        potential = contract(self.layer, images, self._weight, self.bias)
        if self.persistence == 0:
            return self.clock.encode(potential)
        slope = self.persistence * contract(self.layer, (images > 0).double(), self._weight)
        return self.clock.encode(fire(potential, slope)[0])


def psp_persistence(layer: WeightedLayer) -> float:
    """σ of a layer; 0 for an `AnalogEncoder` without a neuron."""
    neuron: Neuron | None = getattr(layer, "neuron", None)
    return 0.0 if neuron is None else neuron.psp_persistence


def contract(layer: WeightedLayer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution or product. Without cuDNN, `F.conv2d` runs image by image on a GPU; `by_taps` does not."""
    convolve: Any = by_taps if x.is_cuda else F.conv2d
    return convolve(x, weight, bias, **layer.geometry) if layer.geometry else F.linear(x, weight, bias)


def by_taps(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int = 1) -> Tensor:
    """`F.conv2d`, of numbers in pairs, as a sum of one matrix product per place in the kernel."""
    x, kernel = F.pad(x, (padding[1], padding[1], padding[0], padding[0])), weight.shape[2:]
    for axis in (0, 1):  # views: [N, C, P, Q, rows, columns]
        x = x.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
    x = rearrange(x[..., :: dilation[0], :: dilation[1]], "n (g c) p q r s -> r s n g c p q", g=groups)
    weight = rearrange(weight, "(g k) c r s -> r s g k c", g=groups)
    total: Any = sum(torch.einsum("ngcpq,gkc->ngkpq", x[at], weight[at]) for at in product(*map(range, kernel)))
    return total.flatten(1, 2) + (0 if bias is None else bias[:, None, None])


def earliest_input(layer: WeightedLayer, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """A neuron's earliest input spike: the largest of its inputs x [N, ...], activations or remaining steps.

    Channels of a group have the same inputs: [N, groups, P, Q] or [N, 1]; with delayed spikes `skip`, [N, C, ...].
    """
    geometry, kernel_size = layer.geometry, [layer.average * size for size in layer.weight.shape[2:]]
    groups = geometry.get("groups", 1)
    earliest = reduce(x, "n (g c) ... -> n g ...", "max", g=groups)
    if geometry:
        rows, columns = geometry["padding"]
        padded = F.pad(earliest, (columns, columns, rows, rows))
        earliest = F.max_pool2d(padded, kernel_size, geometry["stride"], 0, geometry["dilation"])
    if skip is None:
        return earliest
    return torch.maximum(repeat(earliest, "n g ... -> n (g c) ...", c=skip.shape[1] // groups), skip)


# Number of inputs of a layer that a CPU processes at a time, so that integers and potentials stay in its caches.
PART_NUMBERS = 1 << 18


class RoundedLayer:
    """A layer's integer weights in one pass on a grid, and the real numbers that they stand for, with gradients.

    `weight` is the layer's effective weight; `scale` makes up for the spikes that dropout removes. If `noisy`, weights
    in training mode have the noise of the layer's faults.

    Attributes:
        quantised: integer weights.
        weight, skip_weight, bias: rounded weights [C_out, ...], weights of delayed spikes [C_out] or None, and initial
            potentials [C_out] or None, differentiable by the layer's parameters.
    """

    def __init__(self, layer: WeightedLayer, weight: Tensor, scale: float = 1.0, *, noisy: bool = True) -> None:
        assert layer.grid is not None
        self.layer, self.grid = layer, layer.grid
        bits, per_channel = self.grid.weight_bits, self.grid.per_channel
        unit = layer.unit_on_grid(bits, per_channel)
        quantised = quantise_weight(weight, bits, per_channel=per_channel, unit=unit)
        skip_weight = layer.skip_weights()
        self.quantised = quantised._replace(unit=quantised.unit * scale).with_skip_weights(skip_weight)
        if layer.log2_unit is None:
            self.weight = scale * straight_through(weight, quantised.dequantise())
        else:
            self.weight = scale * _Rounded.apply(weight, layer.log2_unit, quantised)
        factors = layer.factors_in_training(weight) if noisy else None
        self._off = factors is not None
        if factors is not None:
            skip_factors = layer.factors_in_training(skip_weight)
            self.quantised = self.quantised.multiplied(factors, skip_factors)
            skip_weight = None if skip_weight is None or skip_factors is None else skip_weight * skip_factors
            self.weight = straight_through(self.weight * factors, self.quantised.dequantise())
        exact = None if self.quantised.skip_weight is None else self.quantised.skip_weight * self.quantised.unit
        self.skip_weight = None if skip_weight is None or exact is None else straight_through(skip_weight, exact)
        self.bias = None if layer.bias is None else straight_through(layer.bias, self._initial_potential(layer.bias))

    def _initial_potential(self, bias: Tensor) -> Tensor:
        """Initial potentials, float64: rounded, except in an analog layer."""
        bias = bias.detach().double()
        if self.layer.kind == "analog":
            return bias
        unit, steps, common = self.quantised.unit, self.grid.time_steps, self.layer.initial_potential
        return quantise_potential(bias + common, unit, steps, checked=False) * unit / steps - common

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        """Rounded weights [C_out, ...] and initial potentials [C_out] or None, float64, detached."""
        bias = self.layer.bias
        return self.quantised.dequantise(), None if bias is None else self._initial_potential(bias)

    def clocked(self) -> ClockedLayer:
        """The layer in integers on the grid's clock. Where possible, the bits of its weights bound its sums."""
        unbounded = self.grid.weight_bits is None or self._off or self.layer.skip > 0
        reach = None if unbounded else self.quantised.limit * self.quantised.integers[0].numel()
        return ClockedLayer(self.layer, self.quantised, self.grid.clock, register=self.grid.register, reach=reach)

    def steps_left(self, x: Tensor) -> Tensor:
        """Steps that remain at the inputs' spikes, for activations that are multiples of 1/T."""
        return (x.detach().float() * self.grid.time_steps).round_()


def fire_on_grid(
    layer: WeightedLayer,
    x: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    fire: Callable[..., Tensor],
    scale: float = 1.0,
) -> Tensor:
    """Activations of a layer's neurons, multiples of 1/T, with the gradient of the closed form with rounded weights.

    Inputs `x` are multiples of 1/T, or an encoder's normalised images; `skip` are delayed spikes, one per neuron.
    `fire(x, weight, bias, skip=..., skip_weight=...)` is the layer's closed form.
    """
    reverse_mode_only(type(layer).__name__, x, skip)
    rounded = RoundedLayer(layer, weight, scale)
    clock = rounded.grid.clock
    with torch.no_grad(), exact_products():
        if layer.kind == "analog":
            run, inputs = AnalogLayer(layer, rounded.quantised, layer.bias, clock), [x.detach()]
        else:
            run, inputs = rounded.clocked(), [rounded.steps_left(part) for part in (x, skip) if part is not None]
        spikes = _in_parts(lambda *parts: clock.remaining(run.instants(*parts)), *inputs).div_(clock.steps)
    if not torch.is_grad_enabled():
        return spikes
    dtype = rounded.weight.dtype  # spikes on a grid are float32, also those of layers in 16 bits
    x, skip = x.to(dtype), None if skip is None else skip.to(dtype)
    return straight_through(fire(x, rounded.weight, rounded.bias, skip=skip, skip_weight=rounded.skip_weight), spikes)


def _in_parts(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    samples = max(1, PART_NUMBERS // max(1, math.prod(inputs[0].shape[1:])))
    if inputs[0].device.type != "cpu" or len(inputs[0]) <= samples:
        return run(*inputs)
    return torch.cat([run(*parts) for parts in zip(*(part.split(samples) for part in inputs), strict=True)])


class _Rounded(torch.autograd.Function):
    """Rounded weights, differentiable by the weights and their units.

    The gradient of a weight passes straight through the rounding, unless it would drive a clipped weight further out.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log2_unit: Tensor, quantised: QuantisedWeight) -> Tensor:
        ctx.quantised = quantised
        ctx.save_for_backward(weight, log2_unit)
        return quantised.dequantise().to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight, log2_unit), quantised = ctx.saved_tensors, ctx.quantised
        scaled = in_units(weight, quantised.unit)
        cut = scaled.abs() > quantised.limit
        # Derivative of a rounded weight by its unit: its integer, minus the unrounded quotient unless it is clipped.
        by_unit = (quantised.integers - scaled.masked_fill(cut, 0.0)) * grad
        by_logarithm = by_unit.flatten(1).sum(1, dtype=torch.float64) * quantised.unit * math.log(2)
        if len(log2_unit) == 1:
            by_logarithm = by_logarithm.sum(0, keepdim=True)
        return grad.masked_fill(cut & (grad * scaled < 0), 0.0), by_logarithm.to(log2_unit.dtype), None
