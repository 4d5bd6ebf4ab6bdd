"""Going on with a run: where it stood, and whether what is asked for now is the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import BaseModel, Field, ValidationError

from ttfs_triton.command_line import problem_lines
from ttfs_triton.nn import NetworkGraph
from ttfs_triton.train.build import RunData
from ttfs_triton.train.checkpoint import Checkpoint, CheckpointError
from ttfs_triton.train.config import (
    ConfigError,
    TrainConfig,
    differing_keys,
    make_config,
    refuse_changes,
    without_retired,
)


class EpochTotals(BaseModel):
    """Sums over the steps of the epoch so far, over all processes."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0


class Position(BaseModel):
    """Progress of a run: enough, with the seed, to go on with the very next batch.

    Attributes:
        epoch: epochs completed and evaluated.
        step_in_epoch: optimiser steps done in the current epoch.
        step: optimiser steps done in all.
        totals: of the current epoch.
        metrics: one line for each completed epoch.
        best_epoch, best_accuracy: best on the validation images so far; epochs count from 1, 0 is none yet.
        best_miss: how far that epoch was from the run's target.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    totals: EpochTotals = Field(default_factory=EpochTotals)
    metrics: list[dict[str, Any]] = Field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_miss: float = 0.0

    def is_best(self, accuracy: float, miss: float = 0.0) -> bool:
        """Whether validation figures are the best so far: by accuracy, then the later epoch.

        A few thousand held-out images often give several epochs one accuracy; the last of them is the most trained, and
        was never worse than the one with the lowest loss (`git show d10560e:bench/checkpoint_choice.py`). Before all
        that counts how far the target was missed, beyond what is tolerated.
        """
        if self.best_epoch and miss != self.best_miss:
            return miss < self.best_miss
        return accuracy >= self.best_accuracy

    def random_seed(self, seed: int, process: int) -> int:
        """Seed of all random numbers of the next step in a process."""
        mixed = 0
        for number in (seed, self.step, process):
            mixed = (mixed * 1_000_003 + number + 1) % (2**63)
        return mixed


@dataclass(frozen=True)
class Change:
    """What a continuation did otherwise than before, without taking another course.

    Attributes:
        step: optimiser steps done when it began.
        key: of the configuration, or "processes".
        before, after: its values.
    """

    step: int
    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} → {self.after!r}"


class RunDescription(BaseModel):
    """All that a run's course follows from.

    Attributes:
        configuration: every key.
        precision: mixed precision, as accelerate names it.
        processes: how many; it changes rounding only.
        data, test_data: hashes of the training and test images as read.
        layers: of a network that code of the user's builds; None: the configuration says it.
        teacher: SHA-256 of the teacher's weights, None without a teacher.
    """

    configuration: dict[str, Any]
    precision: str
    processes: int
    data: str
    test_data: str
    layers: Any = None
    teacher: str | None = None

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        accelerator: Accelerator,
        data: RunData,
        graph: NetworkGraph,
        *,
        teacher: str | None = None,
    ) -> RunDescription:
        """The description of a run that begins or goes on now."""
        return cls(
            configuration=config.model_dump(mode="json", exclude={"resume", "overwrite"}),
            precision=accelerator.mixed_precision,
            processes=accelerator.num_processes,
            data=data.train.fingerprint,
            test_data=data.test.fingerprint,
            layers=None if config.network is None else graph.describe(),
            teacher=teacher,
        )


class RunState(RunDescription):
    """What `state.json` of a checkpoint holds: the run, where it stood, and what of its parts are no tensors."""

    position: Position
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    changes: list[Change]


def read_state(path: Path, checkpoint: Checkpoint) -> RunState:
    """The state of a checkpoint.

    Raises:
        CheckpointError: keys are missing or of another type.
    """
    try:
        return RunState.model_validate(checkpoint.state)
    except ValidationError as error:
        lines = "\n".join(problem_lines(error))
        raise CheckpointError(f"load_checkpoint: state.json of {path} must be as it was written:\n{lines}") from error


def check_configuration(path: Path, state: RunDescription, config: TrainConfig) -> None:
    """Refuse a configuration other than a checkpoint's, as of an edited config.yaml; needs no data.

    Raises:
        ConfigError: names each key, with both values.
    """
    refuse_changes(
        _configuration(path, state),
        config,
        f"the configuration must be the one of {path}; config.yaml was edited since",
        "Put these keys back, or start a new run with another --output-dir.",
    )


def check_same_run(path: Path, before: RunDescription, now: RunDescription, step: int) -> list[Change]:
    """Refuse a continuation that would not be the same run; tell what else differs.

    Args:
        path: the checkpoint, for messages.
        before: of the checkpoint.
        now: of the continuation.
        step: optimiser steps done.
    Returns:
        What differs without changing the course.
    Raises:
        ConfigError: precision, network, training or test images differ; names each.
    """
    images = f"images must be those that {path} was made with; they differ. Give the same --data-dir or --dataset."
    rules = {
        "data": f"the training {images}",
        "test_data": f"the test {images}",
        "layers": f"the network must be the one that {path} is of; its layers differ. Give the builder as it was then.",
        "teacher": f"the teacher must be the one of {path}; its weights differ. Give the same --teacher.",
        "precision": f"mixed precision must be {before.precision}, as in {path}; got {now.precision}. "
        f"Launch it as before: accelerate launch --mixed_precision {before.precision}.",
    }
    problems = [rule for key, rule in rules.items() if getattr(before, key) != getattr(now, key)]
    if problems:
        raise ConfigError("\n".join(f"--resume: {problem}" for problem in problems))
    keys = differing_keys(_configuration(path, before), make_config(now.configuration, "the configuration"))
    if before.processes != now.processes:
        keys["processes"] = before.processes, now.processes
    return [Change(step, key, old, new) for key, (old, new) in keys.items()]


def _configuration(path: Path, state: RunDescription) -> TrainConfig:
    return make_config(without_retired(state.configuration), str(path))
