"""Energy of a spiking network beside ANNs on the same chip, at the same prices and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ttfs_triton.energy.chip import load_chip
from ttfs_triton.energy.counts import Counts
from ttfs_triton.energy.estimate import Estimate, Run, RunOptions, TermKind
from ttfs_triton.energy.models import dense_ann, estimate, zero_skipping_ann
from ttfs_triton.energy.prices import Chip
from ttfs_triton.wording import energy, ratio

Measure = Literal["compute_only", "memory_included", "total"]
MEASURES: Mapping[Measure, str] = {
    "compute_only": "by arithmetic alone",
    "memory_included": "with memory",
    "total": "counting all priced operations",
}
"""Sums of an estimate, and their names in sentences."""

# Time steps a window at which networks are compared, in addition to the steps that the user asks for.
STEPS = (4, 8, 16, 32, 64, 128)
# Chip of a comparison if none of the user's chips prices the dense ANN with memory and without.
FAIR_CHIP = "lemaire45:int8"


class BreakEven(NamedTuple):
    """The firing share at which a network costs as much as its dense ANN, at nominal prices."""

    value: float | None
    """Mean firing share; may exceed 1. None if the costs are equal at none."""
    text: str
    """The break-even point in words."""


def break_even_firing_share(
    counts: Counts, chip: Chip | str | Path, options: RunOptions, *, measure: Measure = "total"
) -> BreakEven:
    """Share of hidden neurons that may fire before the network costs as much as its dense ANN, at nominal prices.

    The spikes of all hidden layers are scaled by one factor, at the same spike times; the first layer's inputs stay.
    Static power that one of the two lacks, because its latency is not known, counts in neither.

    Args:
        counts, chip, options: as in `estimate`; `options.activity` is ignored, because it holds for other spikes.
        measure: which sum of an estimate is compared.
    """
    chip, options, none = load_chip(chip), replace(options, activity=None), "no break-even firing share"
    if not counts.sparsity > 0:
        return BreakEven(None, f"{none}: no hidden neuron fires")
    networks = [estimate(counts.firing_more(factor), chip, options) for factor in (0.0, 1.0)]
    compared = (dense_ann(counts, chip, options=options), *networks)
    static = {term.name for each in compared for term in each.unpriced if term.kind == "static"}
    known = (replace(each, terms=tuple(term for term in each.terms if term.name not in static)) for each in compared)
    dense, start, end = (_nominal(each, measure, "compute") for each in known)
    if dense is None or start is None or end is None:
        what = "the dense ANN" if dense is None else "spikes and neurons"
        return BreakEven(None, f"{none}: {chip.name} has no price for {what}")
    if dense < start:
        costs = f"the network without a spike costs {energy(start)}, more than the dense ANN at {energy(dense)}"
        return BreakEven(None, f"{none}: {costs}")
    if end <= start:
        return BreakEven(None, f"{none}: spikes cost nothing on {chip.name}")
    share = (dense - start) / (end - start) * counts.sparsity
    beyond = "at any firing share" if share > 1 else f"below a firing share of {share:.1%} (now {counts.sparsity:.1%})"
    return BreakEven(share, f"{MEASURES[measure]}, it costs less than the dense ANN {beyond}")


def _nominal(found: Estimate, measure: Measure, *needed: TermKind) -> float | None:
    """Nominal pJ; None if it is unknown, or if a term of the needed kinds has no price: the sum would be too low."""
    amount = getattr(found, measure)
    return None if amount is None or any(term.kind in needed for term in found.unpriced) else amount.nominal


@dataclass(frozen=True)
class Verdict:
    """Ratios of a network's energy to its dense ANN's on one chip, at nominal prices.

    Attributes:
        chip: the chip's name.
        steps: time steps a window.
        with_memory, arithmetic: ratio at each of `steps`; empty if the chip has no price for it or no separate one.
        asked: index in `steps` of the steps that the user asked for.
        missing: the network's operations without a price on the chip; the true ratios are higher.
        bound: whether ratios are upper bounds, because the neurons' work is computed from counts.
    """

    chip: str
    steps: tuple[int, ...]
    with_memory: tuple[float, ...]
    arithmetic: tuple[float, ...]
    asked: int
    missing: tuple[str, ...] = ()
    bound: bool = False

    @property
    def cheaper(self) -> bool:
        """Whether the network costs less with memory and without, at the steps asked for; False if unknown."""
        both = (self.with_memory, self.arithmetic)
        return not self.missing and all(ratios and ratios[self.asked] < 1 for ratios in both)

    def sentences(self) -> list[str]:
        """The ratios and the verdict in sentences: the ratio with memory first, the verdict last."""
        if not self.with_memory and not self.arithmetic:
            return [f"{self.chip} does not price the dense ANN: which of the two is cheaper is unknown."]
        lines = [
            self._line("With memory", self.with_memory, "prices no memory, which may reverse the result below"),
            self._line("By arithmetic alone", self.arithmetic, "has no separate price of arithmetic"),
            *(["These are upper bounds: the neurons' work is computed from counts."] if self.bound else []),
        ]
        if not (self.with_memory and self.arithmetic):
            return [*lines, "No verdict: it needs prices with memory and without."]
        wins = [max(pair) < 1 for pair in zip(self.with_memory, self.arithmetic, strict=True)]
        if any(wins) and self.missing:
            return [*lines, f"No verdict: {self.chip} has no price for {', '.join(self.missing)}, which costs extra."]
        chosen = [step for step, win in zip(self.steps, wins, strict=True) if win or not any(wins)]
        where = f" at {' to '.join(str(step) for step in dict.fromkeys([chosen[0], chosen[-1]]))} steps a window"
        if not any(wins):
            return [*lines, f"Not cheaper than the dense ANN{where}."]
        only = "" if all(wins) else ", only"
        return [*lines, f"Cheaper than the dense ANN, with memory and without{only}{where}."]

    def _line(self, how: str, ratios: Sequence[float], otherwise: str) -> str:
        if not ratios:
            return f"{self.chip[:1].upper()}{self.chip[1:]} {otherwise}."
        text = f"{how}, inference costs {ratio(ratios[self.asked])}× the dense ANN on {self.chip}"
        text += f" at {self.steps[self.asked]} steps a window"
        if len(ratios) > 1:
            text += f", {ratio(min(ratios))}× to {ratio(max(ratios))}× at {self.steps[0]} to {self.steps[-1]}"
        return f"{text}."


def fair_chip(counts: Counts, chips: Sequence[Chip | str | Path], options: RunOptions) -> Chip:
    """The first chip that prices the dense ANN with memory and without, or `FAIR_CHIP` if none does."""
    for chip in map(load_chip, chips):
        dense = dense_ann(counts, chip, options=options)
        if all(_whole(dense, measure) is not None for measure in ("memory_included", "compute_only")):
            return chip
    return load_chip(FAIR_CHIP)


def verdict(
    counts: Counts, chip: Chip | str | Path, options: RunOptions, others: Sequence[Run] | None = None
) -> Verdict:
    """Compare a network's energy with its dense ANN's, at the same prices and bit widths.

    Args:
        counts, chip, options: as in `estimate`.
        others: simulations of the same network at other numbers of steps. Default: all of `STEPS`, with the neurons'
            work computed from `counts`.
    """
    chip = load_chip(chip)
    if others is None:
        others = [Run(counts, replace(options, steps=number, activity=None)) for number in STEPS]
    by_steps = {run.options.steps: run for run in (*others, Run(counts, options))}
    steps, dense = tuple(sorted(by_steps)), dense_ann(counts, chip, options=options)
    runs = [by_steps[number] for number in steps]
    estimates = [estimate(run.counts, chip, run.options) for run in runs]
    with_memory, arithmetic = (_ratios(estimates, dense, measure) for measure in ("memory_included", "compute_only"))
    missing = tuple(dict.fromkeys(term.name for term in estimates[0].unpriced if term.kind == "compute"))
    bound = any(run.options.gating and run.options.activity is None for run in runs)
    return Verdict(chip.name, steps, with_memory, arithmetic, steps.index(options.steps), missing, bound)


class Comparison(NamedTuple):
    """A network and ANNs compared on one chip."""

    estimates: tuple[Estimate, ...]
    """Energies; the network's own is first."""
    sentences: tuple[str, ...]
    """Verdict and break-even point in words."""


