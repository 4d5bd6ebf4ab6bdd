"""Table of a sweep: one row for each point with its accuracy and costs; written as CSV and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.hardware import Counts, Run, dense_ann, estimate, verdict
from ttfs_triton.nn import Grid
from ttfs_triton.shared_options import FaultOptions
from ttfs_triton.wording import csv_text

FORMAT = 1
FREE = "free"
"""Name of the point at which the network is measured as given, without training."""
Kind = Literal["network", "faults", "deadline"]
FAULTS = tuple(FaultOptions.model_fields)
_STRICT = ConfigDict(extra="forbid")  # measurements come from a cache


@dataclass(frozen=True, config=_STRICT)
class ChipEnergy:
    """Energy of an image on a chip, microjoules at nominal prices; None if the chip has no separate price for it.

    The energy is of a simulation on the test images, priced as in `ttfs evaluate`.

    Attributes:
        total, with_memory, arithmetic: sum of all priced terms, of arithmetic and memory, and of arithmetic alone.
        dense_with_memory, dense_arithmetic: the same sums for the dense ANN, at the same precision.
        least_ratio, most_ratio: lowest and highest ratio to the dense ANN with memory, over 4 to 128 time steps a
            window; for a network on a grid, the ratio at the grid's steps.
        missing: operations of the network that have no price on the chip; they cost extra.
    """

    chip: str
    total: float | None
    with_memory: float | None
    arithmetic: float | None
    dense_with_memory: float | None
    dense_arithmetic: float | None
    least_ratio: float | None = None
    most_ratio: float | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FrontierRow:
    """Figures of a network at one point.

    Attributes:
        network: name of the network that the sweep started from.
        point: "free" for the network as given, or the point's KEY=VALUE+KEY=VALUE.
        kind: "network": evaluated normally; "faults": simulated on a faulty chip; "deadline": decided by a deadline.
        trained: False if the network was only calibrated for the point. The free network counts as trained.
        images: number of test images.
        accuracy, first_spike_accuracy: share of correct images by the readout, and by the earliest spike; at a
            deadline, images without a spike are decided by potentials.
        validation_accuracy: accuracy of the epoch that was kept, on validation images; None if not trained here.
        target, goal, cost, reached: kind of the target, its goal, the cost on the test images, and whether the cost is
            within the tolerance. With several goals, the goal that is missed most.
        time_steps, weight_bits, state_bits: grid of the network; None without a grid.
        spike_jitter, weight_noise, dead_neurons, stuck_neurons, lost_spikes: faults of the simulation, not of training.
        deadline, decision_time: deadline and mean decision time, in windows from the image's start.
        same_decisions: number of images on which network and simulator decide alike; None without a grid.
        sparsity: hidden spikes over hidden neurons.
        spikes, synaptic_operations, dense_macs: means for an image.
        steps: time steps a window at which the network is simulated and priced.
        energy: energy on each chip.
        epochs: epochs of the point's training; None without training.
        weights_sha256: checksum of the weights' file; for a calibrated network, of the original's file.
        folder: folder of the point's run, inside the sweep's folder.
        device, date: device and date of the measurement.
    """

    network: str
    point: str
    kind: Kind
    trained: bool
    images: int
    accuracy: float
    first_spike_accuracy: float | None = None
    validation_accuracy: float | None = None
    target: str | None = None
    goal: float | None = None
    cost: float | None = None
    reached: bool | None = None
    time_steps: int | None = None
    weight_bits: int | None = None
    state_bits: int | None = None
    spike_jitter: float = 0.0
    weight_noise: float = 0.0
    dead_neurons: float = 0.0
    stuck_neurons: float = 0.0
    lost_spikes: float = 0.0
    deadline: float | None = None
    decision_time: float | None = None
    same_decisions: int | None = None
    sparsity: float | None = None
    spikes: float | None = None
    synaptic_operations: float | None = None
    dense_macs: float | None = None
    steps: int | None = None
    energy: tuple[ChipEnergy, ...] = ()
    epochs: int | None = None
    weights_sha256: str = ""
    folder: str | None = None
    device: str = ""
    date: str = ""

    @classmethod
    def of(cls, network: str, point: str, grid: Grid | None, **more: Any) -> FrontierRow:
        """A row of a network that has not been scored yet; `trained` is True unless given."""
        row = cls(
            network=network, point=point, **{"kind": "network", "trained": True, "images": 0, "accuracy": 0.0} | more
        )
        if grid is None:
            return row
        return replace(row, time_steps=grid.time_steps, weight_bits=grid.weight_bits, state_bits=grid.state_bits)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values; `FrontierRow(**values)` makes the row again."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """The row as cells of a CSV table by column; each energy has a column "CHIP: SUM_uj"."""
        cells = self.to_dict()
        for amounts in cells.pop("energy"):
            chip = amounts.pop("chip")
            cells |= {f"{chip}: {what}{'' if 'ratio' in what else '_uj'}": amount for what, amount in amounts.items()}
        return cells

    def on_chip(self, chip: str | None) -> ChipEnergy | None:
        """The energy on the chip with this name; None if there is none."""
        return next((each for each in self.energy if each.chip == chip), None)

    def picojoules(self, chip: str | None, measure: str) -> float | None:
        """An energy on a chip in pJ, by its name in `ChipEnergy`; None if it is unknown."""
        found = self.on_chip(chip)
        amount = None if found is None else getattr(found, measure)
        return None if amount is None else amount * 1e6

    def over_dense(self, chip: str | None, measure: str) -> float | None:
        """Ratio of the energy on a chip to the dense ANN's; `measure` is "with_memory" or "arithmetic"."""
        own, dense = self.picojoules(chip, measure), self.picojoules(chip, f"dense_{measure}")
        return own / dense if own is not None and dense else None


