"""`ttfs classify`: its options."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import tyro
from pydantic import Field

from ttfs_triton.command_line import run_command
from ttfs_triton.shared_options import CommandOptions


class ClassificationOptions(CommandOptions):
    """Options of `ttfs classify`. Positional: the run or checkpoint, then image files."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's folder, a folder with config.json and model.safetensors, a .safetensors file with config.json beside it,
    owner/name[@revision] on the Hub, or bundled:NAME for a network that comes with the package."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(min_length=1)
    """Image files, resized as in training; recordings, if the network reads those of an event camera."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if your own code does."""
    top: int = Field(default=1, ge=1, lt=2**31)
    """Number of classes to print for each image, likeliest first."""
    json_lines: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object a line, for programs."""


main = partial(run_command, ClassificationOptions, "ttfs_triton.model.command")
