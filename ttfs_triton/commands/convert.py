"""`ttfs convert`: its options, and those of all commands that calibrate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ttfs_triton.command_line import run_command
from ttfs_triton.shared_options import CommandOptions

Side = Annotated[int, Field(ge=1, le=8192)]


class CalibrationImages(CommandOptions):
    """Options that choose training images to calibrate on, for all commands that calibrate."""

    dataset: str | None = None
    """Calibrate on training images of this Hub data set, or of "sample"."""
    data_dir: Path | None = None
    """Calibrate on this local folder: parquet files or class folders; recordings, if the network reads events."""
    image_column: str | None = None
    """Column of the images. Default: detected."""
    label_column: str | None = None
    """Column of the labels. Default: detected."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the drawn calibration images, and of the weights of --replace-head."""
    cpu: bool = False
    """Calibrate on the CPU, even if there is a GPU."""


class ConvertOptions(CalibrationImages):
    """Options of `ttfs convert`: source, network, calibration, output folder."""

    source: Annotated[str, tyro.conf.Positional]
    """Trained weights: a run's folder, a file (.safetensors; .bin, .pt, .pth or .pkl, from which only tensors are
    read), or a Hub repository that holds safetensors: org/name[/FILE.safetensors][@revision]."""
    output_dir: Path
    """New or empty folder for model.safetensors, config.json and conversion.json."""

    # ---- source
    sha256: str | None = None
    """Refuse the file if it has another SHA-256."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel of the source's training images, pixels in [0, 1]. Default: as a timm config.json beside the
    weights says, or the paper's for its networks; else the ANN reads pixels as they are."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; default as for --mean."""
    trained_as: Literal["ann", "direct", "proxy"] | None = None
    """Which of the paper's networks the file holds; tensor names do not tell. ann: its ANN. direct, proxy: the spiking
    network of snn_directTrain_model.py or proxy_ann_model.py; spiking networks are not calibrated."""

    # ---- network
    network: str | None = None
    """FILE.py:FUNCTION, or MODULE:FUNCTION such as torchvision.models:vgg16_bn, that builds the ANN as a module; see
    `convert_ann`. Needs calibration images. Without it: weights of ours or the paper's."""
    classes: int | None = Field(None, ge=1, lt=2**31)
    """Number of classes. Default: the source's; another number needs --replace-head."""
    replace_head: bool = False
    """Replace the output layer by a new one with random weights."""
    image_size: Side | tuple[Side, Side] | None = None
    """Side of square images, or height and width, of the ANN that --network builds. Default: the images'."""
    psp_persistence: float | None = None
    """σ: at 0, a neuron computes the same as an ANN's clamped ReLU; 1 is the paper's neuron. With σ > 0 fewer neurons
    fire, but an ANN's accuracy comes back only by training: `ttfs train --weights`. Default: the source's, or 0."""
    readout: Literal["potential_start", "potential_end", "first_spike"] | None = None
    """Output neurons' potential at their window's start or end, or their first spike. Default: the source's, or the
    potential at the start."""
    encoder: Literal["latency", "analog", "whitened", "signed"] | None = None
    """latency: pixels are spike times, for a source without mean and std. signed: spiking neurons of the first layer
    read normalised pixels. Default: the source's."""
    keep_standardisation: bool = True
    """Keep standardised weights with their gains, for further training, instead of folding them."""

    # ---- calibration
    calibrate: bool = True
    """Choose initial potentials, layer by layer, that bring spikes closest to the ANN's activations; needs images."""
    calibration_images: int = Field(256, ge=1, lt=2**31)
    """Number of calibration images, drawn by --seed."""
    percentile: float | None = Field(None, gt=0, le=100)
    """Percentile of a channel's activations that is scaled to 1, for an ANN whose ReLU has no upper bound. Default:
    99.9; at σ = 0, 1.25 times the largest, so that hardly any activation is clipped."""


main = partial(run_command, ConvertOptions, "ttfs_triton.convert.command")
