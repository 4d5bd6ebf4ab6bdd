"""A sweep: measures every network, trains and measures every point, and keeps results after each step."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ttfs_triton.atomic import write_json
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.data.images import draw_images
from ttfs_triton.evaluation import load_network
from ttfs_triton.frontier.measure import Bench, Found, summary_row
from ttfs_triton.frontier.options import FAULTS, FrontierOptions
from ttfs_triton.frontier.plan import PlannedNetwork, PlannedPoint
from ttfs_triton.hardware import Counts
from ttfs_triton.nn import Grid
from ttfs_triton.nn.faults import Faults
from ttfs_triton.report.frontier_table import FREE, FrontierRow
from ttfs_triton.train import NonFiniteLossError, train
from ttfs_triton.train.build import RunData, split_data

# Training images that a network is calibrated on for a grid, as recipes/calibrate.py has it.
CALIBRATION_IMAGES = 512

Rows = list[FrontierRow]


class Measured:
    """What has been measured, kept in a file: the test images are scored once for each network and setting.

    Args:
        path: of the file.
    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                self._found = dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise ValueError(
                    f"frontier: {path} must hold what was measured; it is damaged ({error}). Remove it: all is "
                    "measured again, nothing trained again."
                ) from error

    def get(self, key: Mapping[str, Any], measure: Callable[[], Found]) -> Found:
        """What was found for a key, measured if it has not been."""
        text = json.dumps(key, sort_keys=True)
        if "runs" not in self._found.get(text, {}):  # nothing, or measured when energies were of counts
            self._found[text] = measure().to_dict()
            write_json(self.path, self._found)
        return Found.from_dict(self._found[text])


class Sweep:
    """Measures and trains; `rows` grows.

    Args:
        options: of the sweep.
        accelerator: device.
        say: shows a line.
        write: is called with all rows whenever there are new ones.
    Attributes:
        rows: so far.
        failed: points that could not be trained to the end, with why.
    """

    def __init__(
        self,
        options: FrontierOptions,
        accelerator: Accelerator,
        say: Callable[[str], None],
        write: Callable[[Rows], object],
    ) -> None:
        self.options, self.accelerator, self.say, self.write = options, accelerator, say, write
        self.measured = Measured(options.output_dir / "measured.json")
        self.rows: Rows = []
        self.failed: dict[str, str] = {}

    def run(self, network: PlannedNetwork, data: RunData) -> None:
        """Do all that is asked of one network."""
        options, loaded = self.options, network.loaded
        bench = Bench(options, data.test, self.accelerator)
        free = FrontierRow.of(network.name, FREE, loaded.network.graph.grid, weights_sha256=loaded.files.sha256)
        self._score(free, bench, lambda: loaded.network)
        self._measure(loaded.network, self.rows[-1], bench, FAULTS)
        for point, grid in options.grids().items():
            row = FrontierRow.of(network.name, point.name, grid, trained=False, weights_sha256=loaded.files.sha256)
            self._score(row, bench, lambda g=grid: self._calibrated(network, g, data))
        for planned in network.points:
            if self._train(network, planned, data):
                self._trained(network, planned, bench)

    def _score(self, row: FrontierRow, bench: Bench, network: Callable[[], nn.Module]) -> None:
        """The row of a network that is scored here, unless it has been."""
        key = _key(row, bench) | {"steps": row.time_steps or self.options.steps, "calibrated": not row.trained}
        self._add([bench.price(self.measured.get(key, lambda: bench.score(network(), row)))])

    def _calibrated(self, network: PlannedNetwork, grid: Grid, data: RunData) -> nn.Module:
        """The network on a grid without training."""
        model = copy.deepcopy(network.loaded.network)
        images = draw_images(data.train, CALIBRATION_IMAGES, network.config.seed, data.train_indices)
        model.to(self.accelerator.device)
        calibrate_grid(model.network, images.to(self.accelerator.device), grid)
        return model

    def _measure(self, network: nn.Module, row: FrontierRow, bench: Bench, kinds: tuple[str, ...]) -> None:
        """A network with faults of some kinds, and in time."""
        key = _key(row, bench)
        asked = [faults for kind in kinds for faults in self.options.faults(kind)]
        for faults in [Faults(), *asked] if asked else []:  # without any, in the same simulation: where curves begin
            what = {"faults": faults.text(), "seed": self.options.fault_seed, "steps": self.options.steps}
            found = self.measured.get(key | what, lambda f=faults: Found([bench.with_faults(network, row, f)]))
            self._add(found.rows)
        if self.options.deadlines:
            found = self.measured.get(key | {"deadlines": True}, lambda: Found(bench.in_time(network, row)))
            self._add(found.rows)

    def _train(self, network: PlannedNetwork, planned: PlannedPoint, data: RunData) -> bool:
        """Train a point unless that has been done; whether it has been, to the end."""
        if planned.ended:
            return True
        self.say(f"\n{network.name}: {planned.point.name}")
        try:
            split = split_data(data.train, data.test, planned.config)
            train(planned.config, planned.point.folder, data=split, again="the same command")
        except NonFiniteLossError as error:
            self.failed[f"{network.name}, {planned.point.name}"] = str(error)
            return False
        return True

    def _trained(self, network: PlannedNetwork, planned: PlannedPoint, bench: Bench) -> None:
        """A point that has been trained."""
        path, summary = planned.folder.path, planned.folder.read_summary()
        assert summary is not None, "it has ended"
        loaded = load_network(path, self.options.network)
        graph = loaded.network.graph
        row = FrontierRow.of(
            network.name,
            planned.point.name,
            graph.grid,
            weights_sha256=loaded.files.sha256,
            folder=str(path.relative_to(self.options.output_dir)),
            date=bench.stamp()["date"],
        )
        row, counts = summary_row(summary, row), Counts.from_dict(summary["counts"])
        key = _key(row, bench) | {"steps": row.time_steps or self.options.steps}
        self._add([bench.price(self.measured.get(key, lambda: bench.simulated(loaded.network, row, counts)))])
        kinds = tuple(key for key, _ in planned.point.keys if key in FAULTS)
        self._measure(loaded.network, row, bench, kinds)

    def _add(self, rows: Sequence[FrontierRow]) -> None:
        self.rows += rows
        for row in rows:
            if row.kind != "deadline":
                self.say(line(row))
        self.write(self.rows)


def line(row: FrontierRow) -> str:
    """A row in words."""
    parts = [f"{row.network}, {row.point}" + ("" if row.trained else ", calibrated")]
    parts += [f"{name} {getattr(row, name):g}" for name in FAULTS if getattr(row, name)]
    parts.append(f"accuracy {row.accuracy:.2%}")
    if row.cost is not None and row.goal is not None:
        what = "activity" if row.target == "sparsity" else row.target
        parts.append(f"{what} {row.cost:.4g} for {row.goal:g}" + ("" if row.reached else ", not reached"))
    if row.sparsity is not None and not (row.target == "sparsity" and math.isclose(row.cost or 0.0, row.sparsity)):
        parts.append(f"activity {row.sparsity:.4f}")
    if row.same_decisions is not None:
        parts.append(f"{row.same_decisions:,} of {row.images:,} decided alike in simulation")
    return ", ".join(parts)


def _key(row: FrontierRow, bench: Bench) -> dict[str, Any]:
    """What figures of a network depend on, but for what is asked."""
    return {
        "weights": row.weights_sha256,
        "images": bench.data.fingerprint,
        "network": row.network,
        "point": row.point,
    }
