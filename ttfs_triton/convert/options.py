"""Options of the commands that convert and calibrate networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from pydantic import Field, PositiveInt
from torch import Tensor

from ttfs_triton.convert.paper import TrainedAs
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.data.images import ImageData, draw_images, load_images
from ttfs_triton.model.description import ModelDescription
from ttfs_triton.nn.config import Encoder
from ttfs_triton.shared_options import CommandOptions


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

    def load(self, function: str, description: ModelDescription, count: int) -> ImageData:
        """Training images, at least `count` if there are as many, preprocessed as the network's description says."""
        self.check(function)
        config, preprocessing = description.network, description.preprocessing
        events = preprocessing.events
        data = self.split(
            None if events else config.image_size,
            cropped=preprocessing.fit == "crop",
            max_samples=None if events is None else count,  # reads only as many recordings
            streaming=events is None,
            events=events,
        )
        wanted, found = (config.in_channels, *config.image_size), tuple(data.shape[1:])
        if found != wanted:
            raise ConversionError(f"{function}: images must be {wanted} (C, height, width); got {found}.")
        return data

    def check(self, function: str) -> None:
        """Raise ConversionError unless a data set is named."""
        if self.dataset is None and self.data_dir is None:
            raise ConversionError(
                f"{function}: --data-dir or --dataset must name training images to calibrate on; got neither. "
                "Give one of them."
            )

    def split(self, image_size: int | tuple[int, int] | None, **options: Any) -> ImageData:
        """The training images, resized if a size is given; `options`: see `load_images`."""
        return load_images(
            self.dataset,
            self.data_dir,
            image_column=self.image_column,
            label_column=self.label_column,
            image_size=image_size,
            samples_seed=self.seed,
            progress=True,
            **options,
        )

    def draw(self, data: ImageData, count: int) -> Tensor:
        """`count` images, drawn by the seed; on the GPU if there is one, unless `cpu` is set."""
        device = torch.device("cuda" if torch.cuda.is_available() and not self.cpu else "cpu")
        return draw_images(data, count, self.seed).to(device)


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
    trained_as: TrainedAs | None = None
    """Which of the paper's networks the file holds; tensor names do not tell. ann: its ANN. direct, proxy: the spiking
    network of snn_directTrain_model.py or proxy_ann_model.py; spiking networks are not calibrated."""

    # ---- network
    network: str | None = None
    """FILE.py:FUNCTION, or MODULE:FUNCTION such as torchvision.models:vgg16_bn, that builds the ANN as a PyTorch module
    that torch.fx can trace; see `convert_ann`. Needs calibration images. Without it: weights of ours or the paper's."""
    classes: int | None = Field(None, ge=1)
    """Number of classes. Default: the source's; another number needs --replace-head."""
    replace_head: bool = False
    """Replace the output layer by a new one with random weights."""
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Side of square images, or height and width, of the ANN that --network builds. Default: the images'."""
    psp_persistence: float | None = None
    """σ: at 0, a neuron computes the same as an ANN's clamped ReLU; 1 is the paper's neuron. With σ > 0 fewer neurons
    fire, but an ANN's accuracy comes back only by training: `ttfs train --weights`. Default: the source's, or 0."""
    readout: Literal["potential_start", "potential_end", "first_spike"] | None = None
    """Output neurons' potential at their window's start or end, or their first spike. Default: the source's, or the
    potential at the start."""
    encoder: Encoder | None = None
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
