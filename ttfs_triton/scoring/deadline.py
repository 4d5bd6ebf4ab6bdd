"""Accuracy against the deadline: by the earliest output spike, and by the output potentials where none has come yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.nn import network_graph
from ttfs_triton.nn.folding import plain_synapses
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.trace import evaluating

# Times within the last hidden layer's firing window, as shares of it, at which output potentials are read.
EARLY = tuple(part / 10 for part in range(1, 10))


@dataclass(frozen=True)
class Outputs:
    """Spikes and potentials of the output neurons for N images; times from their window's start, in windows.

    Attributes:
        times: [N, classes], inf for silent neurons.
        potential, slope: [N, classes], at the window's start, V₀ included, and inside it; in threshold heights.
        window: S, of firing.
        start: windows from the image's start to the output window's.
        early: [N, len(EARLY)] int64, class of the highest potential after these parts of the window before.
    """

    times: Tensor
    potential: Tensor
    slope: Tensor
    labels: Tensor
    window: float
    start: float
    early: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def forced(self, time: float) -> Tensor:
        """[N] classes that are decided for at a time: the earliest spike's, or the highest potential's without any."""
        earliest, prediction = self.times.min(1)
        highest = (self.potential + self.slope * min(time, self.window)).argmax(1)
        return torch.where(earliest <= time, prediction, highest)


@torch.no_grad()
def output_spikes(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], image_shape: Sequence[int] | None = None
) -> Outputs:
    """Run a network over images and keep spikes and potentials of its output neurons.

    Args:
        network: what `network_graph` takes, spiking; it runs in evaluation mode.
        batches: images and labels, on its device or not.
        image_shape: as of `network_graph`.
    Raises:
        ValueError: no such network, or no images.
    """
    graph = network_graph(network, image_shape)
    device, readout = next(network.parameters()).device, graph.readout
    parts: list[tuple[Tensor, ...]] = []
    arriving: list[Tensor] = []
    hook = readout.register_forward_pre_hook(lambda _, inputs: arriving.append(inputs[0]))
    with hook, evaluating(network):
        for images, labels in batches:
            network(images.to(device))
            hidden = arriving.pop()
            found = (readout.decide(hidden).spike_times, *readout.potential_and_slope(hidden))
            parts.append((*(part.double().cpu() for part in found), labels.cpu(), _early(readout, hidden).cpu()))
    if not parts:
        raise ValueError("output_spikes: batches must not be empty; got none.")
    *columns, early = map(torch.cat, zip(*parts, strict=True))
    return Outputs(*columns, window=readout.window, start=graph.windows, early=early)


def _early(readout: Readout, hidden: Tensor) -> Tensor:
    """Classes [N, len(EARLY)] of the highest potential while spikes still arrive."""
    weight, bias = plain_synapses(readout)
    # An input that came x before the window's end has raised the potential for x less what is left of the window.
    since = [(hidden.double() - (1 - part)).clamp_(min=0) for part in EARLY]
    return torch.stack([F.linear(values, weight, bias).argmax(1) for values in since], 1)


@dataclass(frozen=True)
class DeadlineRow:
    """Decisions at a deadline.

    Attributes:
        deadline: windows from the image's start.
        accuracy: share of the images that are decided rightly if all must be by then.
        decided: share of the images with an output spike by then.
        decided_accuracy: of those; None without any.
        time: mean decision time, windows from the image's start: of the first spike, or else the deadline.
    """

    deadline: float
    accuracy: float
    decided: float
    decided_accuracy: float | None
    time: float


def deadline_curve(outputs: Outputs, deadlines: Sequence[float] = ()) -> list[DeadlineRow]:
    """Accuracy against decision time: in the window before the outputs', where potentials alone decide, and in theirs.

    Args:
        outputs: of a network.
        deadlines: from the output window's start, in windows. Default: 11 from its start to its end.
    """
    deadlines = deadlines or [outputs.window * place / 10 for place in range(11)]
    earliest, prediction = outputs.times.min(1)
    right, rows = prediction == outputs.labels, []
    for part, early in zip(EARLY, outputs.early.unbind(1), strict=True):
        time = outputs.start - 1 + part
        rows.append(DeadlineRow(time, _share(early == outputs.labels), 0.0, None, time))
    for deadline in deadlines:
        decided = earliest <= deadline
        rows.append(
            DeadlineRow(
                deadline=outputs.start + deadline,
                accuracy=_share(outputs.forced(deadline) == outputs.labels),
                decided=_share(decided),
                decided_accuracy=_share(right[decided]) if bool(decided.any()) else None,
                time=outputs.start + float(earliest.clamp(max=deadline).mean()),
            )
        )
    return rows


def _share(truth: Tensor) -> float:
    return float(truth.double().mean())
