"""Sweep over time steps and weight bits: one simulation of a trained network for each pair."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import nn

from ttfs_triton.hardware.simulation.simulation import Simulation, SimulationSettings
from ttfs_triton.hardware.simulation.simulator import simulate_at

Price = Callable[[Simulation], float | None]


@dataclass(frozen=True)
class SweepRow:
    """Figures of one simulation, as means over the samples.

    Attributes:
        steps: time steps of a window.
        weight_bits: bits of a weight; None if weights are not quantised.
        accuracy, first_spike_accuracy: shares of correct samples; None without labels.
        spikes, synaptic_operations: spikes of the hidden layers, operations of all layers.
        latency_steps: steps from the image's start to the first output spike.
        ties: share of samples in which several output neurons fire in the earliest step.
        energy_pj: energy that `price` returned; None without `price`.
    """

    steps: int
    weight_bits: int | None
    accuracy: float | None
    first_spike_accuracy: float | None
    spikes: float
    synaptic_operations: float
    latency_steps: float
    ties: float
    energy_pj: float | None


@dataclass(frozen=True)
class Sweep:
    """Rows of a sweep, ordered by weight bits, then steps.

    Attributes:
        samples: number of samples in each simulation.
        rows: one row for each pair of weight bits and steps.
        chip: name of the chip for which energies were computed; None without energies.
    """

    samples: int
    rows: tuple[SweepRow, ...]
    chip: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {"samples": self.samples, "chip": self.chip, "rows": [dataclasses.asdict(row) for row in self.rows]}


def sweep(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: Sequence[int] = (4, 8, 16, 32, 64, 128),
    weight_bits: Sequence[int | None] = (2, 3, 4, 6, 8, 16),
    price: Price | None = None,
    chip: str | None = None,
    **options: Any,
) -> Sweep:
    """Simulate a network at every pair of time steps and weight bits, with registers as wide as needed.

    Args:
        model: as in `simulate`.
        batches: as in `simulate`, but repeatable: a list or a DataLoader, not a generator.
        steps: numbers of time steps of a window.
        weight_bits: bits of a weight, 2 to 16, or None for unquantised weights.
        price: function from a simulation to the energy of a sample in picojoules; None where a price is missing.
        chip: name of the chip that `price` assumes, for tables and pictures.
        options: `gating`, `faults`, `seed` and `per_channel` (here True unless given), as in `simulate`.
    Returns:
        One row for each pair.
    Raises:
        ValueError: `steps` or `weight_bits` is empty; or an error of `simulate`, which finds no samples on the second
            pass over a generator.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> batches = [(torch.rand(4, 1, 28, 28), torch.arange(4))]
        >>> found = sweep(cnn1(), batches, steps=(4, 8), weight_bits=(3, 8))
        >>> [(row.weight_bits, row.steps) for row in found.rows]
        [(3, 4), (3, 8), (8, 4), (8, 8)]
    """
    options = {"per_channel": True} | options
    for number, bits in product(steps, weight_bits):
        SimulationSettings(number, bits, **options)  # refused before the first simulation
    rows, samples = [], 0
    for bits in weight_bits:
        for found in simulate_at(model, batches, steps, weight_bits=bits, state_bits=None, **options):
            samples, layers = found.samples, found.counts.layers
            rows.append(
                SweepRow(
                    steps=found.settings.steps,
                    weight_bits=bits,
                    accuracy=found.accuracy,
                    first_spike_accuracy=found.first_spike_accuracy,
                    spikes=sum(layer.spikes for layer in layers if layer.kind != "readout") / samples,
                    synaptic_operations=sum(layer.synaptic_operations for layer in layers) / samples,
                    latency_steps=found.mean_latency_steps,
                    ties=found.ties / samples,
                    energy_pj=None if price is None else price(found),
                )
            )
    if not rows:
        raise ValueError("sweep: steps and weight_bits must not be empty; got nothing to sweep over.")
    return Sweep(samples, tuple(rows), chip)
