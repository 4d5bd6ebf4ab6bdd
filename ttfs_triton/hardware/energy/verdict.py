"""Whether a network is cheaper than its dense ANN: with memory and by arithmetic alone, over a range of time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.alternatives import dense_ann
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.chip_files import as_chip, load_chip
from ttfs_triton.hardware.energy.estimate import estimate
from ttfs_triton.hardware.energy.run_options import RunOptions
from ttfs_triton.hardware.energy.terms import Estimate
from ttfs_triton.wording import ratio

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
