"""`ttfs export`: its options."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ttfs_triton.command_line import run_command
from ttfs_triton.shared_options import CommandOptions


class ExportOptions(CommandOptions):
    """Options of `ttfs export`: network, format, file, check."""

    model: Annotated[str, tyro.conf.Positional]
    """Trained network: a run's folder, a folder with config.json and model.safetensors, a .safetensors file with
    config.json beside it, owner/name[@revision] on the Hub, or bundled:NAME, which comes with the package."""
    format: Literal["c", "nir", "onnx"]
    """c: a file of C99 without dependencies, the simulator's integers. nir: a graph of spiking neurons, in steps. onnx:
    the closed form, spikes at any time."""
    output: Path
    """File to write."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if it is one of your own."""
    overwrite: bool = False
    """Replace the file if it exists."""

    # ---- C and NIR
    steps: Annotated[int | None, tyro.conf.arg(aliases=("--time-steps",))] = Field(None, ge=2, le=4096)
    """Time steps in a window, in NIR 0.1 ms each. Default: as many as the network's grid has, or 64."""
    weight_bits: int | None = Field(None, ge=2, le=16)
    """Bits of a weight in C. Default: as many as the network's grid has, or 8."""

    # ---- ONNX
    hidden: bool = False
    """Also output the activations of hidden layers."""

    # ---- check
    check: bool = False
    """Run the file in onnxruntime or snnTorch, and print how far spike times and logits are from PyTorch's; compile C
    and compare its classes with the simulator's. The exit status is 1 if the file gives an image another class."""
    check_images: int = Field(20, ge=1, lt=2**31)
    """Number of images to check with."""
    dataset: str | None = None
    """Check with test images of this Hub data set, or of "sample". Default: random pixels."""
    data_dir: Path | None = None
    """Check with test images of this local folder: parquet files or class folders. Nothing is downloaded."""


main = partial(run_command, ExportOptions, "ttfs_triton.export.command")
