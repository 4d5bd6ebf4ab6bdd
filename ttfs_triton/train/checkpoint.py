"""Checkpoints of a run: complete or absent, checked byte by byte, found by step number.

A checkpoint is a folder `step-00000123` with safetensors files, `state.json` and `manifest.json`, which
lists the size and SHA-256 of every other file. It is written under a hidden name and renamed
when all of it is on the disk. No random states are in it: what is drawn comes from a generator seeded by the step.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor
from torch.optim import Optimizer

from ttfs_triton.atomic import PARTIAL, hidden_name, sync_folder, tensor_bytes, write_synced
from ttfs_triton.regular_file import read_regular

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_DELETED, _REPLACED = "deleted", "replaced"
_SUFFIX = ".safetensors"
_HIDDEN = re.compile(rf"\.(.+)\.({PARTIAL}|{_DELETED}|{_REPLACED})-\d+")


class _File(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    size: int = Field(ge=0)
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    format_version: int
    step: int = Field(ge=0)
    files: dict[Annotated[str, Field(pattern=r"^\w[\w-]*\.(json|safetensors)$")], _File]  # none of another folder


class CheckpointError(RuntimeError):
    """A checkpoint that is incomplete, damaged or of an unknown format."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        step: optimizer steps done when it was saved.
        tensors: file stem ("model", "optimizer", ...) → name → CPU tensor, contiguous.
        state: JSON values.
    """

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
) -> Path:
    """Write a checkpoint; at every moment a kill or a full disk leaves the previous ones usable.

    Older checkpoints are deleted only when the new one is on the disk. One of the same step is replaced. Call it from
    one process of a run.

    Args:
        folder: `<run>/checkpoints`, which must exist: a run whose folder was moved makes no second one.
        step: optimizer steps done.
        tensors: file stem → name → tensor; see `tensor_bytes` for what a tensor may be.
        state: JSON values.
        keep_last: how many whole checkpoints to keep, counted back from this one, ≥ 1.
    Returns:
        The folder of the checkpoint, `<folder>/step-<step, 8 digits>`.
    Raises:
        ValueError: a file stem or a tensor is not allowed.
        TypeError: state holds something that JSON cannot express.
        OSError: the disk is full or refuses; no half of a checkpoint is left behind.
    """
    final = folder / checkpoint_name(step)
    partial = hidden_name(final, PARTIAL)
    state_bytes = json.dumps(state, indent=1).encode()
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        files = {"state.json": _write_file(partial / "state.json", state_bytes)}
        for stem, named in tensors.items():
            files[stem + _SUFFIX] = _write_file(partial / (stem + _SUFFIX), tensor_bytes(named))
        manifest = _Manifest(format_version=FORMAT_VERSION, step=step, files=files)
        write_synced(partial / "manifest.json", json.dumps(manifest.model_dump(), indent=1).encode())
        sync_folder(partial)
        # A kill from here to the rename is mended by clean_partial.
        replaced = _hide(final, _REPLACED) if final.exists() else None
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    _delete_old(folder, step, keep_last)
    return final


def checkpoint_name(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, checking every file against the manifest before using any.

    Args:
        path: folder of the checkpoint.
    Raises:
        CheckpointError: the manifest is missing, unreadable, of another format version or names a file
            elsewhere; or a file is missing, has another size or other bytes.
    """
    manifest = _read_manifest(path)
    content = dict(_read_files(path, manifest))
    try:
        state = json.loads(content.pop("state.json"))
        tensors = {name.removesuffix(_SUFFIX): from_safetensors(content.pop(name)) for name in list(content)}
    except (KeyError, ValueError, RecursionError, SafetensorError) as error:
        raise _damaged(path, f"it cannot be decoded, {error!r:.200}") from error
    return Checkpoint(manifest.step, tensors, state)


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step, None if there is none. Damaged ones are logged and passed over.

    Args:
        folder: `<run>/checkpoints`; need not exist.
    Raises:
        CheckpointError: there are some, and all are damaged; a run that began anew would overwrite its best weights.
    """
    problems = []
    for _, path in reversed(_numbered(folder)):
        try:
            for _ in _read_files(path, _read_manifest(path)):
                pass  # reading checks each file; nothing is kept, so memory holds one file at a time
        except (CheckpointError, OSError) as error:  # OSError: a failing disk
            problems.append(str(error))
        else:
            for problem in problems:
                logger.warning("checkpoint passed over: %s", problem)
            return path
    if problems:
        raise CheckpointError(
            "--resume: a checkpoint must be whole to go on; all are damaged:\n  " + "\n  ".join(problems) + "\n"
            "Put a copy of one back, or start again by --overwrite; nothing has been changed."
        )
    return None


def clean_partial(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder, and finish a replacement that was cut short.

    Call it at start-up, before `latest_checkpoint`, from the only process that writes there.

    Args:
        folder: `<run>/checkpoints`, or any folder with files of `ttfs_triton.atomic`; need not exist.
    """
    for path in sorted(folder.glob(".*-*")):
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        if match[2] == _REPLACED and not (folder / match[1]).exists():
            path.rename(folder / match[1])
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def is_partial(path: Path) -> bool:
    """Whether a killed process left this unfinished, by its name."""
    match = _HIDDEN.fullmatch(path.name)
    return match is not None and match[2] == PARTIAL