def compare(
    counts: Counts,
    chip: Chip | str | Path,
    options: RunOptions,
    *,
    network: str = "network",
    others: Sequence[Run] | None = None,
) -> Comparison:
    """Compare a spiking network with its dense ANN and its zero-skipping ANN, at equal prices.

    Args:
        counts, chip, options, network: as in `estimate`.
        others: as in `verdict`.
    """
    chip = load_chip(chip)
    estimates = (
        estimate(counts, chip, options, network=network),
        dense_ann(counts, chip, options=options, network=network),
        zero_skipping_ann(counts, chip, options=options, network=network),
    )
    sentences, share = (
        verdict(counts, chip, options, others).sentences(),
        break_even_firing_share(counts, chip, options),
    )
    return Comparison(estimates, (*sentences, f"{share.text[:1].upper()}{share.text[1:]}."))


def _ratios(estimates: Sequence[Estimate], dense: Estimate, measure: Measure) -> tuple[float, ...]:
    """Ratios of the network's energies to the dense ANN's; empty if one of the energies is unknown."""
    theirs, ours = _whole(dense, measure), [_nominal(each, measure) for each in estimates]
    return tuple(each / theirs for each in ours if each is not None) if theirs and None not in ours else ()


def _whole(dense: Estimate, measure: Measure) -> float | None:
    """Nominal pJ of a dense ANN; None if one of its terms has no price, since the sum would be too low."""
    needed: tuple[TermKind, ...] = ("compute",) if measure == "compute_only" else ("compute", "memory")
    return _nominal(dense, measure, *needed)
