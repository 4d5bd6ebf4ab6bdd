"""A spiking network beside its alternatives on one chip, so at the same node and precision: where they cost the same,
and whether it is cheaper than its dense ANN, with memory and by arithmetic alone, over a range of time steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.alternatives import RateCode, dense_ann, rate_coded, zero_skipping_ann
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.chip_files import as_chip, load_chip
from ttfs_triton.hardware.energy.estimate import estimate
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.terms import Estimate
from ttfs_triton.wording import energy, ratio

Measure = Literal["compute_only", "memory_included", "total"]
_MEASURED = {
    "compute_only": "by arithmetic alone",
    "memory_included": "with memory",
    "total": "of all that has a price",
}
MEASURES: tuple[Measure, ...] = ("compute_only", "memory_included", "total")


@dataclass(frozen=True)
class BreakEven:
    """Where two ways of computing cost the same, at nominal prices.

    Attributes:
        value: mean firing share or spike rate; may exceed 1. None: at none.
        text: the same in words.
    """

    value: float | None
    text: str


def break_even_firing_share(
    counts: Counts, chip: Chip | str | Path, options: RunOptions, *, measure: Measure = "total"
) -> BreakEven:
    """Share of hidden neurons that may fire before the network costs as much as its dense ANN.

    All hidden layers are scaled together, at the same spike times; what the first layer reads stays as it is. A
    simulation's `activity` holds for its own spikes only and is not used here.

    Args:
        counts, chip: as for `estimate`.
        options: of the spiking network.
        measure: which sum of an estimate.
    Raises:
        ValueError: as `estimate` does.
    """
    chip, options = as_chip(chip), replace(options, activity=None)

    def ours(factor: float) -> float | None:
        return _nominal(estimate(counts.firing_more(factor), chip, options), measure)

    target = _nominal(dense_ann(counts, chip, options=options), measure)
    factor = _crossing(ours, target, chip, "the dense ANN", "the network without a spike")
    if isinstance(factor, str):
        return BreakEven(None, f"no break-even firing share: {factor}")
    share = factor * counts.sparsity
    beyond = "at any firing share" if share > 1 else f"below a firing share of {share:.1%} (now {counts.sparsity:.1%})"
    return BreakEven(share, f"{_MEASURED[measure]}, it costs less than the dense ANN {beyond}")


def break_even_rate(
    counts: Counts, chip: Chip | str | Path, options: RunOptions, *, rate_steps: int, measure: Measure = "total"
) -> BreakEven:
    """Spike rate, a neuron and step, at which a rate-coded network of `rate_steps` steps costs as much as ours.

    Args:
        counts, chip: as for `estimate`.
        options: of the spiking network; its prices and widths hold for the rate-coded one too.
        rate_steps: T.
        measure: which sum of an estimate.
    Raises:
        ValueError: as `estimate` does.
    """
    chip = as_chip(chip)
    target = _nominal(estimate(counts, chip, options), measure)

    def rated(rate: float) -> float | None:
        return _nominal(rate_coded(counts, chip, RateCode(rate_steps, rate), options=options), measure)

    rate = _crossing(rated, target, chip, "this network", f"T = {rate_steps} without a spike")
    if isinstance(rate, str):
        return BreakEven(None, f"no break-even rate: {rate}")
    return BreakEven(rate, f"cheaper than rate coding with T = {rate_steps} above {rate:.3g} spikes a neuron and step")


STEPS = (4, 8, 16, 32, 64, 128)
"""Time steps a window at which networks are compared, besides those that were asked for."""

FAIR_CHIP = "lemaire45:int8"
"""Where networks are compared if no chip that was asked for prices the dense ANN with memory and without."""


@dataclass(frozen=True)
class Verdict:
    """What a network costs over its dense ANN on one chip, nominal.

    Attributes:
        chip: its name.
        steps: time steps a window; of a closed form, which has none, empty.
        with_memory, arithmetic: ratio at each of `steps`, or the one of a closed form; empty where the chip does not
            price it, or does not tell it apart.
        asked: place of the steps that were asked for.
        missing: what the network does that has no price there, so that it costs more than the ratios say.
    """

    chip: str
    steps: tuple[int, ...]
    with_memory: tuple[float, ...]
    arithmetic: tuple[float, ...]
    asked: int
    missing: tuple[str, ...] = ()

    @property
    def cheaper(self) -> bool:
        """Whether it costs less with memory and without, at the steps that were asked for. Unknown is no."""
        both = (self.with_memory, self.arithmetic)
        return not self.missing and all(ratios and ratios[self.asked] < 1 for ratios in both)

    def sentences(self) -> list[str]:
        """The same in words, memory first."""
        if not self.with_memory and not self.arithmetic:
            return [f"{self.chip} does not price the dense ANN: nothing is said about which is cheaper."]
        lines = [
            self._line("with memory", self.with_memory, f"{self.chip} prices no memory, which may turn what follows"),
            self._line("by arithmetic alone", self.arithmetic, f"{self.chip} does not tell arithmetic apart"),
        ]
        both = [self.with_memory, self.arithmetic]
        if not all(both):
            return [*lines, "No verdict: it needs prices with memory and without."]
        wins = [all(ratios[place] < 1 for ratios in both) for place in range(len(self.with_memory))]
        if any(wins) and self.missing:
            return [*lines, f"No verdict: {self.chip} has no price for {', '.join(self.missing)}, which comes on top."]
        if all(wins):
            return [*lines, f"Cheaper than the dense ANN, with memory and without{self._at(self.steps)}."]
        if any(wins):
            chosen = [step for step, win in zip(self.steps, wins, strict=True) if win]
            return [*lines, f"Cheaper than the dense ANN, with memory and without, only{self._at(chosen)}."]
        return [*lines, f"Not cheaper than the dense ANN{self._at(self.steps)}."]

    def _line(self, how: str, ratios: Sequence[float], otherwise: str) -> str:
        if not ratios:
            return f"{otherwise[:1].upper()}{otherwise[1:]}."
        text = (
            f"{how[:1].upper()}{how[1:]}, an image costs × {ratio(ratios[self.asked])} of the dense ANN on {self.chip}"
        )
        if len(ratios) > 1:
            text += f" at {self.steps[self.asked]} steps a window, × {ratio(min(ratios))} to {ratio(max(ratios))}"
            text += f" at {self.steps[0]} to {self.steps[-1]}"
        return f"{text}."

    @staticmethod
    def _at(steps: Sequence[int]) -> str:
        if not steps:
            return ""
        span = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
        return f" at {span} steps a window"


def fair_chip(counts: Counts, chips: Sequence[Chip | str | Path], options: RunOptions) -> Chip:
    """The chip of a verdict: the first of several that prices the dense ANN with memory and without, or `FAIR_CHIP`.

    Args:
        counts, options: as for `verdict`.
        chips: what was asked for.
    Raises:
        ValueError: as `dense_ann` does.
    """
    for chip in map(as_chip, chips):
        dense = dense_ann(counts, chip, options=options)
        if _whole(dense, "memory_included") is not None and _whole(dense, "compute_only") is not None:
            return chip
    return load_chip(FAIR_CHIP)


def verdict(counts: Counts, chip: Chip | str | Path, options: RunOptions) -> Verdict:
    """Compare a network with its dense ANN, at the same prices and widths.

    Args:
        counts, chip: as for `estimate`.
        options: of the network; at other steps than these, the neurons' work follows from the counts, not from
            `activity`, which a simulation found at these.
    Raises:
        ValueError: as `estimate` does.
    """
    chip = as_chip(chip)
    if options.implementation == "closed_form" or options.steps is None:
        runs, steps = [options], ()
    else:
        steps = tuple(sorted({*STEPS, options.steps}))
        others = replace(options, activity=None)
        runs = [options if step == options.steps else replace(others, steps=step) for step in steps]
    dense = dense_ann(counts, chip, options=options)
    found = [estimate(counts, chip, run) for run in runs]
    return Verdict(
        chip.name,
        steps,
        _ratios(found, dense, "memory_included"),
        _ratios(found, dense, "compute_only"),
        steps.index(options.steps) if steps and options.steps is not None else 0,
        tuple(dict.fromkeys(term.name for term in found[0].unpriced if term.kind == "compute")),
    )


@dataclass(frozen=True)
class Comparison:
    """A network and its alternatives on one chip.

    Attributes:
        estimates: ours first.
        firing_share, rates: break-even points; `rates` by the T of each rate code.
        verdict: whether ours is cheaper than the dense ANN.
    """

    estimates: tuple[Estimate, ...]
    firing_share: BreakEven
    rates: Mapping[int, BreakEven]
    verdict: Verdict


def compare(
    counts: Counts,
    chip: Chip | str | Path,
    options: RunOptions,
    *,
    ann_counts: Counts | None = None,
    rate_codes: Sequence[RateCode] = (),
    measure: Measure = "total",
    network: str = "network",
) -> Comparison:
    """A spiking network beside its dense ANN, the ANN that skips zeros and rate-coded networks, at the same prices.

    Args:
        counts, chip: as for `estimate`.
        options: of the spiking network.
        ann_counts: of the trained ANN, whose zeros are skipped. Default: the spiking network's.
        rate_codes: rate-coded networks.
        measure: which sum break-even points are of.
        network: name for tables.
    Raises:
        ValueError: as `estimate` and `rate_coded` do.
    """
    chip = as_chip(chip)
    estimates = [
        estimate(counts, chip, options, network=network),
        dense_ann(ann_counts or counts, chip, options=options, network=network),
        zero_skipping_ann(ann_counts or counts, chip, options=options, network=network),
        *(rate_coded(counts, chip, code, options=options, network=network) for code in rate_codes),
    ]
    return Comparison(
        tuple(estimates),
        break_even_firing_share(counts, chip, options, measure=measure),
        {
            code.steps: break_even_rate(counts, chip, options, rate_steps=code.steps, measure=measure)
            for code in rate_codes
        },
        verdict(counts, chip, options),
    )


@dataclass(frozen=True)
class Published:
    """Energy of a whole processor that others report for a network with one spike a neuron.

    Attributes:
        network, data: what was run.
        energy_uj: microjoules a sample.
        conditions, source: which processor; where it was published.
    """

    network: str
    data: str
    energy_uj: float
    conditions: str
    source: str


_LEW = "Lew, Lee and Park, DAC 2022 (arXiv 2208.04494)"
PUBLISHED: tuple[Published, ...] = (
    Published("VGG16", "CIFAR-10", 486.7, "28 nm, 5-bit logarithmic weights", _LEW),
    Published("VGG16", "CIFAR-100", 503.6, "28 nm, 5-bit logarithmic weights", _LEW),
)
"""To put beside an estimate."""


def _crossing(
    line: Callable[[float], float | None], target: float | None, chip: Chip, other: str, fixed: str
) -> float | str:
    """Where a straight line, known at 0 and 1, meets the target; if it does not at or above 0, why not, in words."""
    start, end = line(0.0), line(1.0)
    if target is None or start is None or end is None:
        return f"{chip.name} has no price for {other if target is None else 'what spikes do'}"
    if target < start:
        return f"{fixed} costs {energy(start)}, more than {other} at {energy(target)}"
    return (target - start) / (end - start) if end > start else f"spikes cost nothing on {chip.name}"


def _nominal(found: Estimate, measure: Measure) -> float | None:
    if measure not in MEASURES:
        raise ValueError(f"break_even: measure must be one of {', '.join(MEASURES)}; got {measure}.")
    amount = getattr(found, measure)
    return None if amount is None else amount.nominal


def _ratios(found: Sequence[Estimate], dense: Estimate, measure: str) -> tuple[float, ...]:
    """Ours over the dense ANN's; empty if either is not known."""
    theirs = _whole(dense, measure)
    ours = [getattr(each, measure) for each in found]
    if not theirs or any(each is None for each in ours):
        return ()
    return tuple(each.nominal / theirs for each in ours)


def _whole(dense: Estimate, measure: str) -> float | None:
    """Nominal pJ of a dense ANN; None if a part of it has no price: what is left is no opponent."""
    kinds = ("compute",) if measure == "compute_only" else ("compute", "memory")
    amount = getattr(dense, measure)
    if amount is None or any(term.kind in kinds for term in dense.unpriced):
        return None
    return amount.nominal
