"""Energy of a spiking network beside ANNs on the same chip, at the same prices and precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ttfs_triton.energy.chip import Chip, load_chip
from ttfs_triton.energy.counts import Counts
from ttfs_triton.energy.estimate import Estimate, Run, RunOptions
from ttfs_triton.energy.models import dense_ann, estimate, zero_skipping_ann
from ttfs_triton.wording import energy, ratio

# Time steps per window at which networks are compared, in addition to the steps that the user asks for.
STEPS = (4, 8, 16, 32, 64, 128)
# Chip of a comparison if none of the user's chips prices a network and its dense ANN, with memory and without.
FAIR_CHIP = "lemaire45:int8"


class BreakEven(NamedTuple):
    """The firing share at which a network costs as much as its dense ANN, at nominal prices."""

    value: float | None
    """Mean firing share; may exceed 1. None if the network costs more without any spike, or no hidden neuron fires."""
    text: str
    """The break-even point in words."""


def break_even_firing_share(counts: Counts, chip: Chip | str | Path, options: RunOptions) -> BreakEven:
    """Share of hidden neurons that may fire before the network costs as much as its dense ANN, memory included.

    The spikes of all hidden layers are scaled by one factor and keep their times; the first layer's inputs stay.

    Args:
        counts, chip, options: as in `estimate`; `options.activity` is ignored, because it is that of other spikes.
    Raises:
        ValueError: the chip does not price both, with memory and without.
    """
    options, none = replace(options, activity=None), "no break-even activity"
    if not counts.sparsity > 0:
        return BreakEven(None, f"{none}: no hidden neuron fires")
    silent, firing = (estimate(counts.firing_more(factor), chip, options) for factor in (0.0, 1.0))
    compared = (dense_ann(counts, chip, options=options), silent, firing)
    dense, start, end = _with_memory_and_without("break_even_firing_share", *compared)[0]
    if dense < start:
        costs = f"the network without a spike costs {energy(start)}, more than the dense ANN at {energy(dense)}"
        return BreakEven(None, f"{none}: {costs}")
    share = counts.sparsity * (dense - start) / (end - start) if end > start else math.inf
    beyond = "at any activity" if share > 1 else f"below an activity of {share:.3f} (now {counts.sparsity:.3f})"
    return BreakEven(share, f"with memory, it costs less than the dense ANN {beyond}")


def _with_memory_and_without(function: str, *estimates: Estimate) -> tuple[list[float], list[float]]:
    """Nominal pJ of the estimates, with memory and by arithmetic alone; ValueError if a term has no price."""
    with_memory, alone = ([getattr(one, key) for one in estimates] for key in ("memory_included", "compute_only"))
    unpriced = any(term.kind in ("compute", "memory") for one in estimates for term in one.unpriced)
    if unpriced or None in (*with_memory, *alone):
        rule = "chip must price a network and its dense ANN, with memory and without"
        raise ValueError(f"{function}: {rule}; got {estimates[0].chip.name}. `fair_chip` chooses one that does.")
    return [amount.nominal for amount in with_memory], [amount.nominal for amount in alone]


@dataclass(frozen=True)
class Verdict:
    """Ratios of a network's energy to its dense ANN's on one chip, at nominal prices.

    Attributes:
        chip: the chip's name.
        steps: numbers of time steps per window.
        with_memory, arithmetic: ratios at these numbers of steps, memory included, and of arithmetic alone.
        asked: index in `steps` of the steps that the user asked for.
        bound: whether ratios are upper bounds, because the neurons' work is computed from counts.
    """

    chip: str
    steps: tuple[int, ...]
    with_memory: tuple[float, ...]
    arithmetic: tuple[float, ...]
    asked: int
    bound: bool = False

    @property
    def cheaper(self) -> bool:
        """Whether the network costs less, both with memory and without, at the steps that the user asked for."""
        return max(self.with_memory[self.asked], self.arithmetic[self.asked]) < 1

    def sentences(self) -> list[str]:
        """The ratios and the verdict in sentences: the ratio with memory first, the verdict last."""
        lines = [self._line("With memory", self.with_memory), self._line("By arithmetic alone", self.arithmetic)]
        if self.bound:
            lines.append("These are upper bounds: the neurons' work is computed from counts.")
        wins = [max(pair) < 1 for pair in zip(self.with_memory, self.arithmetic, strict=True)]
        chosen = [step for step, win in zip(self.steps, wins, strict=True) if win or not any(wins)]
        where = f" at {' to '.join(str(step) for step in dict.fromkeys([chosen[0], chosen[-1]]))} steps a window"
        if not any(wins):
            return [*lines, f"Not cheaper than the dense ANN{where}."]
        only = "" if all(wins) else ", only"
        return [*lines, f"Cheaper than the dense ANN, with memory and without{only}{where}."]

    def _line(self, how: str, ratios: Sequence[float]) -> str:
        text = f"{how}, inference costs {ratio(ratios[self.asked])}× the dense ANN on {self.chip}"
        text += f" at {self.steps[self.asked]} steps a window"
        if len(ratios) > 1:
            text += f", {ratio(min(ratios))}× to {ratio(max(ratios))}× at {self.steps[0]} to {self.steps[-1]}"
        return f"{text}."


def fair_chip(counts: Counts, chips: Sequence[Chip | str | Path], options: RunOptions) -> Chip:
    """The first chip that prices network and dense ANN with memory and without, or `FAIR_CHIP` if none does."""
    for chip in map(load_chip, chips):
        try:
            compared = dense_ann(counts, chip, options=options), estimate(counts, chip, options)
            _with_memory_and_without("fair_chip", *compared)
        except ValueError:
            continue
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
    Raises:
        ValueError: the chip does not price both, with memory and without; `fair_chip` chooses one that does.
    """
    chip = load_chip(chip)
    if others is None:
        others = [Run(counts, replace(options, steps=number, activity=None)) for number in STEPS]
    by_steps = {run.options.steps: run for run in (*others, Run(counts, options))}
    steps = tuple(sorted(by_steps))
    runs = [by_steps[number] for number in steps]
    estimates = (estimate(run.counts, chip, run.options) for run in runs)
    sums = _with_memory_and_without("verdict", dense_ann(counts, chip, options=options), *estimates)
    with_memory, arithmetic = (tuple(network / dense for network in networks) for dense, *networks in sums)
    bound = any(run.options.gating and run.options.activity is None for run in runs)
    return Verdict(chip.name, steps, with_memory, arithmetic, steps.index(options.steps), bound)


class Comparison(NamedTuple):
    """A network and ANNs compared on one chip."""

    estimates: tuple[Estimate, ...]
    """Energies of the spiking network, its dense ANN and its zero-skipping ANN."""
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
    Raises:
        ValueError: as `verdict` raises it.
    """
    chip = load_chip(chip)
    estimates = (
        estimate(counts, chip, options, network=network),
        dense_ann(counts, chip, options=options, network=network),
        zero_skipping_ann(counts, chip, options=options, network=network),
    )
    lines, share = verdict(counts, chip, options, others).sentences(), break_even_firing_share(counts, chip, options)
    return Comparison(estimates, (*lines, f"{share.text[:1].upper()}{share.text[1:]}."))
