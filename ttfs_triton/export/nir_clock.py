"""The clock of an exported graph: steps and windows, the weights of clock channels, input frames and decision.

NIR knows neither windows nor moving thresholds, but it knows spikes. So the graph has clock channels beside the image,
each of which spikes once; every change at a border of a layer's window is a weight on these channels:

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.readout import FirstSpikeDecision

# Seconds in a step: snnTorch's importer assumes this value, and others have it as their default.
STEP_S = 1e-4
SILENT = -1


class Axis(NamedTuple):
    """Geometry of a convolution along height or width."""

    stride: int
    padding: int
    dilation: int = 1


@dataclass(frozen=True)
class Clock:
    """Steps and channels of an exported graph, enough to drive it.

    Attributes:
        steps: S, steps in a window.
        windows: window in which the readout fires; the input fires in window 0, or is shown in it.
        image_shape: (channels, height, width) of the images. Clock channels lie behind the image's.
        analog: whether images are shown as real numbers rather than as spikes.
    """

    steps: int
    windows: int
    image_shape: tuple[int, int, int]
    analog: bool

    @property
    def channels(self) -> int:
        """Channels of the graph's input: image, borders 0 to `windows`, after 1 to `windows`."""
        return self.image_shape[0] + 2 * self.windows + 1

    @property
    def total_steps(self) -> int:
        """Steps of a run."""
        return (self.windows + 1) * self.steps

    def window_of(self, stage: Stage) -> int:
        """Window in which a layer fires: one later if images are real numbers, which are shown in their own window."""
        return stage.window + self.analog

    def border(self, window: int) -> int:
        """Input channel that spikes at a window's start."""
        return self.image_shape[0] + window

    def after(self, window: int) -> int:
        """Input channel that spikes one step after a window's start."""
        return self.image_shape[0] + self.windows + window

    def channels_at(self, step: int) -> list[int]:
        """Clock channels that spike in a step."""
        window, behind = divmod(step, self.steps)
        if behind == 0:
            return [self.border(window)]
        return [self.after(window)] if behind == 1 and window > 0 else []

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Clock:
        """The clock in a graph's metadata, where it is one JSON object.

        Raises:
            ValueError: `to_nir` did not make the graph.
        """
        if "clock" not in metadata:
            raise ValueError('Clock.from_metadata: metadata must hold "clock", as to_nir writes it; got none.')
        values = json.loads(str(metadata["clock"]))
        return cls(**values | {"image_shape": tuple(values["image_shape"])})


def clock_weights(
    clock: Clock, window: int, bias: np.ndarray, ramp: float, gate: float, stop: float | None
) -> np.ndarray:
    """Weights [C_out, channels] from the input channels to a layer that fires in `window`; see the module.

    Args:
        bias: [C_out] initial potentials, V₀ included.
        ramp, gate: fall of the threshold in a window, and its raise G outside the window; in threshold heights.
        stop: steepest slope of the potential in a window, which the closing gate cancels; None: it never closes.
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
        The kernel's size, and stride and padding along height and along width. Its one tap lies at the padding, so that
        it reads place i · stride of the plane.
    Raises:
        NotImplementedError: there is no such kernel, for example if padding makes maps larger than the image.
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
    for padding, stride in product(range(kernel), range(1, length + 1)):
        if (places - 1) * stride < length and places_of(length, kernel, stride, padding) == places:
            return Axis(stride, padding)
    return None


def places_of(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Number of places that a convolution has along an axis."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def square(kernel: tuple[int, ...], size: tuple[int, ...], axes: Sequence[Axis]) -> tuple[int, list[int]] | None:
    """Size of a square kernel that holds a kernel among taps of weight 0, since nir infers shapes of square ones only.

    Args:
        kernel, size: height and width of the kernel, and of the maps that it reads.
        axes: stride, padding and dilation along height and along width.
    Returns:
        The square's side, and for each axis the number of taps in front of the kernel; each needs one more dilation of
        padding. None if no square has as many places, for example if one side is odd and the other even.
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


def input_frames(images: Tensor, encoder: nn.Module, clock: Clock) -> Iterator[Tensor]:
    """Input frames of a graph, step by step: channels of the image, then of the clock.

    Args:
        images: [N, channels, height, width] floating point, as the network takes them.
        encoder: the network's first layer: a `LatencyEncoder` or an `AnalogEncoder`.
        clock: clock of the graph, for images of this shape.
    Yields:
        [N, clock.channels, height, width], dtype of `images`, `clock.total_steps` times; a new tensor each time.
    Raises:
        ValueError: images of another shape.
    """
    if images.dim() != 4 or tuple(images.shape[1:]) != clock.image_shape:
        raise ValueError(
            f"input_frames: images must have shape [N, {', '.join(map(str, clock.image_shape))}]; "
            f"got {tuple(images.shape)}."
        )
    steps = clock.steps
    if clock.analog:
        assert isinstance(encoder, AnalogEncoder), "a graph of another encoder is not made"
        shown = encoder.normalise(images)
    else:
        activation = encoder(images)
        # A spike that would be rounded to the window's end stays in it.
        spike_steps = ((1 - activation) * steps).round().clamp_max(steps - 1)
        shown = torch.where(activation > 0, spike_steps, SILENT)
    for step in range(clock.total_steps):
        frame = images.new_zeros(len(images), clock.channels, *clock.image_shape[1:])
        image = frame[:, : clock.image_shape[0]]
        if not clock.analog and step < steps:
            image.copy_(shown == step)
        elif clock.analog and step in (0, steps):  # shown, and taken back a window later
            image.copy_(shown if step == 0 else -shown)
        frame[:, clock.channels_at(step)] = 1
        yield frame


class FirstSpikes:
    """First spikes of neurons, from their spikes step by step.

    Attributes:
        step: step of each neuron's first spike, int64; −1 is silent. Empty before the first step.
        count: number of each neuron's spikes, int64.
    """

    def __init__(self) -> None:
        self.step = self.count = torch.empty(0, dtype=torch.int64)
        self.steps = 0

    def update(self, spikes: Tensor) -> None:
        """Take the spikes [N, ...] of the next step; every value but zero is a spike."""
        fired = spikes.detach() != 0
        if self.steps == 0:
            self.step = torch.full_like(fired, SILENT, dtype=torch.int64)
            self.count = torch.zeros_like(self.step)
        self.step = torch.where(fired & (self.step == SILENT), self.steps, self.step)
        self.count = self.count + fired
        self.steps += 1

    def times(self, clock: Clock, window: int) -> Tensor:
        """Spike times [N, ...] float32 from a window's start, in windows; inf for silent neurons."""
        if self.steps < clock.total_steps:
            raise ValueError(
                f"FirstSpikes.times: all {clock.total_steps} steps of a run must have passed; got {self.steps}."
            )
        times = (self.step - window * clock.steps).float() / clock.steps
        return torch.where(self.step == SILENT, torch.inf, times)


def decide(output: Iterable[Tensor], clock: Clock) -> FirstSpikeDecision:
    """Decision by the earliest output spike of a graph; −1 without an output spike.

    Args:
        output: spikes [N, classes] of each step, from the first to the last.
        clock: clock of the graph.
    Raises:
        ValueError: `output` has fewer steps than a run.
    """
    first = FirstSpikes()
    for spikes in output:
        first.update(spikes)
    times = first.times(clock, clock.windows)
    earliest, prediction = times.min(dim=1)
    silent = earliest == torch.inf
    tie = ((times == earliest[:, None]).sum(dim=1) > 1) & ~silent
    return FirstSpikeDecision(torch.where(silent, SILENT, prediction), times, tie, silent)
