"""Slow, independent neurons in float64: what the closed form is tested against.

Plain loops over spike times, nothing of the package. All times are absolute, windows have length 1, potentials are in
threshold heights. `x` of `*_layer` functions are activations; they become spike times first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Neuron = Callable[..., float]


def event_driven(
    spike_times: Sequence[float],
    weights: Sequence[float],
    initial_potential: float = 0.0,
    *,
    start: float = 1.0,
    psp_persistence: float = 1.0,
    threshold: float = 1.0,
) -> float:
    """Spike time of one neuron: sort all events, integrate the potential piecewise, solve the crossing.

    Args:
        spike_times, weights: of the inputs, which arrive before `start`; a time of inf is silent.
        initial_potential: potential before the first spike.
        psp_persistence: share of the potential's slope that remains from `start` on.
        threshold: θ of the ramp θ·(1 − s), s = t − start, that the neuron may meet.
    Returns: absolute spike time in [start, start + 1), inf if silent.
    """
    potential, slope, now = float(initial_potential), 0.0, -math.inf
    spikes = sorted((time, weight) for time, weight in zip(spike_times, weights, strict=True) if not math.isinf(time))
    for time, weight in [*spikes, (start, 0.0)]:
        assert time <= start, "an input fires after the window's start"
        if slope:
            potential += slope * (time - now)
        slope, now = slope + weight, time
    slope *= psp_persistence
    if potential >= threshold:
        return start
    closing_speed = slope + threshold
    if closing_speed <= 0:
        return math.inf
    crossing = (threshold - potential) / closing_speed
    return start + crossing if crossing < 1 else math.inf


def clock_driven(
    spike_times: Sequence[float],
    weights: Sequence[float],
    initial_potential: float = 0.0,
    *,
    start: float = 1.0,
    psp_persistence: float = 1.0,
    threshold: float = 1.0,
    dt: float = 1e-3,
) -> float:
    """Spike time of one neuron that looks at its potential once a clock tick; at most dt too late."""
    spikes = [(t, w) for t, w in zip(spike_times, weights, strict=True) if not math.isinf(t)]
    at_start = initial_potential + sum(w * (start - t) for t, w in spikes)
    slope = psp_persistence * sum(w for _, w in spikes)
    for tick in range(round(1 / dt)):
        s = tick * dt
        if at_start + slope * s >= threshold * (1 - s):
            return start + s
    return math.inf


def spike_times(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    initial_potential: float = 0.0,
    neuron: Neuron = event_driven,
    **options,
) -> np.ndarray:
    """Absolute spike times [N, C_out] of a fully connected layer; x [N, C_in], weight [C_out, C_in]; inf is silent."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    initial = initial_potential + (np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64))
    arriving = np.where(x > 0, 1 - x, np.inf)  # the inputs' window is [0, 1], this layer's [1, 2]
    times = [[neuron(sample, w, b, **options) for w, b in zip(weight, initial, strict=True)] for sample in arriving]
    return np.asarray(times).reshape(len(x), len(weight))


def linear_layer(*operands: Any, **options) -> np.ndarray:
    """Activations [N, C_out] of a fully connected layer, with the arguments of `spike_times`."""
    times = spike_times(*operands, **options)
    return np.where(np.isinf(times), 0.0, 2 - times)


def output_spike_times(*operands: Any, **options) -> np.ndarray:
    """Spike times of output neurons from the output window's start, with the arguments of `spike_times`."""
    return spike_times(*operands, **options) - 1


def membrane_potential(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *, at: float = 0.0, psp_persistence: float = 1.0
) -> np.ndarray:
    """Potentials [N, C_out] at time `at` in [0, 1] of the window, spike by spike, for neurons that never fire."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    result = np.zeros((len(x), len(weight)))
    for n, j in np.ndindex(result.shape):
        potential = 0.0 if bias is None else float(bias[j])
        for activation, w in zip(x[n], weight[j], strict=True):
            if activation > 0:
                potential += w * (activation + psp_persistence * at)
        result[n, j] = potential
    return result
