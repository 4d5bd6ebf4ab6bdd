"""Checkpoints of a run: one safetensors file each, written whole or not at all, with a hash, named by step.

`step-00000123.safetensors` holds tensors named `<group>.<name>`. Its metadata hold "content", a JSON text, and
"sha256", the hash of this text and of all tensors. Random states are not saved: each step seeds its own generators.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor
from torch.optim import Optimizer

from ttfs_triton.atomic import PARTIAL, tensor_bytes, write_bytes
from ttfs_triton.untrusted_files import read_regular

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
_NAME = re.compile(r"step-(\d+)\.safetensors")
_PARTIAL = re.compile(rf"\..+\.{PARTIAL}-\d+")


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or its format is unknown."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: the file.
        step: optimizer steps done when it was saved.
        tensors: group ("model", "optimizer", ...) → name → CPU tensor, contiguous.
        state: JSON values, by key.
    """

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
    """Write a checkpoint, then delete older ones; a kill or a full disk at any moment leaves whole checkpoints only.

    A checkpoint of the same step is replaced. Only one process of a run may call this.

    Args:
        folder: `<run>/checkpoints`; must exist, so that a run whose folder was moved away makes no second one.
        step: optimizer steps done.
        tensors: group → name → tensor; see `tensor_bytes` for the tensors that are allowed.
        state: JSON values, by key.
        keep_last: number of checkpoints to keep, this one included.
    """
    write_bytes(checkpoint_path(folder, step), checkpoint_bytes(json.dumps(state), tensors))
    older = [old for number, old in _numbered(folder) if number < step]
    for old in older[: max(0, len(older) + 1 - keep_last)]:
        try:
            old.unlink()
        except OSError as error:
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


def latest_checkpoint(folder: Path) -> Path | None:
    """Path of the newest intact checkpoint; None if there are no checkpoints. Damaged ones are logged and skipped.

    Args:
        folder: `<run>/checkpoints`; need not exist.
    """
    problems: list[str] = []
    for _, path in reversed(_numbered(folder)):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            for problem in problems:
                logger.warning("checkpoint passed over: %s", problem)
            return path
    if problems:
        raise CheckpointError(
            "--resume: at least one checkpoint must be intact and of this version; none is:\n  "
            + "\n  ".join(problems)
            + "\n"
            "Restore a copy of one, or start again with --overwrite; no file has been changed."
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
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Moments and step counts as `<parameter index>.<name>`, sharing memory with the optimizer."""
    return {
        f"{index}.{name}": value
        for index, own in optimizer.state_dict()["state"].items()
        for name, value in own.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor], *, began: bool = True) -> None:
    """Load what `optimizer_tensors` returned; the next step is the same, bit for bit.

    Args:
        optimizer: a new optimizer of the same class, over parameters of the same shapes in the same order.
        began: the optimizer had made a step; Adam has no moments before it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needed = set(optimizer_tensors(optimizer))
    if "betas" in optimizer.defaults:  # a parameter without a gradient has no moments
        moments = ("step", "exp_avg", "exp_avg_sq")
        needed = {f"{name.partition('.')[0]}.{key}" for name in tensors or ["0"] * began for key in moments}
    if missing := sorted(needed - set(tensors)):
        raise ValueError(f"optimizer: {missing[0]} is missing")
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"optimizer: {name} must be of one of {len(parameters)} parameters")
        parameter = parameters[int(index)]
        if tensor.dim() and tensor.shape != parameter.shape:
            raise ValueError(f"optimizer: {name} must be {list(parameter.shape)}; got {list(tensor.shape)}")
        if tensor.dtype != (parameter.dtype if tensor.dim() else torch.float32):
            raise ValueError(f"optimizer: {name} must have the dtype of its parameter; got {tensor.dtype}")
        # Fused kernels walk memory in order: moments need the strides of their parameter.
        moment = torch.empty_like(parameter if tensor.dim() else tensor, dtype=tensor.dtype, device=parameter.device)
        optimizer.state[parameter][key] = moment.copy_(tensor).detach()
