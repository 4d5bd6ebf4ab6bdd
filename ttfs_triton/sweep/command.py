"""The command `ttfs sweep`: evaluates networks, then calibrates, trains and evaluates their points; it can be resumed.

points/NETWORK/POINT            the run that trained a point
evaluations/NETWORK/POINT/...   a row's evaluation.json, as `ttfs evaluate` writes it
frontier.csv, frontier.html     all rows as a table and as a page
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic_core import to_json

from ttfs_triton.atomic import make_folder, write_json, write_text
from ttfs_triton.commands import EvaluationOptions
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.data.images import ImageData, draw_images
from ttfs_triton.energy import load_chip
from ttfs_triton.energy.compare import STEPS
from ttfs_triton.evaluate.load import LoadedNetwork, check_class_names, load_network
from ttfs_triton.evaluate.machine import facts
from ttfs_triton.evaluate.measure import MAIN_FILE, figures, measure
from ttfs_triton.nn import Grid
from ttfs_triton.nn.faults import Faults
from ttfs_triton.sweep import FAULTS, FrontierOptions, folder_name, point_name
from ttfs_triton.sweep.page import FREE, Row, label, row_of, write_frontier_page
from ttfs_triton.sweep.plan import PlannedNetwork, PlannedPoint, make_plan
from ttfs_triton.train import ConfigError, Interrupted, NonFiniteLossError, train
from ttfs_triton.train.data import RunData, load_data, split_data
from ttfs_triton.train.device import make_accelerator
from ttfs_triton.train.run_folder import FolderLock
from ttfs_triton.wording import csv_text

NAME = "frontier"

# Number of training images for the calibration of a grid.
CALIBRATION_IMAGES = 512

say = partial(print, flush=True)  # a sweep takes hours, and its output may go to a file


def run(options: FrontierOptions) -> list[Row]:
    """Run the sweep that the options describe, or resume it; the table is written after every evaluation.

    Returns:
        All rows of the frontier's table.
    Raises:
        LoadError, HubError, ConfigError, ValueError: networks, settings or data are unusable; raised before training.
        RuntimeError: another process sweeps into the same folder; or, at the end, points were impossible or diverged.
        Interrupted: a signal stopped the sweep; the same command resumes it.
    """
    networks = make_plan(options)
    accelerator = make_accelerator(networks[0].config)
    data = {network.name: load_data(network.config, accelerator) for network in networks}
    for network in networks:
        check_class_names(network.loaded, data[network.name].test)
    lock = FolderLock(options.output_dir)
    try:
        sweep = Sweep(options, accelerator)
        for network in networks:
            left = sum(not planned.ended for planned in network.points)
            say(f"{network.name}: {left} of {len(network.points)} points to train")
            sweep.run(network, data[network.name])
    finally:
        lock.release()
    table, page = (options.output_dir / f"{NAME}{ending}" for ending in (".csv", ".html"))
    say(f"written: {table}")
    if find_spec("matplotlib") is None:
        say(f"{page} needs matplotlib, which is not installed. Run: pip install matplotlib, then this command again.")
    else:
        write_frontier_page(page, sweep.rows, facts("sweep", accelerator.device))
        say(f"written: {page}")
    if sweep.failed:
        lines = "\n".join(f"  {name}: {why}" for name, why in sweep.failed.items())
        raise RuntimeError(f"frontier: every point must be trained to the end; these could not be:\n{lines}")
    return sweep.rows


class Sweep:
    """Evaluates networks and their points, and writes the table after every new row.

    Attributes:
        rows: all rows so far.
        failed: errors by point, for points that were impossible or diverged.
    """

    def __init__(self, options: FrontierOptions, accelerator: Accelerator) -> None:
        self.options, self.accelerator = options, accelerator
        self.chips = [load_chip(chip) for chip in options.chip]
        self.rows: list[Row] = []
        self.failed: dict[str, str] = {}

    def run(self, network: PlannedNetwork, data: RunData) -> None:
        """Evaluate one network and its calibrated grids, then train and evaluate its points."""
        self._evaluate(network, data, FREE, network.loaded, kinds=FAULTS)
        for keys in self.options.grids():
            self._evaluate(network, data, point_name(keys), network.loaded, grid=Grid(**keys))
        for planned in network.points:
            if planned.ended or self._train(network, planned, data):
                loaded = load_network(planned.folder.path, self.options.network)
                kinds = [key for key in planned.keys if key in FAULTS]
                summary = planned.folder.read_summary()
                self._evaluate(network, data, planned.name, loaded, kinds=kinds, summary=summary)

    def _train(self, network: PlannedNetwork, planned: PlannedPoint, data: RunData) -> bool:
        """Train a point; returns whether it was trained to the end."""
        say(f"\n{network.name}: {planned.name}")
        try:
            # Validation images stay those that the network was not trained on, whatever the point's seed.
            held_out = planned.config.model_copy(update={"seed": network.config.seed})
            split = split_data(data.train, data.test, held_out)
            train(planned.config, planned.folder.path.name, data=split, again="the same command")
        except (ConfigError, NonFiniteLossError) as error:
            self.failed[f"{network.name}, {planned.name}"] = str(error)
            return False
        return True

    def _evaluate(
        self,
        network: PlannedNetwork,
        data: RunData,
        point: str,
        loaded: LoadedNetwork,
        *,
        kinds: Sequence[str] = (),
        grid: Grid | None = None,
        summary: dict[str, Any] | None = None,
    ) -> None:
        """Add a row for the network `loaded`, and one for every fault of the given kinds.

        An existing evaluation.json is used again if its weights, images, settings and prices are the same. `grid` is
        the grid to calibrate the network for, `summary` the summary.json of its training.
        """
        identity: Row = {"network": network.name, "point": point, "trained": grid is None}
        drawn = None if grid is None else [data.train.fingerprint, network.config.seed, len(data.train_indices)]
        made_of = identity | {"weights": loaded.files.sha256, "images": data.test.fingerprint, "calibrated_on": drawn}
        made_of |= {"prices": self.chips}
        on_grid = grid is not None or loaded.network.graph.grid is not None
        place = folder_name(point) + ("" if grid is None else ",calibrated")
        asked = [Faults(**{kind: amount}) for kind in kinds for amount in getattr(self.options, kind)]
        for faults in dict.fromkeys([Faults(), *asked]):  # first without faults, where curves begin
            settings = self._settings(network.name, on_grid, faults)
            name = ",".join(f"{kind}={value}" for kind, value in vars(faults).items() if value)
            path = self.options.output_dir / "evaluations" / network.name / place / name / MAIN_FILE
            key = hashlib.sha256(to_json(made_of | {"settings": settings.model_dump()})).hexdigest()
            if (evaluation := _saved(path, key)) is None:
                measured = loaded if grid is None else self._calibrated(network, grid, data)
                evaluation = self._measure(settings, measured, data.test)
                make_folder(path.parent)
                write_json(path, evaluation | {"key": key})
            self.rows.append(row := row_of(identity, evaluation, summary))
            accuracies = f"accuracy {row['accuracy']:.2%}, simulated {row['simulated_accuracy']:.2%}"
            say(f"{network.name}, {label(row)}: {accuracies}, activity {row['sparsity']:.4f}")
            write_text(self.options.output_dir / f"{NAME}.csv", csv_text(self.rows))

    def _settings(self, name: str, on_grid: bool, faults: Faults) -> EvaluationOptions:
        """Options with which `ttfs evaluate` gives the figures of a row."""
        same = {key: getattr(self.options, key) for key in ("chip", "max_test_samples", "batch_size", "cpu")}
        same |= {"fault_seed": self.options.fault_seed, **vars(faults)} if faults else {}
        steps = "network" if on_grid else self.options.steps
        return EvaluationOptions(model=name, steps=steps, deadlines=self.options.deadlines and not faults, **same)

    def _calibrated(self, network: PlannedNetwork, grid: Grid, data: RunData) -> LoadedNetwork:
        """A copy of the network, calibrated for a grid without training."""
        model = copy.deepcopy(network.loaded.network).to(self.accelerator.device)
        images = draw_images(data.train, CALIBRATION_IMAGES, network.config.seed, data.train_indices)
        calibrate_grid(model.network, images.to(self.accelerator.device), grid)
        return replace(network.loaded, network=model)

    def _measure(self, settings: EvaluationOptions, loaded: LoadedNetwork, test: ImageData) -> dict[str, Any]:
        """Content of evaluation.json for a network; with faults, only one number of time steps is simulated."""
        others = () if settings.faults else STEPS
        page = measure(settings, loaded, test, self.chips, self.accelerator, others=others)
        return figures(page, loaded, test, settings.max_test_samples) | {
            "about": facts("sweep", self.accelerator.device)
        }


def _saved(path: Path, key: str) -> dict[str, Any] | None:
    """Content of an evaluation.json with this key; None if it is missing, damaged or has another key."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return saved if isinstance(saved, dict) and saved.get("key") == key else None


ERRORS = (ValueError, RuntimeError, OSError, MemoryError, Interrupted)
