"""`recipes/convert.py`: read, convert, show where everything went, write a folder that training and evaluation read."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro
from pydantic import ValidationError
from rich.console import Console

from ttfs_triton.atomic import PARTIAL, hidden_name, sync_folder, write_json
from ttfs_triton.convert.conversion import Converted, convert
from ttfs_triton.convert.errors import ConversionError
from ttfs_triton.convert.options import ConvertOptions
from ttfs_triton.hub import ModelDescription
from ttfs_triton.hub.weights import write_weights


def main(description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Entry point of the recipe: parse, convert, exit with a plain message where the user can mend what went wrong."""
    try:
        options = tyro.cli(ConvertOptions, args=arguments, description=description, prog="convert.py")
    except ValidationError as error:
        problem = error.errors()[0]
        _exit(f"{'-'.join(map(str, problem['loc']))}: {problem['msg']}; got {problem['input']!r}.")
    try:
        run(options)
    except (ValueError, OSError) as error:
        _exit(str(error))


def run(options: ConvertOptions) -> Converted:
    """Convert as asked, print the report, write the folder.

    Raises:
        ConversionError: as `convert`, or the folder holds something already; nothing has been written.
        ValueError: a value out of range.
        OSError: the folder cannot be written; nothing is left of it.
    """
    check_folder(options.output_dir)
    converted = convert(
        options.source,
        sha256=options.sha256,
        classes=options.classes,
        image_size=options.image_size,
        replace_head=options.replace_head,
        seed=options.seed,
        keep_standardisation=options.keep_standardisation,
        input_normalisation=options.input_normalisation,
        inexact_borders=options.inexact_borders,
        batch_norm_epsilon=options.batch_norm_epsilon,
        **_overrides(options),
    )
    console = Console()
    console.print(converted.report.table())
    write_folder(converted, options.output_dir)
    console.print(f"written: {options.output_dir}", markup=False, highlight=False, soft_wrap=True)
    return converted


def check_folder(folder: Path) -> None:
    """Raise ConversionError if there is anything at `folder` but an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(
            f"convert: output_dir must not hold anything; got {folder}, which does. Give another --output-dir."
        )


def write_folder(converted: Converted, folder: Path, more: dict[str, Any] | None = None) -> None:
    """Write model.safetensors, config.json and conversion.json; all of it or nothing.

    Args:
        converted: as `convert` gave, its network possibly calibrated since.
        folder: must not exist, or be empty.
        more: further keys of conversion.json.
    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = hidden_name(folder, PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        write_weights(aside / "model.safetensors", converted.network.state_dict())
        describe(converted).write(aside / "config.json")
        write_json(aside / "conversion.json", converted.report.to_dict() | (more or {}))
        os.replace(aside, folder)  # an empty folder may be there
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def describe(converted: Converted) -> ModelDescription:
    """The network's config.json, with the source's class names where the classes are still the source's."""
    config, source = converted.network.config, converted.weights.description()
    kept = source is not None and not converted.report.head_replaced
    return ModelDescription.of(
        config,
        class_names=source.class_names if source is not None and kept else None,
        dataset=source.dataset if source is not None and kept else None,
        base_model=converted.weights.base_model(),
    )


def _overrides(options: ConvertOptions) -> dict[str, Any]:
    names = ("mean", "std", "psp_persistence", "readout", "encoder")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
