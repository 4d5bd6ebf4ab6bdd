"""Layers as hardware runs them: spiking neurons in integers, by one contraction or step by step; analog encoders."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import Neuron
from ttfs_kernels.rule import fire
from ttfs_triton.nn.clock import FRACTION_BITS, POTENTIAL_BITS, Clock, Ramp
from ttfs_triton.nn.integers import (
    FLOAT64_BOUND,
    SMALLEST_GRID_UNIT,
    QuantisedWeight,
    exact_dtype,
    quantise_potential,
)
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

# Potentials, thresholds and their differences stay below this, so that int64 does not overflow.
REGISTER_BOUND = 2.0**62

# Bound on initial potentials, in integers, where the host does not wait to read them; see `SMALLEST_GRID_UNIT`.
LARGEST_PRESET = 2.0**35


class Membrane(NamedTuple):
    """Neurons at their firing window's start.

    Attributes:
        potential: [N, C, ...] int64, or float64 that holds whole numbers below 2^53; unit: see `ttfs_triton.nn.clock`.
        drift: what the potential gains in half a step from here on, σ included; same shape, type and unit.
    """

    potential: Tensor
    drift: Tensor


class ClockedLayer:
    """Integer weights, initial potentials and slopes of one layer, for a given number of steps.

    Args:
        layer: a spiking layer or a readout.
        quantised: its weights.
        clock: steps and instants.
        window: S, length of the firing window, in windows.
        register: largest slope (in weight units) and potential (in weight units · steps); both saturate there after
            each step. None: registers are as wide as needed.
        reach: bound on a neuron's Σ|integers|, for a layer without delayed spikes whose units are at least
            `SMALLEST_GRID_UNIT`. None: computed from the weights, for which the host waits for the device.
    Raises:
        ValueError: integers would leave their range: too many steps for these weights.
    """

    def __init__(
        self,
        layer: WeightedLayer,
        quantised: QuantisedWeight,
        clock: Clock,
        *,
        window: float = 1.0,
        register: int | None = None,
        reach: int | None = None,
    ) -> None:
        self.layer, self.clock, self.steps, self.register = layer, clock, clock.steps, register
        known = reach is not None
        if reach is None:
            reach = int(quantised.integers.double().abs().flatten(1).sum(1).max())
        self.weight = quantised.integers.to(exact_dtype(reach * clock.steps))
        late = quantised.late_weights(layer.skip_weights())
        reach += 0 if late is None else int(late.abs().max())
        shape = (-1, 1, 1) if isinstance(layer, WeightedConv2d) else (-1,)
        self.unit = quantised.unit.view(shape)
        bias = layer.with_batch_norm(layer.weight.double())[1]
        initial = layer.initial_potential if bias is None else bias.detach().double() + layer.initial_potential
        preset = self._in_range(quantise_potential(initial, quantised.unit, clock.steps, checked=not known))
        common = self._in_range(quantise_potential(layer.initial_potential, quantised.unit, clock.steps, checked=False))
        if known:
            preset, smallest, first = preset.clamp_(-LARGEST_PRESET, LARGEST_PRESET), SMALLEST_GRID_UNIT, LARGEST_PRESET
        else:
            smallest, first = float(quantised.unit.min()), float(preset.abs().max())
        height = layer.threshold_height / smallest
        largest = 2.0**POTENTIAL_BITS * (clock.steps * (reach * (1 + window) + height) + first)
        if not largest < REGISTER_BOUND:
            raise ValueError(
                f"simulate: steps must keep potentials below 2^62; got {clock.steps} steps, which need {largest:.3g}. "
                "Use fewer steps or fewer weight_bits."
            )
        # Below 2^53 floats hold the same whole numbers, and divide them eight at a time.
        self.dtype = torch.float64 if largest < FLOAT64_BOUND else torch.int64
        self.may_saturate = register is not None and (known or first + reach * clock.steps > register)
        self._late = None if late is None else late.view(shape).to(self.dtype)
        self._start = preset.view(shape).to(self.dtype)
        self.preset = self._start * 2**POTENTIAL_BITS
        self._common = (common.view(shape) * 2.0**POTENTIAL_BITS).to(self.dtype)
        self.persistence = round(psp_persistence(layer) * 2**FRACTION_BITS)  # 16 binary places

    def integrate(self, remaining: Tensor, skip: Tensor | None = None) -> Membrane:
        """Membranes after the integration window, by one contraction; step by step where registers may saturate.

        Args:
            remaining: [N, ...] steps that remain at each input's spike, 0 for silent ones.
            skip: the same of delayed spikes, one a neuron; None for a layer without.
        """
        if self.may_saturate:
            return self.integrate_stepped(remaining, skip)
        if self.persistence == 0:
            accumulated = self._contract(remaining).to(self.dtype)
            slope = torch.zeros_like(accumulated)
        else:
            both = self._contract(torch.cat([remaining, remaining.sign()])).to(self.dtype)
            accumulated, slope = both.chunk(2)
        if self._late is not None and skip is not None:
            accumulated.add_(self._late * skip.to(self.dtype))
            if self.persistence:
                slope.add_(self._late * skip.sign().to(self.dtype))
        return self._membrane(accumulated.mul_(2**POTENTIAL_BITS).add_(self.preset), slope)

    def integrate_stepped(self, remaining: Tensor, skip: Tensor | None = None) -> Membrane:
        """As `integrate`, step by step: deliver the spikes of this step, then add the slope to the potential."""
        slope = self._contract(torch.zeros_like(remaining)).to(self.dtype)
        potential = slope + self._start
        for step in range(self.steps):
            arrivals = (remaining == self.steps - step).to(self.weight.dtype)
            slope.add_(self._contract(arrivals).to(self.dtype))
            if self._late is not None and skip is not None:
                slope.add_(self._late * (skip == self.steps - step))
            slope = self._in_range(slope)
            potential = self._in_range(potential.add_(slope))
        return self._membrane(potential.mul_(2**POTENTIAL_BITS), slope)

    def ramp(self, threshold: float = 1.0, window: float = 1.0) -> Ramp:
        """The falling threshold θ·(1 − s/S) of these neurons."""
        return Ramp(self.clock, self.unit, threshold, window, self.dtype)

    def without_initial_potential(self, membrane: Membrane) -> Membrane:
        """Membranes as if V₀ were 0."""
        return Membrane(membrane.potential - self._common, membrane.drift)

    def after(self, membrane: Membrane, half_steps: int) -> Tensor:
        """Potentials of neurons that do not fire, so many half steps later."""
        # The path is straight: saturating at its end is saturating on the way.
        return self._in_range(membrane.potential + membrane.drift * half_steps, 2**POTENTIAL_BITS)

    def height(self, potential: Tensor) -> Tensor:
        """Potentials in threshold heights, float64."""
        return potential.double() * self.unit / (self.steps * 2.0**POTENTIAL_BITS)

    def _in_range(self, numbers: Tensor, scale: int = 1) -> Tensor:
        """Numbers, in place, saturated at the largest that registers hold."""
        if self.register is None:
            return numbers
        return numbers.clamp_(-self.register * scale, self.register * scale)

    def _membrane(self, potential: Tensor, slope: Tensor) -> Membrane:
        # The potential has 17 binary places. Half a step of the slope brings one, σ brings the other 16.
        return Membrane(potential, slope.mul_(self.persistence))

    def _contract(self, x: Tensor) -> Tensor:
        return contract(self.layer, x.to(self.weight.dtype), self.weight)


class AnalogLayer:
    """A convolution that reads pixels, in float64: the order of sums changes with the number of images, spikes do not.

    Args:
        layer: the encoder.
        weight, bias: [C_out, ...], and [C_out] or None, batch norm folded in.
    """

    def __init__(self, layer: WeightedConv2d, weight: QuantisedWeight, bias: Tensor | None) -> None:
        self.layer, self.persistence = layer, psp_persistence(layer)
        self._weight, self._bias = weight.dequantise(), None if bias is None else bias.detach().double()

    def activations(self, images: Tensor) -> Tensor:
        """Activations in [0, 1] of normalised images, float64."""
        images = images.double()
        potential = contract(self.layer, images, self._weight, self._bias)
        if self.persistence == 0:
            return potential.clamp_(0, 1)
        slope = self.persistence * contract(self.layer, (images > 0).double(), self._weight)
        return fire(potential, slope)[0]


def psp_persistence(layer: WeightedLayer) -> float:
    """σ of a layer; 0 for an `AnalogEncoder`, which has no neuron model."""
    neuron: Neuron | None = getattr(layer, "neuron", None)
    return 0.0 if neuron is None else neuron.psp_persistence


def contract(layer: WeightedLayer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's convolution or product, by PyTorch."""
    if isinstance(layer, WeightedConv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight, bias)


def earliest_input(layer: WeightedLayer, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """The earliest input spike of each neuron: its activation, or the steps that remain; 0 without any.

    Args:
        layer: a convolution or fully connected layer.
        x: [N, channels, height, width] or [N, features], activations or remaining steps, 0 for silent inputs.
        skip: the same of delayed spikes, one a neuron; None for a layer without.
    Returns:
        [N, groups, P, Q] or [N, 1]: the same for all channels of a group; with a skip, [N, C, ...].
    """
    groups = layer.groups if isinstance(layer, WeightedConv2d) else 1
    earliest = x.unflatten(1, (groups, -1)).amax(2)
    if isinstance(layer, WeightedConv2d):
        rows, columns = layer.padding
        padded = F.pad(earliest, (columns, columns, rows, rows))
        earliest = F.max_pool2d(padded, layer.kernel_size, layer.stride, 0, layer.dilation)
    return earliest if skip is None else torch.maximum(earliest.repeat_interleave(skip.shape[1] // groups, 1), skip)
