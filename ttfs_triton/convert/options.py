"""The command line of `recipes/convert.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field


class ConvertOptions(BaseModel):
    """What to convert, into what, where to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, tyro.conf.Positional]
    """A run's folder, a file of weights (.safetensors; .bin, .pt, .pth, .pkl, of which only tensors are read), or a Hub
    repository: org/name[/file][@revision]."""
    output_dir: Path
    """Folder for model.safetensors, config.json and conversion.json; must not hold anything."""

    # ---- source
    sha256: str | None = None
    """Refuse the file if it has another SHA-256."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the source was trained with, pixels in [0, 1]. Default: as its project does."""
    std: tuple[float, ...] | None = None
    """Standard deviation likewise."""
    batch_norm_epsilon: float = Field(1e-5, gt=0)
    """Of the source's batch norms; weights do not say it."""

    # ---- network
    classes: int | None = Field(None, ge=1)
    """Number of classes. Default: the source's; another needs --replace-head."""
    replace_head: bool = False
    """Draw a new output layer."""
    seed: int = Field(0, ge=0)
    """Seed of what is drawn: the output layer, calibration images."""
    image_size: int | None = Field(None, ge=1)
    """Height and width of the images. Default: the source's."""
    psp_persistence: float | None = Field(None, ge=0, le=1)
    """σ: 1 is the paper's neuron, 0 the two-phase neuron, which computes what an ANN with clamped ReLU does. Default:
    the source's, or 1."""
    readout: Literal["potential_start", "potential_end", "first_spike"] | None = None
    """Output neurons' potential at their window's start or end, or their first spike. Default: the source's, or the
    potential at the start."""
    encoder: Literal["latency", "analog"] | None = None
    """latency: pixels are spike times; needs --input-normalisation weights where the source has mean and std."""
    keep_standardisation: bool = True
    """Keep standardised weights with their gains, for further training, instead of folding them."""
    input_normalisation: Literal["configuration", "weights"] = "configuration"
    """Leave mean and std to the first layer's configuration, or fold them into its weights."""
    inexact_borders: bool = False
    """Accept that the latter changes the borders of padded maps."""

    # ---- calibration
    calibrate: bool = True
    """Choose initial potentials, layer by layer, that bring spikes closest to the ANN's activations; needs images."""
    dataset: str | None = None
    """Hub data set whose training images to calibrate on, or "sample"."""
    data_dir: Path | None = None
    """Local folder with them: parquet files or class folders."""
    image_column: str | None = None
    """Column of the images. Default: detected."""
    label_column: str | None = None
    """Column of the labels. Default: detected."""
    calibration_images: int = Field(256, ge=1)
    """How many, drawn by the seed."""
    percentile: float = Field(99.9, gt=0, le=100)
    """Of a channel's activations that becomes 1, for an ANN whose ReLU has no upper bound."""
    cpu: bool = False
    """Calibrate on the CPU even where there is a GPU."""
