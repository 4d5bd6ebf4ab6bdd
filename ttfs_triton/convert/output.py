"""Output folders of the commands that convert and calibrate networks: whole, or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ttfs_triton.atomic import PARTIAL, hidden_name, sync_folder, write_json, write_text
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.model.description import ModelDescription
from ttfs_triton.model.files import write_model


def check_folder(function: str, folder: Path) -> None:
    """Raise ConversionError, in the name of `function`, unless `folder` is empty or does not exist.

    "." cannot be replaced as a whole.
    """
    if not folder.name or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConversionError(
            f"{function}: output_dir must be a new or empty folder; got {folder}, which is not. Give another one."
        )


def write_folder(folder: Path, tensors: dict[str, Tensor], description: ModelDescription, more: dict[str, Any]) -> None:
    """Write a new folder with a model and more files (text or JSON values), all or nothing, and print its path."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = hidden_name(folder, PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        write_model(aside, tensors, description)
        for name, values in more.items():
            write_text(aside / name, values) if isinstance(values, str) else write_json(aside / name, values)
        os.replace(aside, folder)  # an empty folder may be there
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    print(f"written: {folder}")
