"""What a point of a frontier costs: exact counts of its network, and their prices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ttfs_triton.hardware import Counts, Range, RunOptions, dense_ann, estimate, verdict
from ttfs_triton.report.frontier_table import ChipEnergy, FrontierRow


def with_costs(row: FrontierRow, counts: Counts, chips: Iterable[str], steps: int) -> FrontierRow:
    """The row with what its counts say, and cost.

    Args:
        row: of a network.
        counts: of the same, over the test images.
        chips: to price on.
        steps: time steps a window.
    Raises:
        ValueError: an unknown chip.
    """
    total, samples = counts.total(), counts.samples
    return replace(
        row,
        sparsity=counts.sparsity,
        spikes=sum(layer.spikes for layer in counts.layers if layer.kind != "readout") / samples,
        synaptic_operations=total["synaptic_operations"] / samples,
        dense_macs=total["dense_macs"] / samples,
        steps=steps,
        energy=tuple(chip_energy(counts, chip, steps, fixed=row.time_steps is not None) for chip in chips),
    )


def chip_energy(counts: Counts, chip: str, steps: int, *, fixed: bool) -> ChipEnergy:
    """Energy of an image on a chip, of neurons that rest behind their spikes, and of the dense ANN.

    Args:
        counts: of a network.
        chip: as of `estimate`.
        steps: time steps a window.
        fixed: whether the network runs at so many alone.
    """
    options = RunOptions(steps=steps, gating=True)
    found, dense = estimate(counts, chip, options), dense_ann(counts, chip, options=options)
    compared = verdict(counts, chip, options)
    ratios = compared.with_memory
    if fixed and ratios:
        ratios = (ratios[compared.asked],)
    return ChipEnergy(
        found.chip.name,
        _microjoules(found.total),
        _microjoules(found.memory_included),
        _microjoules(found.compute_only),
        _microjoules(dense.memory_included),
        _microjoules(dense.compute_only),
        min(ratios, default=None),
        max(ratios, default=None),
        ", ".join(compared.missing),
    )


def _microjoules(energy: Range | None) -> float | None:
    return None if energy is None else energy.nominal * 1e-6
