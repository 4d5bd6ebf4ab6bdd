"""The clock of an exported graph: which steps mark which windows, and how a layer hears it.

NIR knows neither windows nor moving thresholds, but it knows spikes. So the graph has clock channels beside the image,
each of which spikes once; everything that a layer does at a border of its window is a weight on them:

    channel     spikes at step    for the layer of window w                                         weight
    border k    k·S               k = w − 1: the initial potential b starts to build up             b
                                  k = w: it is complete; the ramp starts and the gate opens         ramp − b + opening
                                  k = w + 1: the gate closes, the potential no longer rises         −(σ·Σ w⁺ + ramp)
    after k     k·S + 1           k = w: the slope that opened the gate ends                        −opening

S is the number of steps in a window. A neuron adds its inputs up twice (slope, potential), so a weight w at a step
raises the potential by w in each later step, and a pair ±x in consecutive steps by x once: opening = G·S − ramp/2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ttfs_triton.nn.graph import Stage

# Seconds a step. Fixed, because snnTorch's importer fixes it and others have it as their default.
STEP_S = 1e-4


class Axis(NamedTuple):
    """Of a convolution, along height or width."""

    stride: int
    padding: int
    dilation: int = 1


@dataclass(frozen=True)
class Clock:
    """Steps and channels of an exported graph, enough to drive it.

    Attributes:
        steps: S, of a window.
        windows: window in which the readout fires; the input fires in window 0, or is shown in it.
        readout_steps: steps of the readout's window; the run ends behind them.
        image_shape: (channels, height, width) of the images. Clock channels lie behind the image's.
        analog: whether images are shown as real numbers rather than as spikes.
    """

    steps: int
    windows: int
    readout_steps: int
    image_shape: tuple[int, int, int]
    analog: bool

    @property
    def channels(self) -> int:
        """Channels of the graph's input: image, borders 0 to `windows`, after 1 to `windows`."""
        return self.image_shape[0] + 2 * self.windows + 1

    @property
    def total_steps(self) -> int:
        """Steps of a run."""
        return self.windows * self.steps + self.readout_steps

    def window_of(self, stage: Stage) -> int:
        """Window in which a layer fires: a later one if images, as real numbers, are shown in one of their own."""
        return stage.window + self.analog

    def border(self, window: int) -> int:
        """Input channel that spikes where a window starts."""
        return self.image_shape[0] + window

    def after(self, window: int) -> int:
        """Input channel that spikes a step later."""
        return self.image_shape[0] + self.windows + window

    def channels_at(self, step: int) -> list[int]:
        """Clock channels that spike in a step."""
        window, behind = divmod(step, self.steps)
        if window > self.windows:
            return []
        found = [self.border(window)] if behind == 0 else []
        if step - 1 >= self.steps and (step - 1) % self.steps == 0:
            found.append(self.after((step - 1) // self.steps))
        return found

    def to_metadata(self) -> dict[str, str]:
        """As a graph's metadata keep it: one JSON object."""
        return {"clock": json.dumps(self.__dict__)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Clock:
        """The clock of a graph that was read.

        Raises:
            ValueError: the graph is not one of ours.
        """
        if "clock" not in metadata:
            raise ValueError('Clock.from_metadata: metadata must hold "clock", as to_nir writes it; got none.')
        values = json.loads(str(metadata["clock"]))
        return cls(**values | {"image_shape": tuple(values["image_shape"])})


def clock_weights(
    clock: Clock, window: int, bias: np.ndarray, ramp: float, gate: float, stop: float | None
) -> np.ndarray:
    """Weights of a layer on the input channels, [C_out, channels]; see above.

    Args:
        clock: of the graph.
        window: in which the layer fires.
        bias: [C_out] initial potentials, V₀ included.
        ramp: what the threshold falls in a window, in threshold heights.
        gate: G, by which the threshold is too high outside the window, in threshold heights.
        stop: steepest slope of the potential in a window, which the closing gate takes away; None never closes.
    """
    weights = np.zeros((len(bias), clock.channels), np.float32)
    # Half a step of ramp less: potentials are compared with it in the middle of each step, so that spike times are
    # rounded to the nearest step and not down.
    opening = gate * clock.steps - ramp / 2
    weights[:, clock.border(window - 1)] = bias
    weights[:, clock.border(window)] = ramp - bias + opening
    weights[:, clock.after(window)] = -opening
    if stop is not None:
        weights[:, clock.border(window + 1)] = -stop
    return weights


def sampling(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, Axis, Axis]:
    """Square kernel that copies clock planes, which are constant, to maps of `wanted` from maps of `size`.

    Returns:
        Its size; of height and width the stride and the padding. Its one tap lies at the padding, so that it reads
        place i · stride of the plane.
    Raises:
        NotImplementedError: there is none, as where padding makes maps larger than the image.
    """
    for kernel in range(1, max(size) + 2):
        axes = [_axis(length, kernel, places) for length, places in zip(size, wanted, strict=True)]
        if axes[0] is not None and axes[1] is not None:
            return kernel, axes[0], axes[1]
    raise NotImplementedError(
        f"to_nir: maps must be sampled from the image for the clock to reach them; got maps of {wanted} for images of "
        f"{size}. Use less padding."
    )


def _axis(length: int, kernel: int, places: int) -> Axis | None:
    """Stride and padding with which a kernel reads `places` places of a plane at its tap, or None."""
    for padding in range(kernel):
        for stride in range(1, length + 1):
            inside = (places - 1) * stride < length
            if inside and places_of(length, kernel, stride, padding) == places:
                return Axis(stride, padding)
    return None


def places_of(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Places of a convolution along an axis."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def square(kernel: tuple[int, ...], size: tuple[int, ...], axes: Sequence[Axis]) -> tuple[int, list[int]] | None:
    """How a kernel is written square, which nir needs to infer shapes: among taps of weight 0.

    Args:
        kernel: height and width.
        size: of the maps that it reads.
        axes: stride, padding and dilation of height and width.
    Returns:
        The square's size, and of each axis the taps in front of the kernel's, which take so many dilations of padding
        more. None: no square gives as many places, as where one side is odd and the other even.
    """
    for side in (max(kernel), max(kernel) + 1):
        front = []
        for taps, length, axis in zip(kernel, size, axes, strict=True):
            wanted = places_of(length, taps, *axis)
            padded = (axis.padding + before * axis.dilation for before in range(side - taps + 1))
            found = [places_of(length, side, axis.stride, padding, axis.dilation) == wanted for padding in padded]
            front.append(found.index(True) if True in found else None)
        if None not in front:
            return side, front
    return None
