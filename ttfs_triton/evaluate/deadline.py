"""Accuracy against a deadline: the earliest output spike decides, or output potentials if there is no spike yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.nn import network_graph
from ttfs_triton.nn.prepare import plain_synapses
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.trace import evaluating

# Times at which output potentials are read in the last hidden layer's firing window, as shares of this window.
EARLY = tuple(part / 10 for part in range(1, 10))
# Deadlines within the output window, from its start to its end.
DEADLINES = tuple(part / 10 for part in range(11))


@dataclass(frozen=True)
class Outputs:
    """Spikes and potentials of the output neurons for N images; times from the output window's start, in windows."""

    times: Tensor  # [N, classes], spike times, inf for silent neurons
    potential: Tensor  # [N, classes], at the window's start, V₀ included, in threshold heights
    slope: Tensor  # [N, classes], of the potential inside the window
    labels: Tensor  # [N] int64
    start: float  # time of the output window's start, from the image's start
    early: Tensor  # [N, len(EARLY)] int64, class of the highest potential at the times `EARLY` of the window before

    def forced(self, time: float) -> Tensor:
        """[N] classes decided at a time: the class of the earliest spike or, without one, of the highest potential."""
        earliest, prediction = self.times.min(1)
        highest = (self.potential + self.slope * min(time, 1.0)).argmax(1)
        return torch.where(earliest <= time, prediction, highest)


@torch.no_grad()
def output_spikes(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Outputs:
    """Run a network over images and labels, in evaluation mode; returns spikes and potentials of its output neurons."""
    graph = network_graph(network)
    device, readout = next(network.parameters()).device, graph.readout
    parts: list[tuple[Tensor, ...]] = []
    arriving: list[Tensor] = []
    hook = readout.register_forward_pre_hook(lambda _, inputs: arriving.append(inputs[0]))
    with hook, evaluating(network):
        for images, labels in batches:
            network(images.to(device))
            hidden = arriving.pop()
            times = readout.decide(hidden).spike_times.double()
            if graph.grid is not None:  # in float32, times lie slightly beside whole steps
                times = (times * graph.grid.time_steps).round() / graph.grid.time_steps
            outputs = (part.double() for part in (times, *readout.one_pass(hidden).potential_and_slope()))
            parts.append(tuple(part.cpu() for part in (*outputs, labels, _early(readout, hidden))))
    *columns, early = map(torch.cat, zip(*parts, strict=True))
    return Outputs(*columns, start=graph.windows, early=early)


def _early(readout: Readout, hidden: Tensor) -> Tensor:
    """Classes [N, len(EARLY)] of the highest potential at the times `EARLY`, at which spikes still arrive."""
    weight, bias = plain_synapses(readout)
    # At a share t of the window, a spike x has contributed w·(x − (1 − t)).
    since = [(hidden.double() - (1 - part)).clamp_(min=0) for part in EARLY]
    return torch.stack([F.linear(values, weight, bias).argmax(1) for values in since], 1)


@dataclass(frozen=True)
class DeadlineRow:
    """Decisions at a deadline, in windows from the image's start."""

    deadline: float
    accuracy: float  # if all images must be decided by then
    decided: float  # share of the images with an output spike by then
    time: float  # mean decision time: the first spike's, or else the deadline


def deadline_curve(outputs: Outputs) -> list[DeadlineRow]:
    """Accuracy against deadline: in the last hidden window, where potentials alone decide, and in the output window."""
    earliest, rows = outputs.times.amin(1), []
    for part, early in zip(EARLY, outputs.early.unbind(1), strict=True):
        time = outputs.start - 1 + part
        rows.append(DeadlineRow(time, _share(early == outputs.labels), 0.0, time))
    for deadline in DEADLINES:
        right, decided = _share(outputs.forced(deadline) == outputs.labels), _share(earliest <= deadline)
        time = outputs.start + float(earliest.clamp(max=deadline).mean())
        rows.append(DeadlineRow(outputs.start + deadline, right, decided, time))
    return rows


def _share(truth: Tensor) -> float:
    return float(truth.double().mean())
