"""Clock-driven neurons with plain loops over steps and synapses, in Python's integers: what the simulator is tested
against. Nothing of the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

FRACTION = 2**16


@dataclass
class Work:
    """What neurons did."""

    synaptic_operations: int = 0
    integration_updates: int = 0
    firing_updates: int = 0
    compares: int = 0

    def __iadd__(self, other: Work) -> Work:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass
class Neurons:
    """A layer of equal neurons.

    Attributes:
        units: weight unit of each channel, threshold heights.
        initial: potential of each channel, threshold heights.
    """

    weights: np.ndarray
    units: np.ndarray
    initial: np.ndarray
    steps: int
    gating: bool = True
    psp_persistence: float = 1.0
    threshold: float = 1.0
    register: int | None = None  # largest slope and potential, at which they saturate after each step
    work: Work = field(default_factory=Work)

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        """Steps of spikes from the indices of their instants; the steps of the window if silent."""
        steps = [step for _, step in self.instants()]
        return np.array([*steps, steps[-1] + 1])[indices]

    def instants(self) -> list[tuple[int, int]]:
        """(half steps, stamp) of each comparison."""
        return [(0, 0), *((2 * k + 1, k) for k in range(self.steps))]

    def run(self, events: list[tuple[int, int]], channel: int, last: int | None = None) -> tuple[int | None, int, int]:
        """One neuron: events are (step, weight); it stops behind instant `last` at the latest, −1 to never compare.

        Returns the index of the instant of its spike, and potential and slope before its own window.
        """
        work, slope, arrived = self.work, 0, False
        potential = self._held(round(self.initial[channel] * self.steps / self.units[channel]))
        for step in range(self.steps):
            for _, weight in (event for event in events if event[0] == step):
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
        for index, (now, _) in enumerate(self.instants()):
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

    Args:
        steps: [N, C_in], or of a convolution [N, C_in, H, W].
        last: [N], see `Neurons.run`; the same for all neurons of a sample.
        geometry: stride, padding and dilation, a pair each, and groups of a convolution.
    """
    shape, reached = [len(steps), len(neurons.weights)], _connected
    if geometry is not None:
        stride, padding, dilation, groups = geometry
        for axis, kernel in enumerate(neurons.weights.shape[2:]):
            span = dilation[axis] * (kernel - 1) + 1
            shape.append((steps.shape[2 + axis] + 2 * padding[axis] - span) // stride[axis] + 1)
        reached = partial(_taps, stride=stride, padding=padding, dilation=dilation, groups=groups)
    outputs = np.zeros((3, *shape), np.int64)
    silent = len(neurons.instants())
    for place in np.ndindex(*shape):
        events = [(int(step), int(w)) for step, w in reached(neurons.weights, steps[place[0]], place[1:])]
        events = [event for event in events if event[0] < neurons.steps]
        index, *membrane = neurons.run(events, place[1], None if last is None else int(last[place[0]]))
        outputs[(slice(None), *place)] = silent if index is None else index, *membrane
    return outputs[0], outputs[1], outputs[2]


def _connected(weights: np.ndarray, steps: np.ndarray, place: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return zip(steps, weights[place[0]], strict=True)


def _taps(
    weights: np.ndarray,
    steps: np.ndarray,
    place: tuple[int, ...],
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Iterator[tuple[int, int]]:
    k, p, q = place
    _, height, width = steps.shape
    out_channels, group_channels, rows, columns = weights.shape
    first = k // (out_channels // groups) * group_channels
    for c, r, s in np.ndindex(group_channels, rows, columns):
        i, j = p * stride[0] - padding[0] + r * dilation[0], q * stride[1] - padding[1] + s * dilation[1]
        if 0 <= i < height and 0 <= j < width:
            yield steps[first + c, i, j], weights[k, c, r, s]


def earliest(steps: np.ndarray, kernel: int) -> np.ndarray:
    """Earliest stamp of each patch of [N, C, H, W], one at each place."""
    windows = np.lib.stride_tricks.sliding_window_view(steps, (kernel, kernel), (2, 3))
    return windows.min((4, 5))