def _write_file(path: Path, data: bytes) -> _File:
    write_synced(path, data)
    return _File(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _delete_old(folder: Path, step: int, keep_last: int) -> None:
    """Delete all checkpoints older than the last `keep_last` whole ones up to `step`; newer ones stay."""
    older = [entry for entry in _numbered(folder) if entry[0] < step]
    kept = 1
    while older and kept < keep_last:
        kept += _seems_whole(older.pop()[1])
    for _, path in older:
        try:
            # Renamed first: a kill in the middle of the removal must not leave a visible half.
            shutil.rmtree(_hide(path, _DELETED))
        except OSError as error:
            logger.warning("old checkpoint could not be deleted: %s", error)


def _hide(path: Path, purpose: str) -> Path:
    hidden = hidden_name(path, purpose)
    shutil.rmtree(hidden, ignore_errors=True)
    return path.rename(hidden)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """All (step, path) in a folder by rising step, whole or not."""
    found = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def _seems_whole(path: Path) -> bool:
    """Whether the manifest is readable and sizes agree: cheap enough for every save."""
    try:
        for name, entry in _read_manifest(path).files.items():
            _check_size(path, name, entry)
    except CheckpointError:
        return False
    return True


def _read_files(path: Path, manifest: _Manifest) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, checked."""
    for name, entry in manifest.files.items():
        _check_size(path, name, entry)
        data = (path / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _damaged(path, f"{name} differs from its checksum")
        yield name, data


def _check_size(path: Path, name: str, entry: _File) -> None:
    if not (path / name).is_file():
        raise _damaged(path, f"{name} is missing")
    if (size := (path / name).stat().st_size) != entry.size:
        raise _damaged(path, f"{name} has {size} bytes where the manifest says {entry.size}")


def _read_manifest(path: Path) -> _Manifest:
    try:
        manifest = _Manifest.model_validate_json(read_regular(path / "manifest.json"))
    except FileNotFoundError as error:
        raise _damaged(path, "manifest.json is missing") from error
    except OSError as error:
        raise _damaged(path, f"manifest.json cannot be read, {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        message = f"manifest.json is not a manifest: {problem['msg']} at {list(problem['loc'])}"
        raise _damaged(path, message) from error
    if manifest.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"load_checkpoint: format version of {path} must be {FORMAT_VERSION}; got {manifest.format_version}. "
            "Use the release that wrote it."
        )
    named = re.fullmatch(r"step-(\d+)", path.name)
    if named and int(named[1]) != manifest.step:
        raise _damaged(path, f"manifest.json is of step {manifest.step}")
    return manifest


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"load_checkpoint: {path} must be a whole checkpoint; {reason}. Delete it or resume from an earlier one."
    )


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Moments and step counts as `<parameter index>.<name>`, sharing memory with the optimizer.

    All else of an optimizer follows from configuration and step.
    """
    return {
        f"{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` gave; the next step is then, bit for bit, the one that would have come.

    Args:
        optimizer: of the same class, over parameters of the same shapes in the same order.
        tensors: as given, straight or through a file.
    Raises:
        ValueError: they are of other parameters.
    """
    parameters = _parameters(optimizer)
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"optimizer: {name} must be of one of {len(parameters)} parameters")
        parameter = parameters[int(index)]
        if tensor.dim() and tensor.shape != parameter.shape:
            raise ValueError(f"optimizer: {name} must be {list(parameter.shape)}; got {list(tensor.shape)}")
        # Fused kernels walk memory in order: moments need the strides of their parameter.
        moment = torch.empty_like(parameter if tensor.dim() else tensor, dtype=tensor.dtype, device=parameter.device)
        optimizer.state[parameter][key] = moment.copy_(tensor).detach()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
