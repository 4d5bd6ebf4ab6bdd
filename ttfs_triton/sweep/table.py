"""Table of a sweep: one row for each point with its accuracy and costs; written as CSV and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.commands.sweep import GRID
from ttfs_triton.energy import Run, dense_ann, estimate, verdict
from ttfs_triton.nn import Grid
from ttfs_triton.wording import csv_text

FORMAT = 1
FREE = "free"
"""Name of the point at which the network is measured as given, without training."""
Kind = Literal["network", "faults", "deadline"]
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

    @classmethod
    def of(cls, runs: Sequence[Run], chip: str) -> ChipEnergy:
        """Energy on one chip, by name or path: of the first run, and its ratios to the dense ANN over all runs."""
        (counts, options), others = runs[0], runs[1:]
        found, dense = estimate(counts, chip, options), dense_ann(counts, chip, options=options)
        compared = verdict(counts, chip, options, others)
        sums = (found.total, found.memory_included, found.compute_only, dense.memory_included, dense.compute_only)
        return cls(
            found.chip.name,
            *(None if amount is None else amount.nominal * 1e-6 for amount in sums),
            least_ratio=min(compared.with_memory, default=None),
            most_ratio=max(compared.with_memory, default=None),
            missing=", ".join(compared.missing),
        )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FrontierRow:
    """Figures of a network at one point.

    Attributes:
        network: name of the network that the sweep started from.
        point: "free" for the network as given, or the point's KEY=VALUE+KEY=VALUE.
        kind: "network": evaluated normally; "faults": simulated on a faulty chip; "deadline": decided by a deadline.
        trained: False if the network was only calibrated for the point. The free network counts as trained.
        images: number of test images; 0 before the network is scored.
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
    kind: Kind = "network"
    trained: bool = True
    images: int = 0
    accuracy: float = 0.0
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
        """A row of a network with its grid."""
        own: dict[str, Any] = {} if grid is None else {key: getattr(grid, key) for key in GRID}
        return cls(network=network, point=point, **own, **more)

    def flat(self) -> dict[str, Any]:
        """The row as cells of a CSV table by column; each energy has a column "CHIP: SUM_uj"."""
        cells = dataclasses.asdict(self)
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


def write_table(folder: Path, name: str, rows: Sequence[FrontierRow], about: Mapping[str, Any]) -> None:
    """Write NAME.csv, and NAME.json with `about` (machine, versions, ...) in it; each file atomically.

    `FrontierRow(**values)` makes a row of NAME.json again.
    """
    write_text(folder / f"{name}.csv", csv_text([row.flat() for row in rows]))
    write_json(folder / f"{name}.json", {"format": FORMAT, **about, "rows": [dataclasses.asdict(row) for row in rows]})
