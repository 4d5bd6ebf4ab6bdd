"""Costs of a trained network on a chip: exact counts, and energy estimates with stated assumptions.

network → `count` → `Counts` → `estimate` with the prices of a `Chip` → `Estimate` → `verdict`: the network's operations
for an image, their energy, and whether the dense ANN needs more.
"""

from ttfs_triton.energy.chip import Capacity, Chip, Memory, Price, Range, available_chips, load_chip
from ttfs_triton.energy.compare import (
    BreakEven,
    Comparison,
    Verdict,
    break_even_firing_share,
    compare,
    fair_chip,
    verdict,
)
from ttfs_triton.energy.counter import count, counting
from ttfs_triton.energy.counts import Counts, InputCounts, LayerActivity, LayerCounts
from ttfs_triton.energy.estimate import Estimate, Run, RunOptions, Term
from ttfs_triton.energy.models import dense_ann, estimate, zero_skipping_ann
from ttfs_triton.energy.rate_coded import RateCodedCounts, count_rate_coded, estimate_rate_coded

__all__ = [
    "BreakEven",
    "Capacity",
    "Chip",
    "Comparison",
    "Counts",
    "Estimate",
    "InputCounts",
    "LayerActivity",
    "LayerCounts",
    "Memory",
    "Price",
    "Range",
    "RateCodedCounts",
    "Run",
    "RunOptions",
    "Term",
    "Verdict",
    "available_chips",
    "break_even_firing_share",
    "compare",
    "count",
    "count_rate_coded",
    "counting",
    "dense_ann",
    "estimate",
    "estimate_rate_coded",
    "fair_chip",
    "load_chip",
    "verdict",
    "zero_skipping_ann",
]
