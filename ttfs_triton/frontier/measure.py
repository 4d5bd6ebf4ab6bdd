"""Rows of a frontier: what one network does on the test images, as it is, on a faulty chip, in time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from ttfs_triton.data.images import ImageData
from ttfs_triton.frontier.options import GRID, FrontierOptions
from ttfs_triton.hardware import (
    Counts,
    LayerActivity,
    Run,
    RunOptions,
    Simulation,
    counting,
    simulate,
    simulate_at,
    simulated_run,
)
from ttfs_triton.hardware.energy.compare import STEPS
from ttfs_triton.nn import network_graph
from ttfs_triton.nn.decision import logits_and_decision
from ttfs_triton.nn.faults import Faults
from ttfs_triton.report.frontier_table import FrontierRow, with_costs
from ttfs_triton.scoring import EvaluationBatches, device_name, evaluate
from ttfs_triton.scoring.deadline import deadline_curve, output_spikes

BITS = 8
"""Bits of a weight, of networks without a grid that are simulated."""


class Found(NamedTuple):
    """What was measured of a network.

    Attributes:
        rows: without prices, which may change.
        counts: of the closed form, or of the network on its grid.
        runs: simulations that are priced, the first one at the row's steps.
    """

    rows: Sequence[FrontierRow]
    counts: Counts | None = None
    runs: Sequence[Run] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "counts": None if self.counts is None else self.counts.to_dict(),
            "runs": [
                {
                    "steps": options.steps,
                    "counts": replace(counts, spikes_by_sample=(), synaptic_operations_by_sample=()).to_dict(),
                    "activity": [asdict(layer) for layer in options.activity or ()],
                }
                for counts, options in self.runs
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Found:
        """What `to_dict` gave."""
        runs = [
            Run(
                Counts.from_dict(run["counts"]),
                RunOptions(run["steps"], gating=True, activity=tuple(LayerActivity(**one) for one in run["activity"])),
            )
            for run in values["runs"]
        ]
        counts = None if values["counts"] is None else Counts.from_dict(values["counts"])
        return cls([FrontierRow(**row) for row in values["rows"]], counts, runs)


@dataclass(frozen=True)
class Bench:
    """Where and how networks are measured.

    Attributes:
        options: of the sweep: chips, time steps of networks without a grid, seed of faulty chips.
        data: test images.
        accelerator: whose device runs networks.
    """

    options: FrontierOptions
    data: ImageData
    accelerator: Accelerator

    @property
    def batches(self) -> EvaluationBatches:
        """All test images, in order."""
        return EvaluationBatches(self.data, None, self.options.batch_size)

    def score(self, network: nn.Module, row: FrontierRow) -> Found:
        """A row of a network that is scored and simulated here."""
        network.to(self.accelerator.device)
        with counting(network, image_shape=self.data.shape[1:], histogram_bins=0, by_sample=False) as counter:
            found = evaluate(network, self.batches, self.accelerator)
        scored = {name: getattr(found, name) for name in ("images", "accuracy", "first_spike_accuracy")}
        return self.simulated(network, replace(row, **scored, **self.stamp()), counter.counts())

    def simulated(self, network: nn.Module, row: FrontierRow, counts: Counts) -> Found:
        """A row of a network that was scored: simulated on the same images.

        At its grid's steps, with how many images both decide alike; without a grid, at the steps of the sweep and, as
        networks are compared at them, at all of `STEPS`.
        """
        network.to(self.accelerator.device)
        free = row.time_steps is None
        steps = (self.options.steps, *STEPS) if row.time_steps is None else (row.time_steps,)
        found = simulate_at(network, self.batches, steps, weight_bits=BITS if free else "network")
        row = row if free else self._compared(network, row, found[0])
        return Found([row], counts, [simulated_run(each) for each in found])

    def _compared(self, network: nn.Module, row: FrontierRow, simulated: Simulation) -> FrontierRow:
        """The row with how many images network and simulation decide alike."""
        device = self.accelerator.device
        readout = network_graph(network.eval(), self.data.shape[1:]).readout
        with torch.no_grad():
            found = [logits_and_decision(network, readout, images.to(device)) for images, _ in self.batches]
        ours = torch.cat([logits.argmax(1).cpu() for logits, _ in found])
        first = torch.cat([decision.prediction.cpu() for _, decision in found])
        return replace(
            row,
            same_decisions=int((ours == simulated.predictions.cpu()).sum()),
            same_first_spike_decisions=int((first == simulated.first_spike_predictions.cpu()).sum()),
        )

    def stamp(self) -> dict[str, str]:
        """Who measures, and when."""
        return {
            "device": device_name(self.accelerator.device),
            "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        }

    def price(self, found: Found) -> FrontierRow:
        """The row with what the network does, and costs."""
        assert found.counts is not None, "scoring counts"
        return with_costs(found.rows[0], found.counts, found.runs, self.options.chip)

    def with_faults(self, network: nn.Module, row: FrontierRow, faults: Faults) -> FrontierRow:
        """A row of the same network on a faulty chip, simulated."""
        network.to(self.accelerator.device)
        free = row.time_steps is None
        found = simulate(
            network,
            self.batches,
            steps=self.options.steps if free else "network",
            weight_bits=BITS if free else "network",
            faults=faults,
            seed=self.options.fault_seed,
        )
        assert found.accuracy is not None, "test images have labels"
        return replace(
            identity(row),
            kind="faults",
            accuracy=found.accuracy,
            first_spike_accuracy=found.first_spike_accuracy,
            images=found.samples,
            steps=found.settings.steps,
            **vars(faults),
            **self.stamp(),
        )

    def in_time(self, network: nn.Module, row: FrontierRow) -> list[FrontierRow]:
        """Rows of the same network by deadline."""
        network.to(self.accelerator.device)
        row = replace(identity(row), kind="deadline", **self.stamp())
        return [
            replace(row, deadline=found.deadline, decision_time=found.time, accuracy=found.accuracy)
            for found in deadline_curve(output_spikes(network, self.batches, self.data.shape[1:]))
        ]


def identity(row: FrontierRow) -> FrontierRow:
    """The row without figures: which network it is of, on which images."""
    kept = ("network", "point", "kind", "trained", "images", *GRID, "epochs", "weights_sha256", "folder")
    return FrontierRow(**{name: getattr(row, name) for name in kept}, accuracy=0.0)


def summary_row(summary: dict[str, Any], row: FrontierRow) -> FrontierRow:
    """The row with the figures of a run that has ended: its test images were scored once, and are not again."""
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
        epochs=summary["epochs"],
        device=summary["device"],
    )
