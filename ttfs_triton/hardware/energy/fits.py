"""Whether a chip holds a network on a grid."""

from __future__ import annotations

from ttfs_triton.hardware.counts.counts import Counts
from ttfs_triton.hardware.energy.chip import Chip


def exceeded(counts: Counts, chip: Chip, weight_bits: int | None) -> list[str]:
    """What of a network a chip does not hold, in words; empty where it holds it, or states nothing.

    Args:
        counts: of the network, over any images.
        chip: whose `capacity` says what fits.
        weight_bits: of a weight; None for weights that are not rounded.
    """
    capacity, lines = chip.capacity, []
    for name in ("neurons", "synapses"):
        there, needed = getattr(capacity, name), sum(getattr(layer, name) for layer in counts.layers)
        if there is not None and needed > there:
            lines.append(f"{needed:,} {name} exceed the {there:,} of {chip.name}")
    if capacity.weight_bits is not None and (weight_bits is None or weight_bits > capacity.weight_bits):
        weights = "weights that are not rounded" if weight_bits is None else f"weights of {weight_bits} bits"
        lines.append(f"{weights} exceed the {capacity.weight_bits} bits of {chip.name}")
    return lines
