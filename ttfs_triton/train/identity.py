"""What a run is, as its checkpoints say, and whether what is asked for now is the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ttfs_triton.nn import NetworkGraph
from ttfs_triton.train.build import RunData
from ttfs_triton.train.config import (
    ConfigError,
    TrainConfig,
    changed_keys,
    differing_keys,
    make_config,
    without_retired,
)

_DATA = {"training images": "data", "test images": "test_data"}


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


def identity(config: TrainConfig, accelerator: Accelerator, data: RunData, graph: NetworkGraph) -> dict[str, Any]:
    """All that a run's course follows from, for the state of its checkpoints.

    Returns:
        JSON values: `configuration`, `precision`, `processes`, and hashes of the images as read, `data` (training) and
        `test_data`, and the `layers` of a network that code of the user's builds.
    """
    return {
        "configuration": config.model_dump(mode="json", exclude={"resume", "overwrite"}),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "data": data.train.fingerprint,
        "test_data": data.test.fingerprint,
        "layers": None if config.network is None else graph.describe(),
    }


def check_configuration(path: Path, state: dict[str, Any], config: TrainConfig) -> None:
    """Refuse a configuration other than a checkpoint's, as of an edited config.yaml; needs no data.

    Raises:
        ConfigError: names each key, with both values.
    """
    if "configuration" not in state:  # written before checkpoints said so
        return
    changes = changed_keys(_configuration(path, state), config)
    if changes:
        lines = "\n".join(f"  {key}: {before!r} → {after!r}" for key, (before, after) in changes.items())
        raise ConfigError(
            f"--resume: the configuration must be the one of {path}; config.yaml was edited since:\n{lines}\n"
            "Put these keys back, or start a new run with another --output-dir."
        )


def compare(path: Path, state: dict[str, Any], now: dict[str, Any], step: int) -> list[Change]:
    """Refuse a continuation that would not be the same run; tell what else differs.

    Args:
        path: the checkpoint, for messages.
        state: of the checkpoint; what an older release did not write is not compared.
        now: `identity` of the continuation.
        step: optimiser steps done.
    Returns:
        What differs without changing the course; the number of processes changes rounding only, and is among them.
    Raises:
        ConfigError: precision, training or test images differ; names each.
    """
    problems = [
        f"the {name} must be those that {path} was made with; they differ. Give the same --data-dir or --dataset."
        for name, key in _DATA.items()
        if state.get(key, now[key]) != now[key]
    ]
    if state.get("layers") != now.get("layers"):
        problems.append(
            f"the network must be the one that {path} is of; its layers differ. Give the builder as it was then."
        )
    if (precision := state.get("precision", now["precision"])) != now["precision"]:
        problems.append(
            f"mixed precision must be {precision}, as in {path}; got {now['precision']}. "
            f"Launch it as before: accelerate launch --mixed_precision {precision}."
        )
    if problems:
        raise ConfigError("\n".join(f"--resume: {problem}" for problem in problems))
    changes = []
    if "configuration" in state:
        keys = differing_keys(_configuration(path, state), make_config(now["configuration"], "the configuration"))
        changes = [Change(step, key, before, after) for key, (before, after) in keys.items()]
    if state["processes"] != now["processes"]:
        changes.append(Change(step, "processes", state["processes"], now["processes"]))
    return changes


def _configuration(path: Path, state: dict[str, Any]) -> TrainConfig:
    return make_config(without_retired(state["configuration"]), str(path))
