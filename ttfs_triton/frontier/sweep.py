"""A sweep: every network measured, every point trained and measured, and what was found kept after each step."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ttfs_triton.atomic import write_json
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.data.images import draw_images
from ttfs_triton.evaluation import load_network
from ttfs_triton.frontier.measure import Bench, summary_row
from ttfs_triton.frontier.options import FrontierOptions
from ttfs_triton.frontier.plan import PlannedNetwork, PlannedPoint, split_for
from ttfs_triton.frontier.points import FAULTS, Point
from ttfs_triton.hardware import Counts
from ttfs_triton.nn import Grid, TTFSNetwork
from ttfs_triton.nn.faults import Faults
from ttfs_triton.report.frontier_table import FREE, FrontierRow
from ttfs_triton.train import NonFiniteLossError, train
from ttfs_triton.train.build import RunData
from ttfs_triton.train.run import Given

# Training images that a network is calibrated on for a grid, as recipes/calibrate.py has it.
CALIBRATION_IMAGES = 512

Rows = list[FrontierRow]


Found = tuple[Rows, Counts | None]


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
        """Rows of a key, and counts if there are, but no prices, which may change; measured if they have not been."""
        text = json.dumps(key, sort_keys=True)
        if text not in self._found:
            rows, counts = measure()
            kept = {"rows": [row.to_dict() for row in rows], "counts": None if counts is None else counts.to_dict()}
            self._found[text] = kept
            write_json(self.path, self._found)
        kept = self._found[text]
        counts = None if kept["counts"] is None else Counts.from_dict(kept["counts"])
        return [FrontierRow.from_dict(row) for row in kept["rows"]], counts


class Sweep:
    """Measures and trains; `rows` grows.

    Args:
        options: of the sweep.
        accelerator: device.
        say: shows a line.
    Attributes:
        rows: so far.
        failed: points that could not be trained to the end, with why.
    """

    def __init__(self, options: FrontierOptions, accelerator: Accelerator, say: Callable[[str], None]) -> None:
        self.options, self.accelerator, self.say = options, accelerator, say
        self.measured = Measured(options.output_dir / "measured.json")
        self.rows: Rows = []
        self.failed: dict[str, str] = {}

    def run(self, network: PlannedNetwork, data: RunData) -> Iterator[None]:
        """Do all that is asked of one network; yields whenever there are new rows."""
        options = self.options
        bench = Bench(data.test, self.accelerator, options.batch_size, options.chip, options.steps, options.fault_seed)
        free, own = self._row(network, FREE), network.loaded.network

        def score() -> Found:
            row, counts = bench.score(own, free)
            return [row], counts

        yield from self._scored(_key(free, bench), score, bench)
        yield from self._measure(own, self.rows[-1], bench, FAULTS)
        for grid in options.grids():
            yield from self._calibrated(network, grid, data, bench)
        for planned in network.points:
            if self._train(network, planned, data):
                yield from self._trained(network, planned, bench)

    def _row(self, network: PlannedNetwork, point: str) -> FrontierRow:
        grid = network.loaded.network.graph.grid
        row = FrontierRow(network=network.name, point=point, kind="network", trained=True, images=0, accuracy=0.0)
        return replace(_on(row, grid), weights_sha256=network.loaded.files.sha256)

    def _measure(self, network: Any, row: FrontierRow, bench: Bench, kinds: tuple[str, ...]) -> Iterator[None]:
        """A network with faults of some kinds, and in time."""
        key = _key(row, bench)
        asked = [faults for kind in kinds for faults in self.options.faults(kind)]
        for faults in [Faults(), *asked] if asked else []:  # without any, in the same simulation: where curves begin
            what = {"faults": faults.text(), "seed": bench.seed, "steps": bench.steps}
            rows, _ = self.measured.get(key | what, lambda f=faults: ([bench.with_faults(network, row, f)], None))
            self._add(rows)
            yield
        if self.options.deadlines:
            rows, _ = self.measured.get(key | {"deadlines": True}, lambda: (bench.in_time(network, row), None))
            self._add(rows)
            yield

    def _calibrated(self, network: PlannedNetwork, grid: Grid, data: RunData, bench: Bench) -> Iterator[None]:
        """The network on a grid without training."""
        point = Point.of(time_steps=grid.time_steps, weight_bits=grid.weight_bits, state_bits=grid.state_bits)
        row = replace(_on(self._row(network, point.name), grid), trained=False)

        def measure() -> Found:
            model = copy.deepcopy(network.loaded.network)
            assert isinstance(model.network, TTFSNetwork), "refused before"
            images = draw_images(data.train, CALIBRATION_IMAGES, network.config.seed, data.train_indices)
            model.to(self.accelerator.device)
            calibrate_grid(model.network, images.to(self.accelerator.device), grid)
            row_, counts = bench.score(model, row)
            return [row_], counts

        yield from self._scored(_key(row, bench) | {"calibrated": True}, measure, bench)

    def _scored(self, key: Mapping[str, Any], measure: Callable[[], Found], bench: Bench) -> Iterator[None]:
        """The row of a network that is scored here."""
        (row,), counts = self.measured.get(key, measure)
        assert counts is not None, "scoring counts"
        self._add([bench.price(counts, row)])
        yield

    def _train(self, network: PlannedNetwork, planned: PlannedPoint, data: RunData) -> bool:
        """Train a point unless that has been done; whether it has been, to the end."""
        if planned.ended:
            return True
        self.say(f"\n{network.name}: {planned.point.name}")
        try:
            given = Given(data=split_for(planned.config, data), again="the same command")
            train(planned.config, name=planned.point.folder, given=given)
        except NonFiniteLossError as error:
            self.failed[f"{network.name}, {planned.point.name}"] = str(error)
            return False
        return True

    def _trained(self, network: PlannedNetwork, planned: PlannedPoint, bench: Bench) -> Iterator[None]:
        """A point that has been trained."""
        path, summary = planned.folder.path, planned.folder.read_summary()
        assert summary is not None, "it has ended"
        loaded = load_network(path, self.options.network)
        graph = loaded.network.graph
        row = FrontierRow(
            network=network.name,
            point=planned.point.name,
            kind="network",
            trained=True,
            images=0,
            accuracy=0.0,
            weights_sha256=loaded.files.sha256,
            folder=str(path.relative_to(self.options.output_dir)),
        )
        counts = Counts.from_dict(summary["counts"])
        row = summary_row(summary, replace(_on(row, graph.grid), date=bench.stamp()["date"]))
        (row,), _ = self.measured.get(_key(row, bench), lambda: ([bench.agree(loaded.network, row)], None))
        self._add([bench.price(counts, row)])
        yield
        kinds = tuple(key for key, _ in planned.point.keys if key in FAULTS)
        yield from self._measure(loaded.network, row, bench, kinds)

    def _add(self, rows: Rows) -> None:
        self.rows += rows
        for row in rows:
            if row.kind != "deadline":
                self.say(line(row))


def line(row: FrontierRow) -> str:
    """A row in words."""
    parts = [f"{row.network}, {row.point}" + ("" if row.trained else ", calibrated")]
    parts += [f"{name} {getattr(row, name):g}" for name in FAULTS if getattr(row, name)]
    parts.append(f"accuracy {row.accuracy:.2%}")
    if row.cost is not None and row.goal is not None:
        parts.append(f"{row.target} {row.cost:.4g} for {row.goal:g}" + ("" if row.reached else ", not reached"))
    if row.sparsity is not None:
        parts.append(f"sparsity {row.sparsity:.4f}")
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


def _on(row: FrontierRow, grid: Grid | None) -> FrontierRow:
    if grid is None:
        return row
    return replace(row, time_steps=grid.time_steps, weight_bits=grid.weight_bits, state_bits=grid.state_bits)
