"""Layers as hardware runs them: of spiking neurons, in integers, step by step or by one contraction; the analog one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels.rule import fire
from ttfs_triton.hardware.simulation.clock import FRACTION_BITS, POTENTIAL_BITS, Clock
from ttfs_triton.hardware.simulation.integers import QuantisedWeight, exact_dtype, quantise_potential
from ttfs_triton.nn.coding import AnalogEncoder, SignedEncoder
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

# Potentials, thresholds and their differences stay below this, so that int64 does not overflow.
REGISTER_BOUND = 2.0**62


class Membrane(NamedTuple):
    """Neurons at their firing window's start.

    Attributes:
        potential: [N, C, ...] int64; unit: see `ttfs_triton.hardware.clock`.
        drift: what the potential gains in half a step from here on, σ included; same shape and unit.
    """

    potential: Tensor
    drift: Tensor

    def after(self, half_steps: int) -> Tensor:
        """Potential of a neuron that does not fire, so many half steps later."""
        return self.potential + self.drift * half_steps


class ClockedLayer:
    """Integer weights, initial potentials and slopes of one layer, for a given number of steps.

    Args:
        layer: a spiking layer or a readout.
        quantised: its weights.
        clock: steps and instants.
        psp_persistence: σ; kept to 16 binary places.
        initial_potential: V₀, added to the layer's own, in threshold heights.
        threshold: θ, the highest that a potential is compared with.
        window: S, of firing, in windows.
    Raises:
        ValueError: integers would leave their range: too many steps for these weights.
    """

    def __init__(
        self,
        layer: WeightedLayer,
        quantised: QuantisedWeight,
        clock: Clock,
        *,
        psp_persistence: float,
        initial_potential: float = 0.0,
        threshold: float = 1.0,
        window: float = 1.0,
    ) -> None:
        self.layer, self.steps = layer, clock.steps
        self.groups = layer.groups if isinstance(layer, WeightedConv2d) else 1
        reach = int(quantised.integers.double().abs().flatten(1).sum(1).max())
        late = quantised.late_weights(layer.skip_weights())
        reach += 0 if late is None else int(late.abs().max())
        dtype = exact_dtype(reach * clock.steps)
        self.weight = quantised.integers_as(dtype)
        shape = (-1, 1, 1) if isinstance(layer, WeightedConv2d) else (-1,)
        self.unit = quantised.unit.view(shape)
        self._late = None if late is None else late.view(shape)
        initial = initial_potential if layer.bias is None else layer.bias.detach().double() + initial_potential
        preset = quantise_potential(initial, quantised.unit, clock.steps)
        largest = 2.0**POTENTIAL_BITS * clock.steps * (
            reach * (1 + window) + threshold / float(quantised.unit.min())
        ) + 2.0**POTENTIAL_BITS * float(preset.abs().max())
        if not largest < REGISTER_BOUND:
            raise ValueError(
                f"simulate: steps must keep potentials below 2^62; got {clock.steps} steps, which need {largest:.3g}. "
                "Use fewer steps or fewer weight_bits."
            )
        self.preset = (preset << POTENTIAL_BITS).view(shape)
        self._common = quantise_potential(initial_potential, quantised.unit, clock.steps).view(shape) << POTENTIAL_BITS
        self.persistence = round(psp_persistence * 2**FRACTION_BITS)

    def integrate(self, remaining: Tensor, skip: Tensor | None = None) -> Membrane:
        """Membranes after the integration window, by one contraction: order does not matter to integers.

        Args:
            remaining: [N, ...] steps that remain at each input's spike, 0 for silent ones.
            skip: the same of delayed spikes, one a neuron; None for a layer without.
        """
        if self.persistence == 0:
            accumulated = self._contract(remaining).long()
            slope = torch.zeros_like(accumulated)
        else:
            accumulated, slope = self._contract(torch.cat([remaining, remaining.sign()])).long().chunk(2)
        if self._late is not None and skip is not None:
            accumulated = accumulated + self._late * skip.long()
            slope = slope + self._late * skip.sign().long() if self.persistence else slope
        return self._membrane(accumulated, slope)

    def integrate_stepped(self, remaining: Tensor, skip: Tensor | None = None) -> Membrane:
        """The same, step by step: deliver the spikes of this step, then add the slope to the potential."""
        slope = self._contract(torch.zeros_like(remaining)).long()
        potential = slope.clone()
        for step in range(self.steps):
            arrivals = (remaining == self.steps - step).to(self.weight.dtype)
            slope += self._contract(arrivals).long()
            if self._late is not None and skip is not None:
                slope += self._late * (skip == self.steps - step)
            potential += slope
        return self._membrane(potential, slope)

    def earliest_input(self, remaining: Tensor, skip: Tensor | None = None) -> Tensor:
        """Steps in which a neuron of each group has a slope: from its earliest input spike on, 0 without any.

        Args:
            remaining, skip: as for `integrate`.
        Returns:
            [N, groups, P, Q] or [N, 1]: the same for all channels of a group; with a skip, [N, C, ...].
        """
        earliest = remaining.unflatten(1, (self.groups, -1)).amax(2)
        if isinstance(self.layer, WeightedConv2d):
            rows, columns = self.layer.padding
            padded = F.pad(earliest, (columns, columns, rows, rows))
            earliest = F.max_pool2d(padded, self.layer.kernel_size, self.layer.stride, 0, self.layer.dilation)
        if skip is None:
            return earliest
        return torch.maximum(earliest.repeat_interleave(skip.shape[1] // self.groups, 1), skip)

    def without_initial_potential(self, membrane: Membrane) -> Membrane:
        """Membranes as if V₀ were 0."""
        return Membrane(membrane.potential - self._common, membrane.drift)

    def height(self, potential: Tensor) -> Tensor:
        """Potentials in threshold heights, float64."""
        return potential.double() * self.unit / (self.steps * 2.0**POTENTIAL_BITS)

    def _membrane(self, accumulated: Tensor, slope: Tensor) -> Membrane:
        # Half a step of the slope has one binary place less than the potential: no shift but that of σ.
        potential = accumulated.bitwise_left_shift_(POTENTIAL_BITS).add_(self.preset)
        return Membrane(potential, slope.mul_(self.persistence))

    def _contract(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if isinstance(self.layer, WeightedConv2d):
            layer = self.layer
            return F.conv2d(x, self.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, self.weight)


class AnalogLayer:
    """The first layer of a network that reads pixels: dense multiply-accumulates in front of the first spikes.

    Args:
        layer: the encoder.
        weight: its weights, batch norm folded in.
        bias: [C_out] or None, batch norm folded in.
    """

    def __init__(self, layer: AnalogEncoder | SignedEncoder, weight: QuantisedWeight, bias: Tensor | None) -> None:
        self._layer, dtype = layer, layer.weight.dtype
        self._weight, self._bias = weight.dequantise().to(dtype), None if bias is None else bias.to(dtype)
        self._persistence = layer.neuron.psp_persistence if isinstance(layer, SignedEncoder) else 0.0

    def normalise(self, images: Tensor) -> Tensor:
        """What the synapses read: images [N, C, height, width] in standard deviations from the mean."""
        return self._layer.normalise(images)

    def activations(self, images: Tensor) -> Tensor:
        """Activations in [0, 1] of normalised images."""
        potential = self._convolve(images, self._bias)
        if self._persistence == 0:
            return potential.clamp(0, 1)
        return fire(potential, self._persistence * self._convolve((images > 0).to(images.dtype), None))[0]

    def slope(self, images: Tensor) -> Tensor | None:
        """Where neurons have a slope, as `ClockedLayer.earliest_input`; None if no slope persists."""
        if self._persistence == 0:
            return None
        layer = self._layer
        bright = (images > 0).unflatten(1, (layer.groups, -1)).any(2).to(images.dtype)
        rows, columns = layer.padding
        padded = F.pad(bright, (columns, columns, rows, rows))
        return F.max_pool2d(padded, layer.kernel_size, layer.stride, 0, layer.dilation)

    def _convolve(self, images: Tensor, bias: Tensor | None) -> Tensor:
        layer = self._layer
        return F.conv2d(images, self._weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