def with_costs(row: FrontierRow, counts: Counts, runs: Sequence[Run], chips: Iterable[str]) -> FrontierRow:
    """The row with the network's spikes, operations and energies.

    Args:
        row, counts: row and counts of the network on the test images.
        runs: simulations on the same images, for energies; the first is at the row's steps.
        chips: names or paths of the chips to price on.
    """
    total, samples = counts.total(), counts.samples
    return replace(
        row,
        sparsity=counts.sparsity,
        spikes=sum(layer.spikes for layer in counts.layers if layer.kind != "readout") / samples,
        synaptic_operations=total["synaptic_operations"] / samples,
        dense_macs=total["dense_macs"] / samples,
        steps=runs[0].options.steps,
        energy=tuple(_chip_energy(runs, chip) for chip in chips),
    )


def _chip_energy(runs: Sequence[Run], chip: str) -> ChipEnergy:
    """Energy of an image on one chip, and ratios to the dense ANN over all runs."""
    (counts, options), others = runs[0], runs[1:]
    found, dense = estimate(counts, chip, options), dense_ann(counts, chip, options=options)
    compared = verdict(counts, chip, options, others)
    sums = (found.total, found.memory_included, found.compute_only, dense.memory_included, dense.compute_only)
    return ChipEnergy(
        found.chip.name,
        *(None if amount is None else amount.nominal * 1e-6 for amount in sums),
        least_ratio=min(compared.with_memory, default=None),
        most_ratio=max(compared.with_memory, default=None),
        missing=", ".join(compared.missing),
    )


def write_table(folder: Path, name: str, rows: Sequence[FrontierRow], about: Mapping[str, Any]) -> None:
    """Write NAME.csv, and NAME.json with `about` (machine, versions, ...) in it; each file atomically."""
    write_text(folder / f"{name}.csv", csv_text([row.flat() for row in rows]))
    write_json(folder / f"{name}.json", {"format": FORMAT, **about, "rows": [row.to_dict() for row in rows]})
