"""Saves and restores a run, and checks that a resumed run has its checkpoint's configuration, data and precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from torch import Tensor

from ttfs_triton.command_line import problem_lines
from ttfs_triton.evaluate import versions
from ttfs_triton.model.weights import not_finite
from ttfs_triton.nn import NetworkGraph
from ttfs_triton.run_records import Change, EpochLine
from ttfs_triton.train.build import RunData
from ttfs_triton.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from ttfs_triton.train.config import ConfigError, TrainConfig, changed_keys, differing_keys, make_config

if TYPE_CHECKING:
    from ttfs_triton.train.loop import TrainingLoop

VERSIONS = ("ttfs-triton", "torch")
"""Packages whose versions are saved in checkpoints: a step's results may change with them."""


class EpochTotals(BaseModel):
    """Sums over the steps of the epoch so far, over all processes."""

    model_config = ConfigDict(allow_inf_nan=False)

    loss: float = 0.0
    correct: int = Field(default=0, ge=0, lt=2**53)
    images: int = Field(default=0, ge=0, lt=2**53)
    seconds: float = Field(default=0.0, ge=0)


class Position(BaseModel):
    """Progress of a run; with the seed, it determines the next batch.

    Attributes:
        epoch: epochs completed and evaluated.
        step_in_epoch: optimiser steps done in the current epoch.
        step: optimiser steps done in all.
        totals: sums over the steps of the current epoch.
        metrics: one line for each completed epoch.
        best_epoch, best_accuracy: the best epoch so far on the validation images; epochs count from 1. 0 is the start
            from trained weights, or none yet if the accuracy is below 0.
        best_miss: relative distance of that epoch from the run's target.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    epoch: NonNegativeInt = 0
    step_in_epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    totals: EpochTotals = EpochTotals()
    metrics: list[EpochLine] = []
    best_epoch: NonNegativeInt = 0
    best_accuracy: float = Field(default=-1.0, ge=-1, le=1)
    best_miss: float = Field(default=0.0, ge=0)

    def is_best(self, accuracy: float, miss: float = 0.0) -> bool:
        """Whether an epoch is the best so far: by the target's miss, then accuracy, then the later epoch.

        On a few thousand images, several epochs often have the same accuracy. The last of them was never worse than the
        epoch with the lowest loss (bench/results/checkpoint_choice.csv).
        """
        if self.best_epoch and miss != self.best_miss:
            return miss < self.best_miss
        return accuracy >= self.best_accuracy

    def random_seed(self, seed: int, process: int) -> int:
        """Seed of the random numbers of the next step in a process."""
        mixed = 0
        for number in (seed, self.step, process):
            mixed = (mixed * 1_000_003 + number + 1) % (2**63)
        return mixed

    def fits(self, step: int, steps_per_epoch: int) -> bool:
        """Whether this position is the one after `step` optimiser steps."""
        done = self.epoch * steps_per_epoch + self.step_in_epoch
        return self.step == step == done and self.best_epoch <= self.epoch == len(self.metrics)


class RunDescription(BaseModel):
    """Everything that determines a run's course, as saved in its checkpoints.

    Attributes:
        configuration: all keys and their values.
        precision: mixed precision, as accelerate names it.
        processes: number of processes, which only changes rounding.
        data, test_data: fingerprints of the training and test images.
        layers: layers of a user-defined network; None if the configuration describes the network.
        teacher: SHA-256 of the teacher's weights, None without a teacher.
        versions: version of each package in `VERSIONS`.
    """

    configuration: dict[str, Any]
    precision: str
    processes: int
    data: str
    test_data: str
    layers: Any = None
    teacher: str | None = None
    versions: dict[str, str] = {}

    @classmethod
    def of(
        cls, config: TrainConfig, accelerator: Accelerator, data: RunData, graph: NetworkGraph, teacher: str | None
    ) -> RunDescription:
        """Describe a run that begins or resumes now."""
        found = versions()
        return cls(
            configuration=config.model_dump(mode="json", exclude={"resume", "overwrite"}),
            precision=accelerator.mixed_precision,
            processes=accelerator.num_processes,
            data=data.train.fingerprint,
            test_data=data.test.fingerprint,
            layers=None if config.network is None else graph.describe(),
            teacher=teacher,
            versions={name: found[name] for name in VERSIONS if name in found},
        )


class RunState(RunDescription):
    """State of a checkpoint.

    Attributes:
        position: progress of the run.
        scaler: gradient scaling in fp16.
        changes: what changed at each resume.
        started: config.json of a run that began with weights.
        held_layers: `SilentChannels.layers` of a run with a target.
    """

    position: Position
    scaler: dict[str, Any] | None
    changes: list[Change]
    started: dict[str, Any] | None = None
    held_layers: list[str] | None = None


def read_state(checkpoint: Checkpoint) -> RunState:
    """The state of a checkpoint."""
    try:
        return RunState.model_validate(checkpoint.state)
    except ValidationError as error:
        lines = "\n".join(problem_lines(error))
        raise CheckpointError(
            f"load_checkpoint: state of {checkpoint.path} must be as it was written:\n{lines}"
        ) from error


def check_configuration(path: Path, before: RunDescription, config: TrainConfig) -> None:
    """Raise ConfigError if a resumed run would take another course, naming each key with both values."""
    if changes := changed_keys(make_config(before.configuration, str(path)), config):
        lines = "\n".join(f"  {key}: {old!r} → {new!r}" for key, (old, new) in changes.items())
        raise ConfigError(
            f"--resume: the configuration must be the one of {path}; these keys differ:\n{lines}\n"
            "Leave those flags out, put the keys of config.yaml back, or start a new run with another --output-dir."
        )


def check_same_run(path: Path, before: RunDescription, now: RunDescription, step: int) -> list[Change]:
    """Raise ConfigError if a resumed run differs from its checkpoint so that results change; return other differences.

    Args:
        path: the checkpoint, for messages.
        before, now: the run in the checkpoint, and the resumed run.
        step: optimiser steps done, for the returned changes.
    Returns:
        Allowed differences: keys that do not change the run's course, number of processes, versions.
    """
    images = f"images must be those that {path} was made with; they differ. Give the same --data-dir or --dataset."
    rules = {
        "data": f"the training {images}",
        "test_data": f"the test {images}",
        "layers": f"the network must be the one in {path}; its layers differ. Restore the code that built it then.",
        "teacher": f"the teacher must be the one of {path}; its weights differ. Give the same --teacher.",
        "precision": f"mixed precision must be {before.precision}, as in {path}; got {now.precision}. "
        f"Launch it as before: accelerate launch --mixed_precision {before.precision}.",
    }
    problems = [rule for key, rule in rules.items() if getattr(before, key) != getattr(now, key)]
    if problems:
        raise ConfigError("\n".join(f"--resume: {problem}" for problem in problems))
    keys = differing_keys(*(make_config(run.configuration, str(path)) for run in (before, now)))
    if before.processes != now.processes:
        keys["processes"] = before.processes, now.processes
    for name, version in before.versions.items():
        if version != now.versions.get(name):
            keys[name] = version, now.versions.get(name)
    return [Change(step=step, key=key, before=old, after=new) for key, (old, new) in keys.items()]


def save_run(loop: TrainingLoop) -> None:
    """Write a checkpoint between two steps; one process calls it."""
    scaler, position = loop.accelerator.scaler, loop.position
    state = RunState(
        **dict(loop.description),
        position=position,
        scaler=None if scaler is None else scaler.state_dict(),
        changes=loop.changes,
        started=loop.started,
        held_layers=None if loop.target is None else loop.target.silent_channels.layers,
    ).model_dump()
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": loop.network.state_dict(),
        "optimizer": optimizer_tensors(loop.bare_optimizer),
    }
    if loop.average is not None:
        tensors["average"] = loop.average.state_dict()
    if loop.target is not None:
        tensors["dial"] = {"state": loop.target.multiplier.state}
    keep = loop.config.keep_checkpoints
    save_checkpoint(loop.folder.checkpoints, position.step, tensors=tensors, state=state, keep_last=keep)


def restore_run(loop: TrainingLoop, path: Path) -> None:
    """Restore a checkpoint; raises as `TrainingLoop.resume`."""
    checkpoint = load_checkpoint(path)
    state = read_state(checkpoint)
    loop.changes = state.changes + check_same_run(path, state, loop.description, checkpoint.step)
    try:
        _restore(loop, state, checkpoint.tensors)
        whole = state.position.fits(checkpoint.step, loop.steps_per_epoch)
        problem = "" if whole else f"its position does not fit {loop.steps_per_epoch} steps an epoch"
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise CheckpointError(
            f"load_checkpoint: {path} must hold the state of this run; {problem:.400}. Delete it: --resume takes an "
            "earlier one."
        )


def _restore(loop: TrainingLoop, state: RunState, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    if broken := [group for group, named in tensors.items() if not_finite(named)]:
        raise ValueError(f"numbers must be finite, also in {', '.join(broken)}")
    modules = {"model": loop.network} | ({} if loop.average is None else {"average": loop.average})
    for group, module in modules.items():
        for name, own in module.state_dict().items():
            if (found := tensors[group][name].dtype) != own.dtype:
                raise TypeError(f"{group}: {name} must be {own.dtype}; got {found}")
        module.load_state_dict(tensors[group])
    load_optimizer_tensors(loop.bare_optimizer, tensors["optimizer"], began=state.position.step > 0)
    if loop.target is not None:
        own, found = loop.target.multiplier.state, tensors["dial"]["state"]
        if found.dtype != own.dtype or found.shape != own.shape or bool((found[2:] < 0).any()):
            raise ValueError("dial: state must hold a multiplier, costs and goals")  # the latter two are never negative
        own.copy_(found)
        if state.held_layers is None:
            raise ValueError("held_layers is missing")
        loop.target.silent_channels.layers = state.held_layers
    if loop.accelerator.scaler is not None and state.scaler is not None:
        loop.accelerator.scaler.load_state_dict(state.scaler)
    loop.position = state.position
