"""Deciding in time: accuracy against the deadline, confidence by the lead of the earliest spike, and early exits.

The output neurons fire in the last window; the earliest spike names the class. Whoever waits longer is surer: a lead is
how much later the second spike comes. An early exit decides as soon as a spike has led for so long, and its error is
stated: a bound that holds with a given confidence for images like those on which the lead was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.nn import network_graph
from ttfs_triton.nn.folding import plain_synapses
from ttfs_triton.nn.readout import Readout

# Leads that are tried, of the most likely to the least likely to be right: shares of the images that they let exit.
EXIT_SHARES = tuple(share / 40 for share in range(1, 41))
BOUND_STEPS = 40  # of bisection
# Parts of the window in which the last hidden layer fires, at whose ends potentials are read.
EARLY = tuple(part / 10 for part in range(1, 10))


@dataclass(frozen=True)
class Outputs:
    """What the output neurons did for N images; times from their window's start, in windows.

    Attributes:
        times: [N, classes], inf for silent neurons.
        potential, slope: [N, classes], at the window's start, V₀ included, and inside it; in threshold heights.
        labels: [N] int64.
        window: S, of firing.
        start: windows from the image's start to the output window's.
        early: [N, len(EARLY)] int64, class of the highest potential before the output window, when so much of the last
            hidden layer's is over.
    """

    times: Tensor
    potential: Tensor
    slope: Tensor
    labels: Tensor
    window: float
    start: float
    early: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> Outputs:
        """Those of some images."""
        times, potential, slope = (part[chosen] for part in (self.times, self.potential, self.slope))
        return Outputs(times, potential, slope, self.labels[chosen], self.window, self.start, self.early[chosen])

    def __len__(self) -> int:
        return len(self.labels)

    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each image: the earliest spike's time, its class (of several, the lowest), and its lead.

        Without any spike the time is inf; a second spike that does not come is taken to come at the window's end.
        """
        earliest, second = self.times.topk(2, largest=False).values.unbind(1)
        lead = (second.clamp(max=self.window) - earliest).clamp(min=0).nan_to_num(0.0)
        return earliest, self.times.argmin(1), lead

    def forced(self, time: float | Tensor) -> Tensor:
        """[N] classes that are decided for if there is no more time: the earliest spike's, or the highest potential's.

        Args:
            time: [N], or one for all.
        """
        time = torch.as_tensor(time).expand(len(self))
        earliest, prediction, _ = self.first()
        highest = (self.potential + self.slope * time[:, None].clamp(max=self.window)).argmax(1)
        return torch.where(earliest <= time, prediction, highest)


@torch.no_grad()
def output_spikes(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], image_shape: Sequence[int] | None = None
) -> Outputs:
    """Run a network over images and keep what its outputs did.

    Args:
        network: what `network_graph` takes, spiking; it runs in evaluation mode.
        batches: images and labels, on its device or not.
        image_shape: as of `network_graph`.
    Raises:
        NetworkError: a network that does not spike.
        ValueError: no images.
    """
    graph = network_graph(network, image_shape)
    graph.require_spiking()
    device, training, readout = next(network.parameters()).device, network.training, graph.readout
    parts: list[tuple[Tensor, ...]] = []
    arriving: list[Tensor] = []
    hook = readout.register_forward_pre_hook(lambda _, inputs: arriving.append(inputs[0]))
    network.eval()
    try:
        for images, labels in batches:
            network(images.to(device))
            hidden = arriving.pop()
            found = (readout.decide(hidden).spike_times, *readout.potential_and_slope(hidden))
            parts.append((*(part.double().cpu() for part in found), labels.cpu(), _early(readout, hidden).cpu()))
    finally:
        hook.remove()
        network.train(training)
    if not parts:
        raise ValueError("output_spikes: batches must not be empty; got none.")
    *columns, early = (torch.cat(column) for column in zip(*parts, strict=True))
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
    earliest, prediction, _ = outputs.first()
    right = prediction == outputs.labels
    rows = []
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


@dataclass(frozen=True)
class ConfidenceRow:
    """Images of a range of leads, from the surest on.

    Attributes:
        lead: the least in the range, in windows.
        images: how many.
        accuracy: of the earliest spike.
    """

    lead: float
    images: int
    accuracy: float


