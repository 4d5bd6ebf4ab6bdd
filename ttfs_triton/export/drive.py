"""The world around an exported NIR graph: its input step by step, and what its output decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ttfs_triton.export.nir_clock import Clock
from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.readout import FirstSpikeDecision

SILENT = -1


def input_frames(images: Tensor, encoder: nn.Module, clock: Clock) -> Iterator[Tensor]:
    """What a graph gets, step by step: the image's spikes, behind them the clock's.

    Args:
        images: [N, channels, height, width] floating point, as the network takes them.
        encoder: of the network, its first layer: `LatencyEncoder` or `AnalogEncoder`.
        clock: of the graph, of as many channels as the images.
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
        step: of each neuron's first spike, int64; −1 is silent. Empty before the first step.
        count: of each neuron's spikes, int64.
        steps: that have passed.
    """

    def __init__(self) -> None:
        self.step = self.count = torch.empty(0, dtype=torch.int64)
        self.steps = 0

    def update(self, spikes: Tensor) -> None:
        """Take the next step; spikes [N, ...], anything but zero is one."""
        fired = spikes.detach() != 0
        if self.steps == 0:
            self.step = torch.full_like(fired, SILENT, dtype=torch.int64)
            self.count = torch.zeros_like(self.step)
        self.step = torch.where(fired & (self.step == SILENT), self.steps, self.step)
        self.count = self.count + fired
        self.steps += 1

    def times(self, clock: Clock, window: int) -> Tensor:
        """Spike times [N, ...] float32 from a window's start, in windows; inf for silent neurons.

        Raises:
            ValueError: fewer steps have passed than a run has.
        """
        if self.steps < clock.total_steps:
            raise ValueError(
                f"FirstSpikes.times: all {clock.total_steps} steps of a run must have passed; got {self.steps}."
            )
        times = (self.step - window * clock.steps).float() / clock.steps
        return torch.where(self.step == SILENT, torch.inf, times)


def decide(output: Iterable[Tensor], clock: Clock) -> FirstSpikeDecision:
    """What the output spikes of a graph decide; −1 without any.

    Args:
        output: [N, classes] spikes of each step, from the first to the last.
        clock: of the graph.
    Raises:
        ValueError: there are fewer steps than a run has.
    """
    first = FirstSpikes()
    for spikes in output:
        first.update(spikes)
    times = first.times(clock, clock.windows)
    earliest, prediction = times.min(dim=1)
    silent = earliest == torch.inf
    tie = ((times == earliest[:, None]).sum(dim=1) > 1) & ~silent
    return FirstSpikeDecision(torch.where(silent, SILENT, prediction), times, tie, silent)
