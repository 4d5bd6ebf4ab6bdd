"""Sweep over time steps and weight bits: one simulation of a trained network for each pair."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import nn

from ttfs_triton.hardware.simulation.simulation import Simulation, SimulationSettings
from ttfs_triton.hardware.simulation.simulator import simulate

Price = Callable[[Simulation], float]


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
    per_channel: bool = True,
    gating: bool = True,
    price: Price | None = None,
    chip: str | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Simulate a network at every pair of time steps and weight bits.

    Args:
        model, per_channel, gating: as in `simulate`.
        batches: as in `simulate`, but repeatable: a list or a DataLoader, not a generator.
        steps: numbers of time steps of a window.
        weight_bits: bits of a weight, 2 to 16, or None for unquantised weights.
        price: function from a simulation to the energy of a sample in picojoules.
        chip: name of the chip that `price` assumes, for tables and pictures.
        progress: whether to show a progress bar; None shows one on a terminal.
    Returns:
        One row for each pair.
    Raises:
        ValueError: `steps` or `weight_bits` is empty; or an error of `simulate`, which finds no samples on the second
            pass over a generator.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> batches = [(torch.rand(4, 1, 28, 28), torch.arange(4))]
        >>> found = sweep(cnn1(), batches, steps=(4, 8), weight_bits=(3, 8), progress=False)
        >>> [(row.weight_bits, row.steps) for row in found.rows]
        [(3, 4), (3, 8), (8, 4), (8, 8)]
    """
    options: dict[str, Any] = {"per_channel": per_channel, "gating": gating}
    grid = [SimulationSettings(number, bits, **options) for bits in weight_bits for number in steps]
    if not grid:
        raise ValueError("sweep: steps and weight_bits must not be empty; got nothing to sweep over.")
    console, rows, samples = Console(stderr=True, force_terminal=progress or None), [], 0
    shown = console.is_terminal if progress is None else progress
    for settings in track(grid, "steps and bits", console=console, transient=True, disable=not shown):
        found = simulate(
            model, batches, steps=settings.steps, weight_bits=settings.weight_bits, state_bits=None, **options
        )
        samples, layers = found.samples, found.counts.layers
        rows.append(
            SweepRow(
                steps=settings.steps,
                weight_bits=settings.weight_bits,
                accuracy=found.accuracy,
                first_spike_accuracy=found.first_spike_accuracy,
                spikes=sum(layer.spikes for layer in layers if layer.kind != "readout") / samples,
                synaptic_operations=sum(layer.synaptic_operations for layer in layers) / samples,
                latency_steps=found.mean_latency_steps,
                ties=found.ties / samples,
                energy_pj=None if price is None else float(price(found)),
            )
        )
    return Sweep(samples, tuple(rows), chip)
