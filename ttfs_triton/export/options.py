"""The command line of `recipes/export.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field


class ExportOptions(BaseModel):
    """What to export, as what, where to. Positional: the run or checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Annotated[str, tyro.conf.Positional]
    """A run's folder, one with config.json and model.safetensors, a .safetensors file with config.json beside it, or
    owner/name[@revision] on the Hub."""
    format: Literal["nir", "onnx"]
    """nir: a graph of spiking neurons, in steps. onnx: the closed form, spikes at any time."""
    output: Path
    """File to write."""
    overwrite: bool = False
    """Replace the file if it exists."""

    # ---- NIR
    steps: int = Field(64, ge=2, le=4096)
    """Steps a window; a step is 0.1 ms."""
    time_constant: float = Field(1e6, ge=1)
    """Time constants of the neurons, in windows. They should not leak at all; below 10,000 it shows."""

    # ---- ONNX
    hidden: bool = False
    """Also output the activations of hidden layers."""

    # ---- check
    check: bool = False
    """Run the file in onnxruntime or snnTorch, and print how far spike times and logits are from PyTorch's."""
    check_images: int = Field(20, ge=1)
    """Images to check with."""
    dataset: str | None = None
    """Hub data set, or "sample", whose test images to take. Default: random pixels."""
    data_dir: Path | None = None
    """Local folder with parquet files or class folders of images, likewise; no network is used."""
