"""Slow, independent neurons in float64: what the closed form is tested against.

Plain loops over spike times, nothing of the package. All times are absolute, windows have length `window` (Tw),
potentials are in threshold heights. `x` of `*_layer` functions are activations; they become spike times first.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Neuron = Callable[..., float]


def event_driven(
    spike_times: Sequence[float],
    weights: Sequence[float],
    initial_potential: float = 0.0,
    *,
    start: float = 1.0,
    window: float = 1.0,
    psp_persistence: float = 1.0,
    threshold: float = 1.0,
    ramp_end: float = 1.0,
) -> float:
    """Spike time of one neuron: sort all events, integrate the potential piecewise, solve the crossing.

    Args:
        spike_times, weights: of the inputs; a time of inf is silent.
        initial_potential: potential before the first spike.
        start: the neuron may fire from here; inputs arrive before.
        window: Tw, unit of the potential's slope; `psp_persistence` of the slope remains from `start` on.
        threshold, ramp_end: θ and S of the ramp θ·(1 − s/S), s = (t − start)/Tw.
    Returns:
        Absolute spike time in [start, start + S·Tw), inf if silent.
    """
    potential, slope, now = float(initial_potential), 0.0, -math.inf
    for time, weight in sorted(zip(spike_times, weights, strict=True), key=lambda event: event[0]):
        if math.isinf(time):
            continue
        assert time <= start, "an input fires after the window's start"
        if slope:
            potential += slope * (time - now)
        slope += weight / window
        now = time
    if slope:
        potential += slope * (start - now)
    slope *= psp_persistence * window  # per unit of s from here on
    if potential >= threshold:
        return start
    closing_speed = slope + threshold / ramp_end
    if closing_speed <= 0:
        return math.inf
    crossing = (threshold - potential) / closing_speed
    return start + crossing * window if crossing < ramp_end else math.inf


def clock_driven(
    spike_times: Sequence[float],
    weights: Sequence[float],
    initial_potential: float = 0.0,
    *,
    start: float = 1.0,
    window: float = 1.0,
    psp_persistence: float = 1.0,
    threshold: float = 1.0,
    ramp_end: float = 1.0,
    dt: float = 1e-3,
) -> float:
    """Spike time of one neuron that looks at its potential once a clock tick; at most dt·Tw too late."""
    weights_of_spikes = [(t, w) for t, w in zip(spike_times, weights, strict=True) if not math.isinf(t)]
    at_start = initial_potential + sum(w * (start - t) / window for t, w in weights_of_spikes)
    slope = psp_persistence * sum(w for _, w in weights_of_spikes)
    for tick in range(round(ramp_end / dt)):
        s = tick * dt
        if at_start + slope * s >= threshold * (1 - s / ramp_end):
            return start + s * window
    return math.inf


def causal_set(
    spike_times: Sequence[float],
    weights: Sequence[float],
    initial_potential: float = 0.0,
    *,
    not_before: float = -math.inf,
    not_after: float = math.inf,
    window: float = 1.0,
    threshold: float = 1.0,
) -> float:
    """Spike time of the general neuron: fixed threshold, inputs at any time, the causal set found by sorting.

    Prefixes of the sorted spikes are tried in turn: the first that drives the potential over the threshold before the
    next spike arrives is the causal set (the paper's section 2.2). A neuron with a ramp from 1 to 0 over
    [start, start + Tw] is this one with one more excitatory input, of weight 1, at `start`, and not_before = start.
    """
    events = sorted((t, w) for t, w in zip(spike_times, weights, strict=True) if not math.isinf(t))
    for size in range(len(events) + 1):
        prefix = events[:size]
        begin = max(prefix[-1][0] if prefix else -math.inf, not_before)
        end = min(events[size][0] if size < len(events) else math.inf, not_after)
        if begin >= end:
            continue
        slope = sum(w for _, w in prefix) / window
        weighted_times = sum(w * t for t, w in prefix) / window
        if not math.isinf(begin) and initial_potential + slope * begin - weighted_times >= threshold:
            return begin
        if slope > 0:
            crossing = (threshold - initial_potential + weighted_times) / slope
            if begin <= crossing < end:
                return crossing
    return math.inf


def linear_layer(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *, neuron: Neuron = event_driven, **options
) -> np.ndarray:
    """Activations [N, C_out] of a fully connected layer; x [N, C_in], weight [C_out, C_in]."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    initial = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    spike_times = np.where(x > 0, 1 - x, np.inf)  # the inputs' window is [0, 1], this layer's [1, 2]
    times = [[neuron(sample, weight[j], initial[j], **options) for j in range(len(weight))] for sample in spike_times]
    times = np.asarray(times).reshape(len(x), len(weight))
    return np.where(np.isinf(times), 0.0, 2 - times)


def output_spike_times(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    threshold: float,
    ramp_end: float,
    initial_potential: float = 0.0,
    psp_persistence: float = 1.0,
    neuron: Neuron = event_driven,
    **options,
) -> np.ndarray:
    """Spike times [N, classes] of output neurons with their own ramp, from the output window's start; inf = silent."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    initial = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    result = np.empty((len(x), len(weight)))
    for n, j in np.ndindex(result.shape):
        times = np.where(x[n] > 0, 1 - x[n], np.inf)
        result[n, j] = neuron(
            times,
            weight[j],
            initial[j] + initial_potential,
            threshold=threshold,
            ramp_end=ramp_end,
            psp_persistence=psp_persistence,
            **options,
        )
    return result - 1.0  # the output window starts at 1


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
