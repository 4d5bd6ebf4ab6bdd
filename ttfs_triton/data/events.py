"""From a camera's events to spikes: a pixel's first event of a polarity in a window is a spike.

An event (t, x, y, p) says that at time t, in microseconds, the logarithm of the brightness of pixel (x, y) had fallen
(p = 0) or risen (p = 1) by a threshold. A recording is divided into K windows of T microseconds from a time t₀ on:
window k is [t₀ + kT, t₀ + (k + 1)T). Let τ in [0, T) be the time from the start of window k to the first event of pixel
(x, y) with polarity p in this window. The activation is, as for every spike,

    a[2k + p, y, x] = 1 − τ / T,    and 0 without such an event.

An event at a window's start has activation 1, and no pixel of a channel spikes more than once. Data sets hold
activations in 8 bits, as images: a window has 255 ticks, and a first event in tick n has the level

    255 − n = 255 − ⌊255 τ / T⌋ = ⌈255 a⌉,    1 to 255; 0 is still silent.

All windows are shown to a network at once, as 2K channels of the one window of its encoder. Events outside of the K
windows are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

MAX_WINDOWS = 256
LEVELS = 255
Size = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class EventWindows:
    """How recordings become images.

    Attributes:
        count: K, number of windows per recording; its image has 2K channels.
        length_us: T, length of a window in microseconds. None: the recording's duration over K, rounded up.
        pool: squares with sides of this many sensor pixels become one pixel, which takes their earliest event.
        sensor: (height, width) of the sensor in pixels. None: N-MNIST's for .bin, DVS-Gesture's for .aedat.
    Raises:
        ValueError: a number is not positive, or there are more than 256 windows.
    """

    count: Annotated[int, Field(ge=1, le=MAX_WINDOWS, strict=True)] = 1
    length_us: Size | None = None
    pool: Size = 1
    sensor: tuple[Size, Size] | None = None

    def shape(self, sensor: tuple[int, int]) -> tuple[int, int, int]:
        """(2K, height, width) of images from a sensor of (height, width) pixels; pools at its border may be smaller."""
        height, width = sensor
        return 2 * self.count, -(-height // self.pool), -(-width // self.pool)


def first_spikes(
    events: np.ndarray | Mapping[str, np.ndarray],
    sensor: tuple[int, int],
    windows: EventWindows,
    *,
    start: int | None = None,
    stop: int | None = None,
    levels: bool = False,
) -> np.ndarray:
    """Activations of first events, by window, polarity and pixel; the formulas are in the module's docstring.

    Args:
        events: integers t (microseconds, ascending), x, y and p (0 or 1, or bool), all [n], in a structured array, as
            Tonic and Expelliarmus return it, or in a mapping, such as an open .npz file.
        sensor: (height, width) of the sensor in pixels.
        windows: number and length of windows, and pooling; its `sensor` is ignored.
        start: t₀ in microseconds. Default: the first event's time.
        stop: end of the recording in microseconds; events from there on are ignored. Default: after the last.
        levels: return levels of 8 bits, as data sets hold them (second formula).
    Returns:
        [2K, height, width], float32, in [0, 1], or uint8 levels; channel 2k + p is polarity p in window k. A recording
        without events is silent.
    Raises:
        TypeError: values are not whole numbers.
        ValueError: fields have different lengths, times are not sorted, coordinates are off the
            sensor, polarities are neither 0 nor 1, or `stop` is before `start`.
    Example:
        >>> events = {"t": np.array([0, 25, 60]), "x": np.array([0, 0, 1]), "y": np.zeros(3, int), "p": np.ones(3, int)}
        >>> first_spikes(events, (1, 2), EventWindows(length_us=100))
        array([[[0. , 0. ]],
        <BLANKLINE>
               [[1. , 0.4]]], dtype=float32)
    """
    t, x, y, p = _checked(events, sensor)
    start = start if start is not None else int(t[0]) if len(t) else 0
    if stop is not None and stop < start:
        raise ValueError(f"first_spikes: stop must not be before start ({start}); got {stop}.")
    stop = stop if stop is not None else int(t[-1]) + 1 if len(t) else start
    length = windows.length_us or max(1, -(-(stop - start) // windows.count))
    inside = slice(*np.searchsorted(t, [start, min(stop, start + windows.count * length)]))
    t, x, y, p = (values[inside] for values in (t, x, y, p))
    window, since = np.divmod(t - start, length)
    shape = windows.shape(sensor)
    times = np.full(shape, length)  # τ by channel and pixel, T without an event
    place = np.ravel_multi_index((2 * window + p, y // windows.pool, x // windows.pool), shape)
    np.minimum.at(times.reshape(-1), place, since)
    if levels:
        return (LEVELS - LEVELS * times // length).astype(np.uint8)
    return ((length - times) / length).astype(np.float32)  # one rounding, to no less than 1 / length


def _checked(
    events: np.ndarray | Mapping[str, np.ndarray], sensor: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Check events; return t, x, y and p, int64."""
    columns = {name: np.asarray(events[name]) for name in "txyp"}
    for name, values in columns.items():
        if values.dtype.kind not in ("iub" if name == "p" else "iu"):
            remedy = "For times in seconds, give (1e6 * t).round().astype(int)."
            raise TypeError(f"first_spikes: {name} must be whole numbers; got {values.dtype}. {remedy}")
        if values.shape != columns["t"].shape or values.ndim != 1:
            shapes = {name: list(column.shape) for name, column in columns.items()}
            raise ValueError(f"first_spikes: t, x, y and p must be [n], n the number of events; got {shapes}.")
    t, x, y, p = (values.astype(np.int64) for values in columns.values())
    if (back := np.flatnonzero(t[1:] < t[:-1])).size:
        place = int(back[0]) + 1
        raise ValueError(
            f"first_spikes: t must not fall; got {t[place]} after {t[place - 1]} µs, event {place}. Sort the events, "
            "unless a counter restarted."
        )
    height, width = sensor
    if (off := np.flatnonzero((x < 0) | (x >= width) | (y < 0) | (y >= height))).size:
        place = int(off[0])
        raise ValueError(
            f"first_spikes: events must be on the sensor of {width} × {height} pixels; got x = {x[place]}, "
            f"y = {y[place]} ({off.size} such events). Name the sensor that recorded them."
        )
    if ((p < 0) | (p > 1)).any():
        raise ValueError(
            f"first_spikes: p must be 0 (darker) or 1 (brighter); got values from {p.min()} to {p.max()}. For -1 and "
            "1, give p > 0."
        )
    return t, x, y, p
