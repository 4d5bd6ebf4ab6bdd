"""A spiking network beside its alternatives, on the same chip and so at the same node and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.alternatives import RateCode, dense_ann, rate_coded, zero_skipping_ann
from ttfs_triton.hardware.energy.break_even import BreakEven, Measure, break_even_firing_share, break_even_rate
from ttfs_triton.hardware.energy.chip import Chip
from ttfs_triton.hardware.energy.chip_files import as_chip
from ttfs_triton.hardware.energy.energy import estimate_with
from ttfs_triton.hardware.energy.report import Report
from ttfs_triton.hardware.energy.run_options import RunOptions


@dataclass(frozen=True)
class Comparison:
    """A network and its alternatives on one chip.

    Attributes:
        reports: ours first.
        firing_share, rates: break-even points; `rates` by the T of each rate code.
    """

    reports: tuple[Report, ...]
    firing_share: BreakEven
    rates: Mapping[int, BreakEven]


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
    reports = [
        estimate_with(counts, chip, options, network=network),
        dense_ann(ann_counts or counts, chip, options=options, network=network),
        zero_skipping_ann(ann_counts or counts, chip, options=options, network=network),
        *(rate_coded(counts, chip, code, options=options, network=network) for code in rate_codes),
    ]
    return Comparison(
        tuple(reports),
        break_even_firing_share(counts, chip, options, measure=measure),
        {
            code.steps: break_even_rate(counts, chip, options, rate_steps=code.steps, measure=measure)
            for code in rate_codes
        },
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
