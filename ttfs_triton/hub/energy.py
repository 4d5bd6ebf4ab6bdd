"""The table of energies on a model card, and its verdict: of the counts of a run, which was not simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttfs_triton.hardware import Counts, Estimate, RunOptions, dense_ann, estimate, fair_chip, load_chip, verdict
from ttfs_triton.report.energy_tables import not_in_it
from ttfs_triton.wording import energy_range

# Of a card's table: the same arithmetic with memory and without, then chips that price synaptic operations.
CARD_CHIPS = ("lemaire45:int8", "horowitz45:int8", "anp_i", "odin", "loihi")
CARD_STEPS = 32
CARD_HEADERS = (
    "chip",
    "with memory",
    "dense ANN with memory",
    "by arithmetic alone",
    "dense ANN by arithmetic alone",
    "all that has a price",
    "weakest price",
    "excluded: no published price, or no count (why)",
)


@dataclass(frozen=True)
class CardRow:
    """Energy of an image on one chip, for a card.

    Attributes:
        estimate: clock-driven.
        cells: by `CARD_HEADERS`; the dense ANN is on the same chip.
        lines: what the figures depend on and what speaks against them, in sentences.
    """

    estimate: Estimate
    cells: tuple[str, ...]
    lines: tuple[str, ...]


def card_rows(counts: Counts, chips: Sequence[str] = CARD_CHIPS, steps: int = CARD_STEPS) -> list[CardRow]:
    """Estimate on each chip.

    Args:
        counts: of a spiking network.
        chips: what `load_chip` takes.
        steps: time steps a window.
    Raises:
        ValueError: an unknown chip.
    """
    options, rows = RunOptions(steps=steps, gating=True), []
    for chip in map(load_chip, chips):
        found, dense = estimate(counts, chip, options), dense_ann(counts, chip, options=options)
        sums = (found.memory_included, dense.memory_included, found.compute_only, dense.compute_only, found.total)
        cells = (chip.name, *map(energy_range, sums), found.status or "–", not_in_it(found))
        rows.append(CardRow(found, cells, (*found.assumptions, *found.warnings)))
    return rows


def card_verdict(counts: Counts, chips: Sequence[str] = CARD_CHIPS, steps: int = CARD_STEPS) -> list[str]:
    """Whether the network is cheaper than its dense ANN, in the sentences of terminal and page.

    Args, Raises: as for `card_rows`.
    """
    options = RunOptions(steps=steps, gating=True)
    return verdict(counts, fair_chip(counts, chips, options), options).sentences()
