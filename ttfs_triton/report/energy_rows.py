"""The energy table of a card: exact counts times published prices, on a few chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttfs_triton.hardware import Counts, RunOptions, dense_ann, estimate_with, load_chip
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.report.energy_tables import format_range

CHIPS = ("anp_i", "lemaire45:int8", "odin", "loihi")
STEPS = 32


@dataclass(frozen=True)
class EnergyRow:
    """Energy of an image on one chip, in words.

    Attributes:
        chip: its name.
        total: all terms that have a price.
        compute, memory: arithmetic alone, and with memory traffic; "–" where prices do not tell them apart.
        dense_ann: the same network as a dense ANN on the same chip.
        status: the weakest of the prices' ("measured", "modelled", ...).
        unpriced: names of the terms that are in no sum.
        assumptions: what the figures depend on and what speaks against them, in sentences.
    """

    chip: str
    total: str
    compute: str
    memory: str
    dense_ann: str
    status: str
    unpriced: tuple[str, ...]
    assumptions: tuple[str, ...]


def energy_rows(counts: Counts, network: NetworkConfig, chips: Sequence[str] = CHIPS) -> list[EnergyRow]:
    """Estimate on each chip, clock-driven.

    Args:
        counts: of a spiking network.
        network: its configuration.
        chips: what `load_chip` takes.
    Raises:
        ValueError: an unknown chip.
    """
    sigma = network.neuron.psp_persistence
    options = RunOptions(steps=STEPS, gating=True, psp_persistence=sigma, readout=network.readout)
    rows = []
    for name in chips:
        chip = load_chip(name)
        report, dense = estimate_with(counts, chip, options), dense_ann(counts, chip, options=options)
        rows.append(
            EnergyRow(
                chip=chip.name,
                total=format_range(report.total),
                compute=format_range(report.compute_only),
                memory=format_range(report.memory_included),
                dense_ann=format_range(dense.total),
                status=report.status or "–",
                unpriced=tuple(dict.fromkeys(term.name for term in report.unpriced)),
                assumptions=(*report.assumptions, *report.warnings),
            )
        )
    return rows
