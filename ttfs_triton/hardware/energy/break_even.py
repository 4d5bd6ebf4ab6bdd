"""Where two ways of computing a network cost the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.alternatives import RateCode, dense_ann, rate_coded
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.chip_files import as_chip
from ttfs_triton.hardware.energy.energy import averages, spiking_report
from ttfs_triton.hardware.energy.prices import Range
from ttfs_triton.hardware.energy.report import Report
from ttfs_triton.hardware.energy.run_options import RunOptions

Measure = Literal["compute_only", "memory_included", "total"]
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
        measure: which sum of a report.
    Raises:
        ValueError: as `estimate` does.
    """
    chip, layers = as_chip(chip), averages(counts)
    input_spikes = counts.input.spikes / counts.samples
    options = replace(options, activity=None)

    def ours(factor: float) -> float | None:
        scaled = [layer.fired_more(factor) for layer in layers]
        return _nominal(spiking_report("network", scaled, input_spikes, chip, options, counts.samples), measure)

    target = _nominal(dense_ann(counts, chip, options=options), measure)
    factor = _crossing(ours, target)
    if factor is None:
        return BreakEven(None, "no firing share: a price is missing, or what does not depend on spikes costs more")
    share = factor * counts.sparsity
    beyond = "at any firing share" if share > 1 else f"below a firing share of {share:.1%} (now {counts.sparsity:.1%})"
    return BreakEven(share, f"cheaper than the dense ANN {beyond}")


def break_even_rate(
    counts: Counts, chip: Chip | str | Path, options: RunOptions, *, rate_steps: int, measure: Measure = "total"
) -> BreakEven:
    """Spike rate, a neuron and step, at which a rate-coded network of `rate_steps` steps costs as much as ours.

    Args:
        counts, chip: as for `estimate`.
        options: of the spiking network; its prices and widths hold for the rate-coded one too.
        rate_steps: T.
        measure: which sum of a report.
    Raises:
        ValueError: as `estimate` does.
    """
    chip = as_chip(chip)
    layers, input_spikes = averages(counts), counts.input.spikes / counts.samples
    target = _nominal(spiking_report("network", layers, input_spikes, chip, options, counts.samples), measure)

    def rated(rate: float) -> float | None:
        return _nominal(rate_coded(counts, chip, RateCode(rate_steps, rate), options=options), measure)

    rate = _crossing(rated, target)
    if rate is None:
        return BreakEven(None, f"no rate: a price is missing, or T = {rate_steps} costs more without a spike")
    return BreakEven(rate, f"cheaper than rate coding with T = {rate_steps} above {rate:.3g} spikes a neuron and step")


def _crossing(line: Callable[[float], float | None], target: float | None) -> float | None:
    """Where a straight line, known at 0 and 1, meets the target; None if it does not at or above 0."""
    start, end = line(0.0), line(1.0)
    if start is None or end is None or target is None or not end > start or target < start:
        return None
    return (target - start) / (end - start)


def _nominal(report: Report, measure: Measure) -> float | None:
    if measure not in MEASURES:
        raise ValueError(f"break_even: measure must be one of {', '.join(MEASURES)}; got {measure}.")
    amount: Range | None = getattr(report, measure)
    return None if amount is None else amount.nominal
