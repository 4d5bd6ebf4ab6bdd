"""Clock-driven neurons with plain loops over steps and synapses, in Python's integers: what the simulator is tested
against. Nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.kernels.oracle import conv2d_neurons, linear_neurons

FRACTION = 2**16


@dataclass
class Work:
    """What neurons did."""

    synaptic_operations: int = 0
    integration_updates: int = 0
    firing_updates: int = 0
    compares: int = 0


@dataclass
class Neurons:
    """A layer of equal neurons."""

    weights: np.ndarray
    units: np.ndarray  # weight unit of each channel, threshold heights
    initial: np.ndarray  # potential of each channel, threshold heights
    steps: int
    gating: bool = True
    psp_persistence: float = 1.0
    threshold: float = 1.0
    register: int | None = None  # largest slope and potential, at which they saturate after every step
    work: Work = field(default_factory=Work)

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        """Steps of spikes from the indices of their instants; the steps of the window if silent."""
        return (indices - 1).clip(0)

    def instants(self) -> list[int]:
        """Half steps from the window's start to a comparison: at its start, then in the middle of every step."""
        return [0, *range(1, 2 * self.steps, 2)]

    def run(self, events: list[tuple[int, int]], channel: int, last: int | None = None) -> tuple[int | None, int, int]:
        """One neuron: events are (step, weight); it stops behind instant `last` at the latest, −1 to never compare.

        Returns the index of the instant of its spike, and potential and slope before the window in which it fires.
        """
        work, slope, arrived = self.work, 0, False
        potential = self._held(round(self.initial[channel] * self.steps / self.units[channel]))
        for step in range(self.steps):
            for arrival, weight in events:
                if arrival == step:
                    slope, arrived = slope + weight, True
                    work.synaptic_operations += 1
            slope = self._held(slope)
            if arrived or not self.gating:
                potential = self._held(potential + slope)
                work.integration_updates += 1
        return self._fire(potential, slope, channel, arrived or not self.gating, last), potential, slope

    def _held(self, number: int) -> int:
        return number if self.register is None else max(-self.register, min(self.register, number))

    def _fire(self, potential: int, slope: int, channel: int, moves: bool, last: int | None) -> int | None:
        work, fired, before = self.work, None, 0
        decrement = round(FRACTION * self.threshold / self.units[channel])
        height = decrement * 2 * self.steps
        share = round(self.psp_persistence * FRACTION)
        value = potential * 2 * FRACTION
        for index, now in enumerate(self.instants()):
            if last is not None and index > last:
                break
            if now > 0 and share and moves:
                value += slope * share * (now - before)
                work.firing_updates += 1
            before = now
            work.compares += 1
            if fired is None and value >= height - decrement * now:
                fired = index
                if self.gating:
                    break
        return fired


def layer(
    neurons: Neurons, steps: np.ndarray, last: np.ndarray | None = None, geometry: tuple[Any, ...] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of instants of [N, ...] neurons (their number if silent), potentials and slopes; from inputs' stamps.

    `steps` are [N, C_in] or [N, C_in, H, W]; `last` [N] is that of `Neurons.run`, for all neurons of a sample;
    geometry has stride, padding, dilation and groups of a convolution.
    """
    shapes = steps.shape, neurons.weights.shape
    places = linear_neurons(*shapes) if geometry is None else conv2d_neurons(*shapes, *geometry)
    silent, fired, place = len(neurons.instants()), [], ()
    for place, channel, inputs, weights in places:
        events = zip(steps.ravel()[inputs].tolist(), neurons.weights.ravel()[weights].tolist(), strict=True)
        spikes = [event for event in events if event[0] < neurons.steps]
        index, *membrane = neurons.run(spikes, channel, None if last is None else int(last[place[0]]))
        fired.append([silent if index is None else index, *membrane])
    outputs = np.array(fired, np.int64).reshape(*(size + 1 for size in place), 3)  # `place` is the last one
    return outputs[..., 0], outputs[..., 1], outputs[..., 2]


def earliest(steps: np.ndarray, kernel: int) -> np.ndarray:
    """Earliest stamps of the patches of [N, C, H, W], at all places."""
    windows = np.lib.stride_tricks.sliding_window_view(steps, (kernel, kernel), (2, 3))
    return windows.min((4, 5))
