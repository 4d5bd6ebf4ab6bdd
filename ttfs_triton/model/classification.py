"""Decisions about images: classes, and the spike times of output neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ttfs_triton.nn import FirstSpikeDecision, NetworkGraph
from ttfs_triton.nn.models import logits_and_decision

Decision = Literal["readout", "first_spike"]


@dataclass(frozen=True)
class ClassScore:
    """One of the likeliest classes.

    Attributes:
        label, class_name: of the class.
        probability: softmax of the logits; not calibrated.
    """

    label: int
    class_name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Classification:
    """A network's decision about one image. Times are counted from the image's start.

    Attributes:
        label, class_name: of the class decided for.
        top: the likeliest classes, the one decided for first.
        logits: [classes], what the decision compares: potentials of the output neurons in threshold heights, or minus
            their spike times in the time in which their ramp falls by one.
        decision: "readout", as the network was trained, or "first_spike", by the earliest output spike.
        decision_time: of the answer, in windows.
        decision_time_ms: in milliseconds, if the window's length is known.
        spike_times: [classes], of the output neurons, in windows, inf for a silent one.
        first_spike: class of the earliest output spike; None if none fired.
        tie: several output neurons fired first, at the same time.
    """

    label: int
    class_name: str
    top: tuple[ClassScore, ...]
    logits: Tensor
    decision: Decision
    decision_time: float
    decision_time_ms: float | None
    spike_times: Tensor
    first_spike: int | None
    tie: bool

    def __repr__(self) -> str:
        scores = ", ".join(f"{score.class_name} {score.probability:.1%}" for score in self.top)
        text = f"Classification({self.class_name} by {self.decision.replace('_', ' ')}; {scores}"
        text += f"; decided after {self.decision_time:.2f} windows"
        if self.decision_time_ms is not None:
            text += f" ({self.decision_time_ms:.3g} ms)"
        earliest = "none" if self.first_spike is None else f"{self.spike_times.min().item():.2f} windows"
        return f"{text}; first output spike: {earliest}{', a tie' if self.tie else ''})"


@torch.no_grad()
def classify_batch(
    network: nn.Module,
    graph: NetworkGraph,
    images: Tensor,
    class_names: Sequence[str],
    *,
    top_k: int,
    decision: Decision,
    window_ms: float | None,
) -> list[Classification]:
    """Classify a batch; arguments as of `TTFSModel.classify`, images as the network takes them."""
    readout, start, first_spike = graph.readout, graph.windows, decision == "first_spike"
    logits, decided = logits_and_decision(network, readout, images)
    logits = logits.float()
    spikes = FirstSpikeDecision(*(value.cpu() for value in decided))
    if first_spike:
        logits = spikes.spike_times.clamp(max=readout.window) * (-readout.threshold / readout.window)
    found = []
    for place, row in enumerate(logits.cpu()):
        times, silent = spikes.spike_times[place].double(), bool(spikes.no_spike[place])
        if first_spike or graph.readout_time == "first_spike":
            after = readout.window if silent else times.min().item()
        else:
            after = 0.0 if graph.readout_time == "potential_start" else 1.0
        order: list[int] = row.argsort(descending=True, stable=True).tolist()
        label = int(spikes.prediction[place]) if first_spike else order[0]
        likeliest = [label, *(other for other in order if other != label)][:top_k]
        shares = row.double().softmax(0).tolist()
        found.append(
            Classification(
                label,
                class_names[label],
                tuple(ClassScore(each, class_names[each], shares[each]) for each in likeliest),
                row,
                decision,
                decision_time=start + after,
                decision_time_ms=None if window_ms is None else (start + after) * window_ms,
                spike_times=start + times,
                first_spike=None if silent else int(times.argmin()),
                tie=bool(spikes.tie[place]),
            )
        )
    return found


def check_options(top_k: int, decision: str, window_ms: float | None, batch_size: int) -> None:
    """Raise ValueError for an option of `classify` out of range."""
    if not 1 <= top_k:
        raise ValueError(f"classify: top_k must be at least 1; got {top_k}.")
    if decision not in ("readout", "first_spike"):
        raise ValueError(f'classify: decision must be "readout" or "first_spike"; got {decision!r}.')
    if window_ms is not None and not (window_ms > 0 and math.isfinite(window_ms)):
        raise ValueError(f"classify: window_ms must be positive and finite; got {window_ms}.")
    if batch_size < 1:
        raise ValueError(f"classify: batch_size must be at least 1; got {batch_size}.")
