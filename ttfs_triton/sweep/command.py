"""The command `ttfs sweep`: measures each network, then trains and measures its points; run again, it resumes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator
from torch import nn

from ttfs_triton.commands.sweep import FAULTS, FrontierOptions
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.data.images import draw_images
from ttfs_triton.energy import Counts
from ttfs_triton.evaluate.load import load_network
from ttfs_triton.evaluate.output import facts
from ttfs_triton.nn import Grid
from ttfs_triton.nn.faults import Faults
from ttfs_triton.sweep.measure import Bench, Found, Measured, summary_row
from ttfs_triton.sweep.page import write_frontier_page
from ttfs_triton.sweep.plan import PlannedNetwork, PlannedPoint, check_points, make_plan, outline
from ttfs_triton.sweep.table import FREE, FrontierRow, write_table
from ttfs_triton.train import Interrupted, NonFiniteLossError, train
from ttfs_triton.train.build import RunData, load_data, split_data
from ttfs_triton.train.device import make_accelerator
from ttfs_triton.train.run_folder import FolderLock

NAME = "frontier"

# Number of training images for the calibration of a grid.
CALIBRATION_IMAGES = 512

Rows = list[FrontierRow]
say = partial(print, flush=True)  # a sweep takes hours, and its output may go to a file


def run(options: FrontierOptions) -> Rows:
    """Run the sweep that the options describe, or resume it; tables are written after each measurement.

    Returns:
        All rows of the frontier's table.
    Raises:
        LoadError, HubError, ConfigError, ValueError: networks, points or data are unusable; raised before any training.
        RuntimeError: another process sweeps into the same folder; or, at the end, the training of points diverged.
        Interrupted: a signal stopped the sweep; the same command resumes it.
    """
    networks = make_plan(options)
    accelerator = make_accelerator(networks[0].config)
    if accelerator.num_processes > 1:
        raise ValueError(
            "frontier: must run in one process; got several. Start `ttfs sweep` without a launcher. To train a point "
            "in several processes, train it by its config.yaml; a sweep takes over points whose training has ended."
        )
    data = {network.name: load_data(network.config, accelerator, say) for network in networks}
    for network in networks:
        check_points(network, data[network.name], accelerator)
    made = facts("sweep", accelerator.device)
    lock = FolderLock(options.output_dir)
    try:
        say("\n".join(outline(networks, len(options.grids()))))
        sweep = Sweep(options, accelerator, lambda rows: write_table(options.output_dir, NAME, rows, made))
        for network in networks:
            sweep.run(network, data[network.name])
    finally:
        lock.release()
    written = [options.output_dir / f"{NAME}{ending}" for ending in (".csv", ".json", ".html")]
    if find_spec("matplotlib") is None:
        say(f"{written.pop()} needs matplotlib; found none. Run: pip install matplotlib, then this command again.")
    else:
        write_frontier_page(written[-1], sweep.rows, made)
    for path in written:
        say(f"written: {path}")
    if sweep.failed:
        lines = "\n".join(f"  {name}: {why}" for name, why in sweep.failed.items())
        raise RuntimeError(f"frontier: training must not diverge; these points diverged:\n{lines}")
    return sweep.rows


class Sweep:
    """Measures networks, trains and measures their points, and calls `write` with all rows after each new row.

    Attributes:
        rows: all rows so far.
        failed: points whose training diverged, with the error.
    """

    def __init__(self, options: FrontierOptions, accelerator: Accelerator, write: Callable[[Rows], None]) -> None:
        self.options, self.accelerator, self.write = options, accelerator, write
        self.measured = Measured(options.output_dir / "measured.json")
        self.rows: Rows = []
        self.failed: dict[str, str] = {}

    def run(self, network: PlannedNetwork, data: RunData) -> None:
        """Measure one network and its calibrated grids, then train and measure its points."""
        loaded, bench = network.loaded, Bench(self.options, data.test, self.accelerator)
        free = FrontierRow.of(network.name, FREE, loaded.network.graph.grid, weights_sha256=loaded.files.sha256)
        self._score(free, bench, lambda: loaded.network)
        self._measure(loaded.network, free, bench, FAULTS)
        for point in self.options.grids():
            grid = Grid(**dict(point.keys))
            row = FrontierRow.of(network.name, point.name, grid, trained=False, weights_sha256=loaded.files.sha256)
            drawn = [data.train.fingerprint, network.config.seed, len(data.train_indices)]
            self._score(row, bench, lambda g=grid: self._calibrated(network, g, data), drawn=drawn)
        for planned in network.points:
            if self._train(network, planned, data):
                self._trained(network, planned, bench)

    def _score(self, row: FrontierRow, bench: Bench, network: Callable[[], nn.Module], **more: Any) -> None:
        """Add a network's row, with figures from the cache; `network` is called and scored if they are missing."""
        key = _key(row, bench) | {"steps": row.time_steps or self.options.steps, "calibrated": not row.trained} | more
        self._add([bench.price(self.measured.get(key, lambda: bench.score(network(), row)))])

    def _calibrated(self, network: PlannedNetwork, grid: Grid, data: RunData) -> nn.Module:
        """A copy of the network, calibrated for a grid without training."""
        model = copy.deepcopy(network.loaded.network).to(self.accelerator.device)
        images = draw_images(data.train, CALIBRATION_IMAGES, network.config.seed, data.train_indices)
        calibrate_grid(model.network, images.to(self.accelerator.device), grid)
        return model

    def _measure(self, network: nn.Module, row: FrontierRow, bench: Bench, kinds: tuple[str, ...]) -> None:
        """Add rows of a network with faults of the given kinds, and by deadline; `row` identifies the network."""
        key = _key(row, bench)
        asked = [faults for kind in kinds for faults in self.options.faults(kind)]
        for faults in [Faults(), *asked] if asked else []:  # no faults first: where curves begin
            what = {"faults": vars(faults), "seed": self.options.fault_seed, "steps": self.options.steps}
            found = self.measured.get(key | what, lambda f=faults: Found((bench.with_faults(network, row, f),)))
            self._add(found.rows)
        if self.options.deadlines:
            self._add(self.measured.get(key | {"deadlines": True}, lambda: bench.in_time(network, row)).rows)

    def _train(self, network: PlannedNetwork, planned: PlannedPoint, data: RunData) -> bool:
        """Train a point unless it is trained already. Returns False if training diverged."""
        if planned.ended:
            return True
        say(f"\n{network.name}: {planned.point.name}")
        try:
            split = split_data(data.train, data.test, planned.config)
            train(planned.config, planned.point.folder, data=split, again="the same command")
        except NonFiniteLossError as error:
            self.failed[f"{network.name}, {planned.point.name}"] = str(error)
            return False
        return True

    def _trained(self, network: PlannedNetwork, planned: PlannedPoint, bench: Bench) -> None:
        """Add the rows of a trained point."""
        path, summary = planned.folder.path, planned.folder.read_summary()
        assert summary is not None, "the training has ended"
        loaded = load_network(path, self.options.network)
        row = FrontierRow.of(
            network.name,
            planned.point.name,
            loaded.network.graph.grid,
            weights_sha256=loaded.files.sha256,
            folder=str(path.relative_to(self.options.output_dir)),
            epochs=summary["epochs"],
        )
        scored = replace(summary_row(summary, row), date=bench.stamp()["date"])
        counts = Counts.from_dict(summary["counts"])
        key = _key(row, bench) | {"steps": row.time_steps or self.options.steps}
        self._add([bench.price(self.measured.get(key, lambda: bench.simulated(loaded.network, scored, counts)))])
        kinds = tuple(key for key, _ in planned.point.keys if key in FAULTS)
        self._measure(loaded.network, row, bench, kinds)

    def _add(self, rows: Sequence[FrontierRow]) -> None:
        self.rows += rows
        for row in rows:
            if row.kind != "deadline":
                say(line(row))
        self.write(self.rows)


def line(row: FrontierRow) -> str:
    """A row of the table as a line of text."""
    point = "as given" if row.point == FREE else row.point
    parts = [f"{row.network}, {point}" + ("" if row.trained else ", calibrated")]
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
    """Cache key of a network's measurements: network, point, weights and images."""
    own = {"network": row.network, "point": row.point}
    return own | {"weights": row.weights_sha256, "images": bench.data.fingerprint}


ERRORS = (ValueError, RuntimeError, OSError, MemoryError, Interrupted)
