"""Rows of a frontier: what one network does on the test images, as it is, on a faulty chip, in time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ttfs_triton.data.images import ImageData
from ttfs_triton.frontier.options import GRID, FrontierOptions
from ttfs_triton.hardware import Counts, counting, simulate
from ttfs_triton.nn import network_graph
from ttfs_triton.nn.decision import logits_and_decision
from ttfs_triton.nn.faults import Faults
from ttfs_triton.report.frontier_table import FrontierRow, with_costs
from ttfs_triton.scoring import EvaluationBatches, device_name, evaluate
from ttfs_triton.scoring.deadline import deadline_curve, output_spikes

# Bits of a weight, of networks without a grid that are simulated.
BITS = 8


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

    def score(self, network: nn.Module, row: FrontierRow) -> tuple[FrontierRow, Counts]:
        """A row of a network that is scored here, and what it did."""
        network.to(self.accelerator.device)
        with counting(network, image_shape=self.data.shape[1:], histogram_bins=0, by_sample=False) as counter:
            found = evaluate(network, self.batches, self.accelerator)
        row = replace(
            row, images=found.images, accuracy=found.accuracy, first_spike_accuracy=found.first_spike_accuracy
        )
        return self.agree(network, replace(row, **self.stamp())), counter.counts()

    def stamp(self) -> dict[str, str]:
        """Who measures, and when."""
        return {
            "device": device_name(self.accelerator.device),
            "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        }

    def price(self, counts: Counts, row: FrontierRow) -> FrontierRow:
        """The row with what its counts say, and cost."""
        return with_costs(row, counts, self.options.chip, row.time_steps or self.options.steps)

    def agree(self, network: nn.Module, row: FrontierRow) -> FrontierRow:
        """The row with how many images a network on a grid and its simulation decide alike; another one as it is."""
        if row.time_steps is None:
            return row
        device = self.accelerator.device
        readout = network_graph(network.to(device).eval(), self.data.shape[1:]).readout
        with torch.no_grad():
            found = [logits_and_decision(network, readout, images.to(device)) for images, _ in self.batches]
        ours = torch.cat([logits.argmax(1).cpu() for logits, _ in found])
        first = torch.cat([decision.prediction.cpu() for _, decision in found])
        simulated = simulate(network, self.batches)
        return replace(
            row,
            same_decisions=int((ours == simulated.predictions.cpu()).sum()),
            same_first_spike_decisions=int((first == simulated.first_spike_predictions.cpu()).sum()),
        )

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
        outputs = output_spikes(network, self.batches, self.data.shape[1:])
        return [
            replace(
                identity(row),
                kind="deadline",
                deadline=found.deadline,
                decision_time=found.time,
                accuracy=found.accuracy,
                **self.stamp(),
            )
            for found in deadline_curve(outputs)
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