def confidence(outputs: Outputs, groups: int = 10) -> list[ConfidenceRow]:
    """Accuracy by the lead of the earliest spike, in groups of about as many images."""
    _, prediction, lead = outputs.first()
    order = lead.argsort(descending=True, stable=True)
    rows = []
    for part in order.tensor_split(groups):
        if len(part):
            right = prediction[part] == outputs.labels[part]
            rows.append(ConfidenceRow(float(lead[part].min()), len(part), _share(right)))
    return rows


@dataclass(frozen=True)
class EarlyExit:
    """A rule: decide for the earliest spike as soon as it has led for `lead`.

    Attributes:
        lead: in windows.
        error: that was asked for, a share of the images that exit.
        bound: on that share, which holds with `confidence`.
        confidence: of the statement.
        images: on which it was chosen.
    """

    lead: float
    error: float
    bound: float
    confidence: float
    images: int


@dataclass(frozen=True)
class ExitFigures:
    """What a rule does to some images.

    Attributes:
        exits: share that it decides early.
        error: share of these that it decides wrongly; None without any.
        accuracy: of all, the others being decided at the window's end.
        time: mean decision time, windows from the image's start.
        full_time: without the rule, to the window's end.
    """

    exits: float
    error: float | None
    accuracy: float
    time: float
    full_time: float


def choose_exit(outputs: Outputs, error: float, *, confidence: float = 0.95) -> EarlyExit:
    """The shortest lead whose exits are wrong in at most a stated share, on images that must not be those of training.

    Leads are tried from the longest on, until one fails; so all that were accepted hold together with that confidence.

    Args:
        outputs: of held-out images.
        error: share of the exits that may be wrong.
        confidence: of the statement, for images drawn as these.
    Raises:
        ValueError: error or confidence outside (0, 1), or no lead that can promise this.
    Source: Clopper and Pearson, Biometrika 26 (1934); fixed-sequence testing as in Angelopoulos et al., "Learn then
        test", 2021.
    """
    for name, value in (("error", error), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"choose_exit: {name} must be between 0 and 1; got {value}.")
    earliest, prediction, lead = outputs.first()
    lead, wrong = lead.masked_fill(earliest == torch.inf, 0.0), prediction != outputs.labels
    accepted: EarlyExit | None = None
    least = 1.0
    for share in EXIT_SHARES:
        tried = float(lead.quantile(1 - share))
        if tried <= 0:
            break
        exits = lead >= tried
        bound = upper_bound(int(wrong[exits].sum()), int(exits.sum()), confidence)
        least = min(least, bound)
        if bound > error:
            if accepted is None and not bool(wrong[exits].any()):
                continue  # too few images to promise anything, whatever they are: no failure is passed over
            break
        accepted = EarlyExit(tried, error, bound, confidence, len(outputs))
    if accepted is None:
        raise ValueError(
            f"choose_exit: error must be one that {len(outputs):,} images can promise with {confidence:.0%} "
            f"confidence, at least {least:.3%}; got {error:.3%}. Give more images or a larger error."
        )
    return accepted


def exit_figures(outputs: Outputs, rule: EarlyExit) -> ExitFigures:
    """What a rule does to images on which it was not chosen."""
    earliest, prediction, lead = outputs.first()
    exits = (lead >= rule.lead) & (earliest < torch.inf)
    right = torch.where(exits, prediction, outputs.forced(outputs.window)) == outputs.labels
    time = torch.where(exits, earliest + rule.lead, outputs.window).clamp(max=outputs.window)
    return ExitFigures(
        exits=_share(exits),
        error=1 - _share(right[exits]) if bool(exits.any()) else None,
        accuracy=_share(right),
        time=outputs.start + float(time.mean()),
        full_time=outputs.start + outputs.window,
    )


def upper_bound(failures: int, trials: int, confidence: float) -> float:
    """Clopper and Pearson's upper bound on a share of which so many failures were seen in independent trials."""
    if failures >= trials:
        return 1.0
    seen = torch.arange(failures + 1, dtype=torch.float64)
    ways = math.lgamma(trials + 1) - torch.lgamma(seen + 1) - torch.lgamma(trials - seen + 1)
    low, high = failures / trials, 1.0
    for _ in range(BOUND_STEPS):
        share = (low + high) / 2
        logarithm = ways + seen * math.log(share) + (trials - seen) * math.log1p(-share) if share < 1 else None
        tail = 0.0 if logarithm is None else float(logarithm.logsumexp(0).exp())
        low, high = (share, high) if tail > 1 - confidence else (low, share)
    return high


def _share(truth: Tensor) -> float:
    return float(truth.double().mean())
