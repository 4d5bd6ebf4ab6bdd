"""Shared by commands that convert and calibrate: training images, and output folders, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttfs_triton.atomic import PARTIAL, hidden_name, sync_folder, write_json, write_text
from ttfs_triton.commands import CalibrationImages
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.data.images import ImageData, draw_images, load_images
from ttfs_triton.model.description import ModelDescription
from ttfs_triton.model.files import write_model


def load_training_images(options: CalibrationImages, description: ModelDescription, count: int) -> ImageData:
    """Training images, at least `count` if there are so many, prepared as the network's description says."""
    preprocessing = description.preprocessing
    events = preprocessing.events
    return training_split(
        options,
        None if events else description.network.image_size,
        cropped=preprocessing.fit == "crop",
        max_samples=None if events is None else count,  # no more recordings are read
        streaming=events is None,
        events=events,
    )


def training_split(options: CalibrationImages, image_size: int | tuple[int, int] | None, **more: Any) -> ImageData:
    """The training images, resized if a size is given; `more`: see `load_images`."""
    named = options.images_named()
    return load_images(**named, image_size=image_size, samples_seed=options.seed, progress=True, **more)


def draw(options: CalibrationImages, data: ImageData, count: int) -> Tensor:
    """`count` images, drawn by the seed; on the GPU if there is one, unless `cpu` is set."""
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    return draw_images(data, count, options.seed).to(device)


def check_folder(function: str, folder: Path) -> None:
    """Raise ConversionError, in the name of `function`, unless `folder` is empty or does not exist.

    "." is refused, since it cannot be replaced as a whole.
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
