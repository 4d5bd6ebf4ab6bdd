"""Measurements of a network on the test images: without faults, on a faulty chip, by deadline; and their cache."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ttfs_triton.atomic import write_json
from ttfs_triton.chip import simulate, simulate_at, simulated_run
from ttfs_triton.commands.sweep import FrontierOptions
from ttfs_triton.data.images import ImageData
from ttfs_triton.energy import Counts, Run, counting
from ttfs_triton.energy.compare import STEPS
from ttfs_triton.evaluate import EvaluationBatches, device_name, evaluate
from ttfs_triton.evaluate.deadline import deadline_curve, output_spikes
from ttfs_triton.nn.faults import Faults
from ttfs_triton.sweep.table import ChipEnergy, FrontierRow


@dataclass(frozen=True)
class Found:
    """Measurements of a network.

    Attributes:
        rows: rows of the table, without energies, because prices may change.
        counts: counts of the closed form, or of the network on its grid.
        runs: counts of simulations, for energies; the first is at the row's steps.
    """

    rows: tuple[FrontierRow, ...]
    counts: Counts | None = None
    runs: tuple[Run, ...] = ()


_FOUND = TypeAdapter(Found)


class Measured:
    """Cache of measurements in a file, so that test images are scored only once for each network and setting."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._found: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"frontier: {path} must be the JSON cache of measurements; it is damaged ({error}). Remove it: all is "
                "measured again, nothing trained again."
            ) from error

    def get(self, key: Mapping[str, Any], measure: Callable[[], Found]) -> Found:
        """Measurements for a key, from the cache, or from `measure` if they are missing or in another format."""
        text = json.dumps(key, sort_keys=True)
        with suppress(KeyError, ValidationError):
            return _FOUND.validate_json(json.dumps(self._found[text]))
        found = measure()
        self._found[text] = _FOUND.dump_python(found, mode="json")
        write_json(self.path, self._found)
        return found


@dataclass(frozen=True)
class Bench:
    """Measures networks on fixed test images and a device, with the options' chips, time steps and fault seed."""

    options: FrontierOptions
    data: ImageData
    accelerator: Accelerator

    @property
    def batches(self) -> EvaluationBatches:
        """All test images, in order."""
        return EvaluationBatches(self.data, None, self.options.batch_size)

    def score(self, network: nn.Module, row: FrontierRow) -> Found:
        """The network scored on the test images and simulated; `row` identifies it."""
        network.to(self.accelerator.device)
        with counting(network, image_shape=self.data.shape[1:], histogram_bins=0) as counter:
            found = evaluate(network, self.batches, self.accelerator)
        scored = {name: getattr(found, name) for name in ("images", "accuracy", "first_spike_accuracy")}
        return self.simulated(network, replace(row, **scored, **self.stamp()), counter.counts())

    def simulated(self, network: nn.Module, row: FrontierRow, counts: Counts) -> Found:
        """The simulations of a network that was scored: its row, its counts and the simulated runs.

        A network on a grid is simulated at the grid's steps; its row gets the number of images that network and
        simulation decide alike. A network without a grid is simulated at the sweep's steps and all of `STEPS`.
        """
        device = self.accelerator.device
        network.to(device)
        if row.time_steps is None:
            found = simulate_at(network, self.batches, (self.options.steps, *STEPS))
        else:
            found = [simulate(network, self.batches)]
            network.eval()
            with torch.no_grad():
                ours = torch.cat([network(images.to(device)).argmax(1).cpu() for images, _ in self.batches])
            row = replace(row, same_decisions=int((ours == found[0].predictions).sum()))
        return Found((row,), counts, tuple(map(simulated_run, found)))

    def stamp(self) -> dict[str, str]:
        """Device and date of a measurement."""
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        return {"device": device_name(self.accelerator.device), "date": date}

    def price(self, found: Found) -> FrontierRow:
        """The first row of `found` with the network's spikes, operations and energies."""
        counts, runs = found.counts, found.runs
        assert counts is not None, "scored networks have counts"
        total, samples = counts.total(), counts.samples
        return replace(
            found.rows[0],
            sparsity=counts.sparsity,
            spikes=sum(layer.spikes for layer in counts.layers if layer.kind != "readout") / samples,
            synaptic_operations=total["synaptic_operations"] / samples,
            dense_macs=total["dense_macs"] / samples,
            steps=runs[0].options.steps,
            energy=tuple(ChipEnergy.of(runs, chip) for chip in self.options.chip),
        )

    def with_faults(self, network: nn.Module, row: FrontierRow, faults: Faults) -> FrontierRow:
        """The row of the network simulated on a faulty chip."""
        network.to(self.accelerator.device)
        steps = self.options.steps if row.time_steps is None else row.time_steps
        found = simulate(network, self.batches, steps=steps, faults=faults, seed=self.options.fault_seed)
        assert found.accuracy is not None, "test images have labels"
        return replace(
            row,
            kind="faults",
            accuracy=found.accuracy,
            first_spike_accuracy=found.first_spike_accuracy,
            images=found.samples,
            steps=found.settings.steps,
            **vars(faults),
            **self.stamp(),
        )

    def in_time(self, network: nn.Module, row: FrontierRow) -> Found:
        """Rows of the network for each deadline."""
        network.to(self.accelerator.device)
        row = replace(row, kind="deadline", images=len(self.data), **self.stamp())
        curve = deadline_curve(output_spikes(network, self.batches, self.data.shape[1:]))
        return Found(
            tuple(replace(row, deadline=at.deadline, decision_time=at.time, accuracy=at.accuracy) for at in curve)
        )


def summary_row(summary: dict[str, Any], row: FrontierRow) -> FrontierRow:
    """The row with the figures of a finished run's summary, so that test images are not scored again."""
    target: dict[str, Any] = summary.get("target") or {}
    if target:
        goals, test = target["goal"], target["test"]
        worst = max(goals, key=lambda name: abs(test[name] / goals[name] - 1))
        row = replace(row, target=target["kind"], goal=goals[worst], cost=test[worst], reached=bool(target["reached"]))
    return replace(
        row,
        images=summary["test_images"],
        accuracy=summary["test_accuracy"],
        first_spike_accuracy=summary["test_first_spike_accuracy"],
        validation_accuracy=summary["val_accuracy"],
        device=summary["device"],
    )
