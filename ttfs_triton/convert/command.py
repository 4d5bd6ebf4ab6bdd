"""`ttfs convert`: converts weights, prints the source of each layer, writes a folder for training and evaluation."""

from __future__ import annotations

import dataclasses
import os
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from pydantic import Field, PositiveInt
from rich.console import Console
from torch import Tensor, nn

from ttfs_triton.atomic import PARTIAL, hidden_name, sync_folder, write_json, write_text
from ttfs_triton.command_line import run_command
from ttfs_triton.convert.build import ConvertedNetwork, code_of
from ttfs_triton.convert.conversion import Converted, calibrate_converted, convert
from ttfs_triton.convert.from_ann import convert_ann
from ttfs_triton.convert.paper import TrainedAs
from ttfs_triton.convert.source import ConversionError, Weights, load_state, open_weights
from ttfs_triton.data.images import ImageData, draw_images, load_images
from ttfs_triton.model import TTFSModel
from ttfs_triton.model.description import ModelDescription
from ttfs_triton.model.files import write_model
from ttfs_triton.model.own_network import build_network_of
from ttfs_triton.nn import NetworkConfig, Neuron, network_graph
from ttfs_triton.nn.config import Encoder
from ttfs_triton.shared_options import CommandOptions
from ttfs_triton.table import print_whole


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


# Flags for weights of ours or the paper's; --network excludes them.
_NAMED = ("trained_as", "replace_head", "keep_standardisation")


def run(options: ConvertOptions) -> Converted | None:
    """Convert weights, print the report and write the output folder.

    Returns:
        The converted network; None if --network built the ANN.
    """
    check_folder("convert", options.output_dir)
    if options.network is not None:
        options.check("convert")
    weights, console = open_weights(options.source, sha256=options.sha256), Console()
    if options.network is not None:
        return _run_traced(options, options.network, weights)
    if options.image_size is not None:
        raise ConversionError("convert: image_size needs network. Leave it out, or give --network.")
    copied = (*_NAMED, "classes", "seed")
    converted = convert(weights, **{name: getattr(options, name) for name in copied}, **_overrides(options, weights))
    print_whole(converted.report.table())
    data = calibration = None
    calibrated = options.calibrate and converted.needs_calibration
    if not calibrated and (options.dataset or options.data_dir):
        raise ConversionError("convert: the network is not calibrated; got --dataset or --data-dir. Leave them out.")
    if calibrated:
        data = options.load("convert", description_of(converted), options.calibration_images)
        images = options.draw(data, options.calibration_images)
        with console.status("calibrating") as status:
            converted, calibration = calibrate_converted(
                converted,
                images,
                percentile=options.percentile,
                progress=lambda name: status.update(f"calibrating {name}"),
            )
        print_whole(calibration.table())
    report = converted.report.to_dict() | {"calibration": None if calibration is None else calibration.to_dict()}
    tensors, description = converted.network.state_dict(), description_of(converted, data)
    write_folder(options.output_dir, tensors, description, {"conversion.json": report})
    return converted


def _run_traced(options: ConvertOptions, builder: str, weights: Weights) -> None:
    """Convert an ANN that the user's code builds."""
    given = [name for name in _NAMED if getattr(options, name) != ConvertOptions.model_fields[name].default]
    if given or options.encoder not in (None, "analog", "latency") or options.readout == "first_spike":
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given) or "a signed encoder or first_spike"
        raise ConversionError(f"convert: --network must go without {flags}. Leave them out.")
    data = options.split(options.image_size, streaming=True)
    images = options.draw(data, options.calibration_images)
    names, shape = data.class_names, tuple(images.shape[1:])
    sizes: Any = {"in_channels": shape[0], "image_size": shape[1:], "classes": options.classes or len(names)}
    model = build_ann(builder, **sizes)
    load_state(model, weights.tensors, f"{weights.name} must hold the weights of {builder}")
    chosen: dict[str, Any] = {
        name: value
        for name in ("psp_persistence", "encoder", "mean", "std", "readout", "calibrate", "percentile", "seed")
        if (value := getattr(options, name)) is not None
    }
    if statistics := weights.statistics():
        chosen = dict(zip(("mean", "std"), statistics, strict=True)) | chosen
    network, report = convert_ann(model.to(images.device), images, **chosen)
    print_whole(report.table())
    if "mean" not in chosen:
        print("no mean and std: the ANN reads pixels in [0, 1]. If it was trained on others, give --mean and --std")
    classes, code = network_graph(network, shape).classes, options.output_dir / "network.py"
    found = TTFSModel.from_network(
        network.cpu(),
        class_names=names if len(names) == classes else None,
        dataset=data.dataset,
        base_model=weights.base_model(),
        image_shape=shape,
        builder=f"{code.name}:build",
    )
    more: dict[str, Any] = {"conversion.json": report.to_dict() | {"source": weights.name, "sha256": weights.sha256}}
    if isinstance(network, ConvertedNetwork):
        more[code.name] = code_of(network)
    write_folder(options.output_dir, found.state_dict(), found.description, more)
    if code.name in more:
        print(f"to load it: --network {code}:build")


def build_ann(source: str, *, classes: int, **sizes: Any) -> nn.Module:
    """The ANN that FILE.py:FUNCTION or MODULE:FUNCTION builds. Call it only with a name that the user typed.

    Arguments as in `build_network_of`; a function of a module is called with num_classes.
    """
    name, _, function = source.rpartition(":")
    if name.endswith(".py"):
        return build_network_of(source, classes=classes, **sizes)
    try:
        build = getattr(import_module(name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConversionError(
            f"convert: network must be FILE.py:FUNCTION, or MODULE:FUNCTION of an installed module; got {source}: "
            f"{error}"
        ) from error
    network = build(num_classes=classes)
    if not isinstance(network, nn.Module):
        raise ConversionError(f"convert: {source} must build an nn.Module; got {type(network).__name__}.")
    return network


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


def description_of(converted: Converted, data: ImageData | None = None) -> ModelDescription:
    """The network's config.json, with the source's preprocessing.

    Class names and data set come from the source, or from the calibration images `data` if the source has none. They
    are left out for a new head, or if the number of classes differs.
    """
    config, source = converted.network.config, converted.weights.description()
    named = data if source is None else source
    if named is None or converted.report.head_replaced or len(named.class_names) != config.classes:
        named = None
    return ModelDescription.of(
        config,
        fit="stretch" if source is None else source.preprocessing.fit,
        events=None if source is None else source.preprocessing.events,
        class_names=None if named is None else named.class_names,
        dataset=None if named is None else named.dataset,
        base_model=converted.weights.base_model(),
    )


def _overrides(options: ConvertOptions, weights: Weights) -> dict[str, Any]:
    names = ("mean", "std", "readout", "encoder")
    overrides = {name: value for name in names if (value := getattr(options, name)) is not None}
    source = weights.description()
    if options.calibrate and options.trained_as in (None, "ann") and source is None:
        overrides["bias"] = True
    persistence = options.psp_persistence
    if persistence is None and source is None and options.trained_as in (None, "ann"):
        persistence = 0.0
    if persistence is not None:
        neuron = source.network.neuron if source is not None and isinstance(source.network, NetworkConfig) else Neuron()
        overrides["neuron"] = dataclasses.replace(neuron, psp_persistence=persistence)
    return overrides


main = partial(run_command, ConvertOptions, run)
