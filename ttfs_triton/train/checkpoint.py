"""Checkpoints of a run: safetensors files, named by step, written whole or not at all, with a hash.

`step-00000123.safetensors` holds tensors named `<group>.<name>`. Its metadata hold "content", a JSON text with the
`RunState`, and "sha256", the hash of this text and of all tensors. States of random generators are not saved, since
every step seeds the generators.
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
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from ttfs_triton.atomic import PARTIAL, tensor_bytes, write_bytes
from ttfs_triton.run_records import EpochLine
from ttfs_triton.train.config import ConfigError, TrainConfig, changed_keys, make_config
from ttfs_triton.untrusted_files import read_regular

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
_NAME = re.compile(r"step-(\d+)\.safetensors")
_PARTIAL = re.compile(rf"\..+\.{PARTIAL}-\d+")


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or its format is unknown."""


class _Finite(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class EpochTotals(_Finite):
    """Sums over the steps of the epoch so far, over all processes."""

    loss: float = 0.0
    correct: int = Field(default=0, ge=0, lt=2**53)
    images: int = Field(default=0, ge=0, lt=2**53)
    seconds: float = Field(default=0.0, ge=0)


class Position(_Finite):
    """Progress of a run in evaluated epochs and in optimiser steps; together with the seed, it gives the next batch.

    `best_epoch` counts from 1; 0: none yet. `best_miss` is that epoch's relative distance from the run's target.
    """

    epoch: NonNegativeInt = 0
    step_in_epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    totals: EpochTotals = EpochTotals()
    metrics: list[EpochLine] = []
    best_epoch: NonNegativeInt = 0
    best_accuracy: float = Field(default=-1.0, ge=-1, le=1)
    best_miss: float = Field(default=0.0, ge=0)
    ended: bool = False
    """Whether a callback made the last epoch the last of the run."""

    def end_epoch(self, figures: dict[str, Any], accuracy: float | None, miss: float) -> bool:
        """End the epoch with its line of metrics.jsonl; returns whether it is the best so far.

        The best epoch misses a target by the least, then has the highest accuracy; without accuracies, it is the last.
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

    def fits(self, steps_per_epoch: int) -> bool:
        """Whether the numbers of steps and epochs agree."""
        done = self.epoch * steps_per_epoch + self.step_in_epoch
        return self.step == done and self.best_epoch <= self.epoch == len(self.metrics)


class RunDescription(BaseModel):
    """Everything that determines a run's course, as saved in its checkpoints.

    `data` and `test_data` are fingerprints of images, `teacher` is the SHA-256 of a teacher's weights; `layers` are
    those of a user-defined network, which no key describes.
    """

    configuration: dict[str, Any]
    precision: str
    data: str
    test_data: str
    layers: Any = None
    teacher: str | None = None


class RunState(RunDescription):
    """State of a checkpoint."""

    position: Position
    scaler: dict[str, Any] | None
    processes: int | None = None
    started: dict[str, Any] | None = None
    """config.json of a run that began with weights."""
    held_layers: list[str] | None = None
    """`SilentChannels.layers` of a run with a target."""

    def ended(self, config: TrainConfig) -> bool:
        """Whether a callback ended the run, and `config` does not ask for other epochs."""
        return self.position.ended and self.configuration["epochs"] == config.epochs


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: the run's state, and tensors on the CPU, by group ("model", ...) and name."""

    path: Path
    state: RunState
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(
    folder: Path, state: RunState, tensors: Mapping[str, Mapping[str, Tensor]], *, keep_last: int
) -> None:
    """Write a checkpoint, then delete older ones but the newest; a kill at any moment leaves whole checkpoints only.

    The folder must exist, so that a run whose folder was moved away makes no second one.
    """
    step = state.position.step
    write_bytes(checkpoint_path(folder, step), checkpoint_bytes(json.dumps(state.model_dump()), tensors))
    older = [old for number, old in _numbered(folder) if number < step]
    for old in older[: max(0, len(older) + 1 - keep_last)]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:  # the new one is whole, so training goes on
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
        data = read_regular(path)
        flat = from_safetensors(data)
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if about["sha256"] != _digest(about["content"], flat):
            raise ValueError("its content is not as it was written")
        content = json.loads(about["content"])
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format version {content['format_version']} must be {FORMAT_VERSION}")
        tensors: dict[str, dict[str, Tensor]] = {group: {} for group in content["groups"]}
        for name, tensor in flat.items():
            group, _, rest = name.partition(".")
            tensors[group][rest] = tensor
        return Checkpoint(path, RunState.model_validate(json.loads(content["state"])), tensors)
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"load_checkpoint: {path} must be a whole checkpoint; {type(error).__name__}: {error!s:.200}. Delete it or "
            "resume from an earlier one."
        ) from error


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint; None if there are no checkpoints. Damaged ones are skipped, and logged."""
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


def check_same_run(checkpoint: Checkpoint, config: TrainConfig, now: RunDescription | None = None) -> None:
    """Raise ConfigError if a resumed run would take another course than that of its checkpoint. `now` is None before
    data are loaded.
    """
    before, path = checkpoint.state, checkpoint.path
    changed = changed_keys(make_config(before.configuration, str(path)), config)
    facts = () if now is None else ((name, getattr(before, name), value) for name, value in now)
    changed |= {name: (old, new) for name, old, new in facts if name != "configuration" and old != new}
    if changed:
        lines = "\n".join(f"  {key}: {old!r:.80} → {new!r:.80}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"--resume: the run must be the one of {path}; these differ:\n{lines}\nLeave those flags out, put the keys "
            "of config.yaml, data, code and precision back, or start a new run with another --output-dir."
        )
