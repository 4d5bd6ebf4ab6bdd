"""The clock of an exported graph: steps and windows, weights of clock channels, kernels, input frames and decision.

NIR has neither windows nor moving thresholds, but it has spikes. So the graph has clock channels beside the image. A
clock channel spikes once; every change at a border of a layer's window is a weight on these channels:

    channel     spikes at step    for the layer of window w                                         weight
    border k    k·S               k = w − 1: the initial potential b starts to build up             b
                                  k = w: it is complete; the ramp starts and the gate opens         ramp − b + opening
                                  k = w + 1: the gate closes, the potential no longer rises         −(σ·Σ w⁺ + ramp)
    after k     k·S + 1           k = w: the slope that opened the gate ends                        −opening

S is the number of steps in a window. A neuron adds its inputs up twice (slope, potential): a weight w at a step raises
the potential by w in every later step, ±x in consecutive steps raise it by x once, and opening = G·S − ramp/2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.readout import FirstSpikeDecision

# Seconds in a step: snnTorch's importer assumes this value, and others have it as their default.
STEP_S = 1e-4
SILENT = -1


@dataclass(frozen=True)
class Clock:
    """Steps and channels of an exported graph, enough to drive it.

    Attributes:
        steps: S, steps in a window.
        windows: number of the window in which the readout fires; the input fires, or is shown, in window 0.
        image_shape: (channels, height, width) of the images. Clock channels come after the image's.
        analog: whether images are shown as real numbers rather than as spikes.
    """

    steps: int
    windows: int
    image_shape: tuple[int, int, int]
    analog: bool

    @property
    def channels(self) -> int:
        """Number of channels of the graph's input: image, borders 0 to `windows`, after 1 to `windows`."""
        return self.image_shape[0] + 2 * self.windows + 1

    @property
    def total_steps(self) -> int:
        """Steps of a run."""
        return (self.windows + 1) * self.steps

    def window_of(self, stage: Stage) -> int:
        """Window in which a layer fires: one later if images are real numbers, which take the first window."""
        return stage.window + self.analog

    def border(self, window: int) -> int:
        """Input channel that spikes at a window's start."""
        return self.image_shape[0] + window

    def after(self, window: int) -> int:
        """Input channel that spikes one step after a window's start."""
        return self.image_shape[0] + self.windows + window

    def channels_at(self, step: int) -> list[int]:
        """Clock channels that spike in a step."""
        window, steps_after = divmod(step, self.steps)
        if steps_after == 0:
            return [self.border(window)]
        return [self.after(window)] if steps_after == 1 and window > 0 else []

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

    `bias` [C_out] includes V₀. `ramp` is the threshold's fall in the window, `gate` its raise G outside. `stop` is the
    steepest slope of a potential in the window, which the closing gate cancels; None: the gate stays open.
    """
    weights = np.zeros((len(bias), clock.channels), np.float32)
    # Half a step of ramp less: so potentials are compared with the ramp in the middle of a step, and spike times are
    # rounded to the nearest step and not down.
    opening = gate * clock.steps - ramp / 2
    weights[:, clock.border(window - 1)] = bias
    weights[:, clock.border(window)] = ramp - bias + opening
    weights[:, clock.after(window)] = -opening
    if stop is not None:
        weights[:, clock.border(window + 1)] = -stop
    return weights


def sampling(size: Sequence[int], places: Sequence[int]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Side, stride and tap of a square kernel that reduces maps of `size` to maps of size `places`; padding is the tap.

    nir infers shapes of square kernels only. NotImplementedError if no such kernel gives maps of this size.
    """
    sides = [(length, length // wanted, wanted) for length, wanted in zip(size, places, strict=True)]
    for side in range(1, max(size) + 2):
        taps = [
            [tap for tap in range(side) if stride and (length + 2 * tap - side) // stride + 1 == wanted]
            for length, stride, wanted in sides
        ]
        if all(taps):
            return side, tuple(stride for _, stride, _ in sides), tuple(fitting[0] for fitting in taps)
    raise NotImplementedError(
        f"to_nir: maps must be sampled from the image for the clock to reach them; got maps of {tuple(places)} for "
        f"images of {tuple(size)}. Use less padding."
    )


def input_frames(images: Tensor, encoder: nn.Module, clock: Clock) -> Iterator[Tensor]:
    """Input frames of a graph, step by step: channels of the image, then of the clock.

    Args:
        images: [N, channels, height, width] floating point, as the network takes them.
        encoder: the network's first layer: a `LatencyEncoder` or an `AnalogEncoder`.
        clock: clock of the graph, for images of this shape.
    Yields:
        `clock.total_steps` new tensors [N, clock.channels, height, width], dtype of `images`.
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
        # A spike that would be rounded to the window's end stays in the window's last step.
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
    """First spikes of neurons, from their spikes step by step: `step` (inf if silent), and `count` of spikes."""

    def __init__(self) -> None:
        self.step, self.count, self.steps = torch.tensor(torch.inf), torch.tensor(0), 0

    def update(self, spikes: Tensor) -> None:
        """Take the spikes [N, ...] of the next step; every value but zero is a spike."""
        fired = spikes.detach() != 0
        self.step = torch.where(fired & (self.count == 0), float(self.steps), self.step)
        self.count = self.count + fired
        self.steps += 1

    def times(self, clock: Clock, window: int) -> Tensor:
        """Spike times [N, ...] float32 from a window's start, in windows; inf for silent neurons."""
        if self.steps < clock.total_steps:
            raise ValueError(
                f"FirstSpikes.times: all {clock.total_steps} steps of a run must have passed; got {self.steps}."
            )
        return (self.step - window * clock.steps) / clock.steps


def decide(output: Iterable[Tensor], clock: Clock) -> FirstSpikeDecision:
    """Decision by the earliest output spike of a graph; −1 without an output spike.

    Args:
        output: spikes [N, classes] of all steps, from the first to the last.
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
