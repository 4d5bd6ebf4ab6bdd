"""Deadlines and early exits of an evaluation: on which images a lead is chosen, on which it is judged."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttfs_triton.data.images import ImageData, load_images, train_validation_split
from ttfs_triton.evaluation.load import KEYS, LoadedNetwork
from ttfs_triton.model import LoadError
from ttfs_triton.report.tables import Table
from ttfs_triton.scoring import EvaluationBatches
from ttfs_triton.scoring.deadline import (
    ConfidenceRow,
    DeadlineRow,
    EarlyExit,
    ExitFigures,
    choose_exit,
    confidence,
    deadline_curve,
    exit_figures,
    output_spikes,
)
from ttfs_triton.wording import percent
from ttfs_triton.yaml_file import YamlError, read_mapping


@dataclass(frozen=True)
class Deadlines:
    """What was found about decision times.

    Attributes:
        rows: accuracy against the deadline, on all test images.
        confidence: accuracy by lead, on all test images.
        exit: the rule, None if none was asked for.
        chosen_on: in words, the images on which it was chosen.
        figures: what it does to the test images on which it was not chosen.
    """

    rows: tuple[DeadlineRow, ...]
    confidence: tuple[ConfidenceRow, ...]
    exit: EarlyExit | None = None
    chosen_on: str = ""
    figures: ExitFigures | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    def write_csv(self, path: Path) -> Path:
        """Write the rows."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(
                file, [field.name for field in dataclasses.fields(DeadlineRow)], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in self.rows)
        return path

    def lines(self) -> list[str]:
        """For a terminal."""
        if self.exit is None or self.figures is None:
            return []
        found = self.figures
        wrong = "none" if found.error is None else percent(found.error)
        return [
            f"early exit               after a lead of {self.exit.lead:.3f} windows, chosen on {self.exit.images:,} "
            f"{self.chosen_on}",
            f"  stated                 at most {percent(self.exit.bound)} of them wrong, with "
            f"{self.exit.confidence:.0%} confidence",
            f"  found                  {percent(found.exits)} of the test images exit, {wrong} of them wrong; all: "
            f"{percent(found.accuracy)} after {found.time:.3f} windows instead of {found.full_time:.3f}",
        ]

    def sentences(self) -> list[str]:
        """The early exit for a page."""
        if self.exit is None or self.figures is None:
            return []
        found = self.figures
        wrong = "none" if found.error is None else percent(found.error)
        return [
            f"Early exit as soon as a spike has led for {self.exit.lead:.3f} windows, chosen on {self.exit.images:,} "
            f"{self.chosen_on}: at most {percent(self.exit.bound)} of exits wrong, with {self.exit.confidence:.0%} "
            "confidence.",
            f"Found: {percent(found.exits)} of the test images exit early, {wrong} of them wrong; all together, "
            f"{percent(found.accuracy)} after {found.time:.3f} windows instead of {found.full_time:.3f}.",
        ]


def find_deadlines(
    loaded: LoadedNetwork, data: ImageData, batch_size: int, error: float | None, certainty: float
) -> Deadlines:
    """Run the network over the test images, and where a lead has to be chosen over held-out ones.

    Args:
        loaded: network, on its device, and the run that it is of.
        data: test images.
        batch_size: images that run at once.
        error: of early exits, None for none.
        certainty: with which it is stated.
    Raises:
        ValueError: there are too few images to promise this error.
    """
    network = loaded.network
    outputs = output_spikes(network, _batches(EvaluationBatches(data, None, batch_size)))
    rows, sure = tuple(deadline_curve(outputs)), tuple(confidence(outputs))
    if error is None:
        return Deadlines(rows, sure)
    held_out = validation_images(loaded)
    if held_out is None:
        # Without a run nobody knows which images it has not been trained on but those of the test set.
        every_other = torch.arange(len(outputs)) % 2 == 0
        rule, others, said = (
            choose_exit(outputs[every_other], error, confidence=certainty),
            outputs[~every_other],
            "test",
        )
        return Deadlines(
            rows, sure, rule, f"{said} images, which are not among those below", exit_figures(others, rule)
        )
    found = output_spikes(network, _batches(EvaluationBatches(*held_out, batch_size)))
    rule = choose_exit(found, error, confidence=certainty)
    return Deadlines(rows, sure, rule, "validation images", exit_figures(outputs, rule))


def validation_images(loaded: LoadedNetwork) -> tuple[ImageData, Tensor] | None:
    """Training images that a run has held out, and their indices; None if there is no run, or it held out none.

    Raises:
        LoadError: the run's configuration is damaged.
    """
    path = None if loaded.files.run is None else loaded.files.run / "config.yaml"
    if path is None or not path.is_file():
        return None
    try:
        values = read_mapping(path)
    except YamlError as error:
        raise LoadError(f"find_deadlines: {path} {error}") from error
    if not values.get("validation_fraction"):
        return None
    options = {key: values[key] for key in KEYS if values.get(key) is not None}
    folder = options.pop("data_dir", None)
    data = load_images(
        options.pop("dataset", None),
        None if folder is None else Path(folder),
        split="train",
        max_samples=values.get("max_train_samples"),
        cropped=bool(values.get("random_resized_crop")),
        events=loaded.description.preprocessing.events,
        progress=True,
        **options,
    )
    return data, train_validation_split(data, float(values["validation_fraction"]), int(values["seed"]))[1]


def deadline_table(found: Deadlines) -> Table:
    """Accuracy against the deadline."""
    return Table(
        "Decisions by a deadline, in windows from the image's start. All: forced, by potentials if nothing has fired.",
        ("deadline", "all", "fired by then", "right of them", "mean decision time"),
        tuple(
            (
                f"{row.deadline:.2f}",
                percent(row.accuracy),
                percent(row.decided),
                "–" if row.decided_accuracy is None else percent(row.decided_accuracy),
                f"{row.time:.3f}",
            )
            for row in found.rows
        ),
    )


def _batches(batches: EvaluationBatches) -> Iterable[tuple[Tensor, Tensor]]:
    for place in range(len(batches)):
        yield batches[place]
