"""Atomic file writing: a crash, a kill or a full disk leaves the old file or the new, never half of one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor

PARTIAL = "partial"  # unfinished files and folders are named `.<name>.partial-<process id>`


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one step: write a temporary file beside it, sync it, rename it, sync the folder.

    The folder must exist. The new file's mode follows the umask.
    """
    path = Path(path)
    aside = hidden_name(path, PARTIAL)
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 by `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: Any) -> None:
    """Write an object as indented JSON by `write_bytes`; non-finite floats become Python's `NaN` and `Infinity`."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Bytes, in the safetensors format, of named dense tensors of any shape, dtype, device and memory layout.

    Every name gets a copy of its values, so tied weights are written once per name. `metadata` goes into the header.
    """
    # safetensors refuses tensors that share memory.
    dense = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return to_safetensors(dense, metadata)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's entries (new names, renames, removals). No effect on Windows."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and wait until the disk has their names."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def hidden_name(path: Path, purpose: str) -> Path:
    """The name beside `path` for its unfinished or unwanted version: `.<name>.<purpose>-<process id>`."""
    return path.with_name(f".{path.name}.{purpose}-{os.getpid()}")
