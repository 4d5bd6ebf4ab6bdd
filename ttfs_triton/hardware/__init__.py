"""Costs of a trained network on a chip: exact counts, energy estimates with stated assumptions, a simulator."""

from ttfs_triton.hardware.counts.counter import count, counting
from ttfs_triton.hardware.counts.counts import Counts, InputCounts, LayerActivity, LayerCounts
from ttfs_triton.hardware.energy.chip import Capacity, Chip, Memory, available_chips, load_chip
from ttfs_triton.hardware.energy.compare import (
    BreakEven,
    Comparison,
    Verdict,
    break_even_firing_share,
    compare,
    fair_chip,
    verdict,
)
from ttfs_triton.hardware.energy.estimate import Estimate, Run, RunOptions, Term
from ttfs_triton.hardware.energy.models import dense_ann, estimate, zero_skipping_ann
from ttfs_triton.hardware.energy.prices import Price, Range
from ttfs_triton.hardware.simulation.simulation import Simulation, SimulationSettings, simulated_run
from ttfs_triton.hardware.simulation.simulator import simulate, simulate_at

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
    "Run",
    "RunOptions",
    "Simulation",
    "SimulationSettings",
    "Term",
    "Verdict",
    "available_chips",
    "break_even_firing_share",
    "compare",
    "count",
    "counting",
    "dense_ann",
    "estimate",
    "fair_chip",
    "load_chip",
    "simulate",
    "simulate_at",
    "simulated_run",
    "verdict",
    "zero_skipping_ann",
]
