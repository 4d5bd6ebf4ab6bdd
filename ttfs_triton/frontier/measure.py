"""Rows of a frontier: what one network does on the test images, as it is, on a faulty chip, in time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.data.images import ImageData
from ttfs_triton.frontier.points import GRID
from ttfs_triton.hardware import Counts, counting, simulate
from ttfs_triton.nn import network_graph
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
        data: test images.
        accelerator: whose device runs networks.
        batch_size: images that run at once.
        chips: to price on.
        steps: time steps a window of networks without a grid.
        seed: of faulty chips.
    """

    data: ImageData
    accelerator: Accelerator
    batch_size: int
    chips: tuple[str, ...]
    steps: int
    seed: int

    @property
    def batches(self) -> EvaluationBatches:
        """All test images, in order."""
        return EvaluationBatches(self.data, None, self.batch_size)

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
        return with_costs(row, counts, self.chips, row.time_steps or self.steps)

    def agree(self, network: nn.Module, row: FrontierRow) -> FrontierRow:
        """The row with how many images a network on a grid and its simulation decide alike; another one as it is."""
        if row.time_steps is None:
            return row
        network.to(self.accelerator.device)
        ours, first = decisions(network, self.batches, self.data.shape[1:])
        found = simulate(network, self.batches)
        return replace(
            row,
            same_decisions=int((ours == found.predictions.cpu()).sum()),
            same_first_spike_decisions=int((first == found.first_spike_predictions.cpu()).sum()),
        )

    def with_faults(self, network: nn.Module, row: FrontierRow, faults: Faults) -> FrontierRow:
        """A row of the same network on a faulty chip, simulated."""
        network.to(self.accelerator.device)
        free = row.time_steps is None
        found = simulate(
            network,
            self.batches,
            steps=self.steps if free else "network",
            weight_bits=BITS if free else "network",
            faults=faults,
            seed=self.seed,
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


@torch.no_grad()
def decisions(network: nn.Module, batches: EvaluationBatches, image_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Classes [images] that a network decides for as evaluation runs it, by its readout and by the earliest spike."""
    readout, device = network_graph(network, image_shape).readout, next(network.parameters()).device
    training, arriving, decided = network.training, [], []
    hook = readout.register_forward_pre_hook(lambda _, inputs: arriving.append(inputs[0]))
    network.eval()
    try:
        for images, _ in batches:
            logits = network(images.to(device))
            decided.append(torch.stack([logits.argmax(1), readout.decide(arriving.pop()).prediction]).cpu())
    finally:
        hook.remove()
        network.train(training)
    ours, first = torch.cat(decided, 1)
    return ours, first


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
