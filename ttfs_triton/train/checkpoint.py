"""Checkpoints of a run: one safetensors file each, written whole or not at all, with a hash, named by step.

`step-00000123.safetensors` holds tensors named `<group>.<name>`. Its metadata hold "content", a JSON text with the
`RunState`, and "sha256", the hash of this text and of all tensors. Random states are not saved: each step seeds its own
generators.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from ttfs_triton.atomic import PARTIAL, tensor_bytes, write_bytes
from ttfs_triton.command_line import problem_lines
from ttfs_triton.evaluate import versions
from ttfs_triton.nn import NetworkGraph
from ttfs_triton.run_records import Change, EpochLine
from ttfs_triton.train.config import ConfigError, TrainConfig, changed_keys, differing_keys, make_config
from ttfs_triton.train.data import RunData
from ttfs_triton.untrusted_files import read_regular

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
VERSIONS = ("ttfs-triton", "torch")
"""Packages whose versions are saved in checkpoints: a step's results may change with them."""
HARMLESS = ("processes", *VERSIONS)
"""What may differ at `--resume` beside keys of the configuration."""
_NAME = re.compile(r"step-(\d+)\.safetensors")
_PARTIAL = re.compile(rf"\..+\.{PARTIAL}-\d+")


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or its format is unknown."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: tensors on the CPU, group ("model", "optimizer", ...) → name → tensor, and JSON."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep_last: int,
) -> None:
    """Write a checkpoint, then delete older ones but the newest; a kill at any moment leaves whole checkpoints only.

    The folder must exist, so that a run whose folder was moved away makes no second one.
    """
    write_bytes(checkpoint_path(folder, step), checkpoint_bytes(json.dumps(state), tensors))
    older = [old for number, old in _numbered(folder) if number < step]
    for old in older[: max(0, len(older) + 1 - keep_last)]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:  # the new one is whole, so that training goes on
            logger.warning("old checkpoint could not be deleted: %s", error)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of a step's checkpoint in a folder."""
    return folder / f"step-{step:08d}.safetensors"


def checkpoint_bytes(state: str, tensors: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """The bytes of a checkpoint file: `state` is JSON text, `tensors` are group → name → tensor."""
    flat = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }
    content = json.dumps({"format_version": FORMAT_VERSION, "groups": list(tensors), "state": state})
    return tensor_bytes(flat, {"content": content, "sha256": _digest(content, flat)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint."""
    try:
        data, named = read_regular(path), _NAME.fullmatch(path.name)
        flat = from_safetensors(data)
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if named is None or about["sha256"] != _digest(about["content"], flat):
            raise ValueError("its name or content is not as it was written")
        content = json.loads(about["content"])
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format version {content['format_version']} must be {FORMAT_VERSION}")
        tensors: dict[str, dict[str, Tensor]] = {group: {} for group in content["groups"]}
        for name, tensor in flat.items():
            group, _, own = name.partition(".")
            tensors[group][own] = tensor
        return Checkpoint(path, int(named[1]), tensors, json.loads(content["state"]))
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"load_checkpoint: {path} must be a whole checkpoint; {type(error).__name__}: {error!s:.200}. Delete it or "
            "resume from an earlier one."
        ) from error


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint; None if there are no checkpoints. Damaged ones are logged and skipped."""
    numbered = _numbered(folder)
    for _, path in reversed(numbered):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("checkpoint passed over: %s", error)
    if numbered:
        raise CheckpointError(
            "--resume: at least one checkpoint must be intact and of this version; none is. Restore a copy of one, or "
            "start again with --overwrite; no file has been changed."
        )
    return None


def clean_partial(folder: Path) -> None:
    """Remove the unfinished files of killed processes; only the process that writes to the folder may call it."""
    for path in filter(is_partial, folder.glob(".*")):
        path.unlink()


def is_partial(path: Path) -> bool:
    """Whether this file, by its name, was left unfinished by a killed process."""
    return _PARTIAL.fullmatch(path.name) is not None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoints in a folder as (step, path), damaged ones included, by rising step."""
    return sorted((int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name)))


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Finite(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class EpochTotals(_Finite):
    """Sums over the steps of the epoch so far, over all processes."""

    loss: float = 0.0
    correct: int = Field(default=0, ge=0, lt=2**53)
    images: int = Field(default=0, ge=0, lt=2**53)
    seconds: float = Field(default=0.0, ge=0)


class Position(_Finite):
    """Progress of a run, in epochs that are evaluated and in optimiser steps; with the seed, it gives the next batch.

    `best_epoch` counts from 1: 0 is the start from trained weights, or none yet if `best_accuracy` is below 0.
    `best_miss` is that epoch's relative distance from the run's target.
    """

    epoch: NonNegativeInt = 0
    step_in_epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    totals: EpochTotals = EpochTotals()
    metrics: list[EpochLine] = []
    best_epoch: NonNegativeInt = 0
    best_accuracy: float = Field(default=-1.0, ge=-1, le=1)
    best_miss: float = Field(default=0.0, ge=0)

    def end_epoch(self, figures: dict[str, Any], accuracy: float | None, miss: float) -> bool:
        """End the epoch with its line of metrics.jsonl; returns whether it is the best so far.

        The best has the least miss of a target, then the highest accuracy; without accuracies, it is the last.
        """
        totals, best = self.totals, accuracy is None or accuracy >= self.best_accuracy
        # Of epochs with the same accuracy, the last was never worse than the one with the lowest loss
        # (bench/results/checkpoint_choice.csv).
        if accuracy is not None and self.best_epoch and miss != self.best_miss:
            best = miss < self.best_miss
        line = EpochLine(
            epoch=self.epoch + 1,
            step=self.step,
            train_loss=totals.loss / totals.images,
            train_accuracy=totals.correct / totals.images,
            seconds=totals.seconds,
            images_per_second=totals.images / max(totals.seconds, 1e-9),  # a clock may stand still
            **figures,
        )
        self.metrics.append(line)
        self.epoch, self.step_in_epoch, self.totals = self.epoch + 1, 0, EpochTotals()
        if best:
            self.best_epoch = self.epoch
        if best and accuracy is not None:
            self.best_accuracy, self.best_miss = accuracy, miss
        return best

    def fits(self, step: int, steps_per_epoch: int) -> bool:
        """Whether this position is the one after `step` optimiser steps."""
        done = self.epoch * steps_per_epoch + self.step_in_epoch
        return self.step == step == done and self.best_epoch <= self.epoch == len(self.metrics)


class RunDescription(BaseModel):
    """Everything that determines a run's course, as saved in its checkpoints.

    `data` and `test_data` are fingerprints of images, `teacher` is the SHA-256 of a teacher's weights; `layers` are
    those of a user-defined network, which no key describes.
    """

    configuration: dict[str, Any]
    precision: str
    processes: int
    data: str
    test_data: str
    layers: Any = None
    teacher: str | None = None
    versions: dict[str, str] = {}

    def facts(self) -> dict[str, Any]:
        """What is compared at `--resume` beside the configuration, by its names in messages."""
        return {
            "training images": self.data,
            "test images": self.test_data,
            "layers": self.layers,
            "teacher's weights": self.teacher,
            "mixed precision": self.precision,
            "processes": self.processes,
            **self.versions,
        }

    @classmethod
    def of(
        cls, config: TrainConfig, accelerator: Accelerator, data: RunData, graph: NetworkGraph, teacher: str | None
    ) -> RunDescription:
        """Describe a run that begins or resumes now."""
        packages = versions()
        return cls(
            configuration=config.model_dump(mode="json", exclude={"resume", "overwrite"}),
            precision=accelerator.mixed_precision,
            processes=accelerator.num_processes,
            data=data.train.fingerprint,
            test_data=data.test.fingerprint,
            layers=None if config.network is None else graph.describe(),
            teacher=teacher,
            versions={name: packages[name] for name in VERSIONS if name in packages},
        )


class RunState(RunDescription):
    """State of a checkpoint; `changes` are those of each resume."""

    position: Position
    scaler: dict[str, Any] | None
    changes: list[Change]
    started: dict[str, Any] | None = None
    """config.json of a run that began with weights."""
    held_layers: list[str] | None = None
    """`SilentChannels.layers` of a run with a target."""


def read_state(checkpoint: Checkpoint) -> RunState:
    """The state of a checkpoint."""
    try:
        return RunState.model_validate(checkpoint.state)
    except ValidationError as error:
        lines = "\n".join(problem_lines(error))
        raise CheckpointError(
            f"load_checkpoint: state of {checkpoint.path} must be as it was written:\n{lines}"
        ) from error


def check_same_run(checkpoint: Checkpoint, config: TrainConfig, now: RunDescription | None = None) -> list[Change]:
    """Differences of a resumed run from its checkpoint that do not change its course; a ConfigError names all others.

    `now` describes the whole run, as soon as its data are loaded.
    """
    before, path = read_state(checkpoint), checkpoint.path
    old = make_config(before.configuration, str(path))
    keys, changed = differing_keys(old, config), changed_keys(old, config)
    if now is not None:
        facts = now.facts()
        keys |= {name: (value, facts.get(name)) for name, value in before.facts().items() if value != facts.get(name)}
        changed |= {name: values for name, values in keys.items() if name in facts and name not in HARMLESS}
    if changed:
        lines = "\n".join(f"  {key}: {old!r:.80} → {new!r:.80}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"--resume: the run must be the one of {path}; these differ:\n{lines}\nLeave those flags out, put the keys "
            "of config.yaml, data, code and precision back, or start a new run with another --output-dir."
        )
    return [Change(step=checkpoint.step, key=key, before=old, after=new) for key, (old, new) in keys.items()]
