"""`ttfs convert`: converts an ANN's weights, prints the losses, writes a folder for training and evaluation."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rich.console import Console
from torch import nn

from ttfs_triton.commands import ConvertOptions
from ttfs_triton.convert.ann_file import calibrate_converted, convert
from ttfs_triton.convert.build import ConvertedNetwork, code_of
from ttfs_triton.convert.from_ann import convert_ann
from ttfs_triton.convert.shared import check_folder, draw, load_training_images, training_split, write_folder
from ttfs_triton.convert.source import ConversionError, Weights, load_state, open_weights
from ttfs_triton.data.images import ImageData
from ttfs_triton.model import TTFSModel
from ttfs_triton.model.description import ModelDescription
from ttfs_triton.model.own_network import build_network_of
from ttfs_triton.nn import Neuron, TTFSNetwork, network_graph
from ttfs_triton.table import print_whole


def run(options: ConvertOptions) -> None:
    """Convert weights, print the report and write the output folder."""
    check_folder("convert", options.output_dir)
    if options.network is None and options.trained_as is None:
        raise ConversionError(
            "convert: network or trained_as must say what the file holds; got neither. Name the function that builds "
            "the ANN, --network FILE.py:FUNCTION or torchvision.models:vgg16_bn, or give --trained-as for the paper's."
        )
    weights = open_weights(options.source, sha256=options.sha256)
    if options.network is None:
        network, data, report = _convert_file(options, weights)
        shape = network.image_shape
    else:
        network, data, report = _convert_module(options, options.network, weights)
        shape = data.shape[1:]
    named = data is not None and len(data.class_names) == network_graph(network, shape).classes
    model = TTFSModel.from_network(
        network.cpu(),
        class_names=data.class_names if data is not None and named else None,
        dataset=None if data is None else data.dataset,
        base_model=weights.base_model(),
        image_shape=shape,
        builder="network.py:build",
    )
    more: dict[str, Any] = {"conversion.json": report | {"source": weights.name, "sha256": weights.sha256}}
    if isinstance(network, ConvertedNetwork):
        more["network.py"] = code_of(network)
    write_folder(options.output_dir, model.state_dict(), model.description, more)
    if "network.py" in more:
        print(f"to load it: --network {options.output_dir / 'network.py'}:build")


def _chosen(options: ConvertOptions, *names: str) -> dict[str, Any]:
    """Options by name, without those left out."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _convert_file(options: ConvertOptions, weights: Weights) -> tuple[TTFSNetwork, ImageData | None, dict[str, Any]]:
    """Convert one of the paper's networks; also returns the images, if any were needed, and a report as JSON values."""
    changes = _chosen(options, "mean", "std")
    if options.trained_as == "ann":
        changes |= {"neuron": Neuron(psp_persistence=options.psp_persistence or 0.0)}
        changes |= {"bias": True} if options.calibrate else {}
    elif options.psp_persistence is not None:
        changes["neuron"] = Neuron(psp_persistence=options.psp_persistence)
    converted = convert(weights, trained_as=options.trained_as, **changes)
    config, data, calibration = converted.network.config, None, None
    print(f"{weights.name}, trained as {options.trained_as}: {config.specification}")
    calibrated = options.calibrate and converted.needs_calibration
    if calibrated or options.dataset or options.data_dir:
        data = load_training_images(options, ModelDescription.of(config), options.calibration_images)
        if calibrated:
            images = draw(options, data, options.calibration_images)
            with Console().status("calibrating"):
                converted, calibration = calibrate_converted(converted, images)
            print_whole(calibration.table())
    return converted.network, data, {"calibration": None if calibration is None else calibration.to_dict()}


def _convert_module(
    options: ConvertOptions, builder: str, weights: Weights
) -> tuple[nn.Module, ImageData, dict[str, Any]]:
    """Convert an ANN that a function builds; also returns the training images, and a report as JSON values."""
    data = training_split(options, options.image_size, streaming=True)
    images = draw(options, data, options.calibration_images)
    channels, *size = images.shape[1:]
    model = build_ann(
        builder, in_channels=channels, image_size=tuple(size), classes=options.classes or len(data.class_names)
    )
    load_state(model, weights.tensors, f"{weights.name} must hold the weights of {builder}")
    names = ("psp_persistence", "encoder", "mean", "std", "readout", "calibrate", "percentile", "seed")
    chosen: dict[str, Any] = _chosen(options, *names)
    if statistics := weights.statistics():
        chosen = dict(zip(("mean", "std"), statistics, strict=True)) | chosen
    network, report = convert_ann(model.to(images.device), images, **chosen)
    print_whole(report.table())
    if "mean" not in chosen:
        print("no mean and std: the ANN reads pixels in [0, 1]. If it was trained on others, give --mean and --std")
    return network, data, report.to_dict()


def build_ann(source: str, *, classes: int, **sizes: Any) -> nn.Module:
    """The ANN that FILE.py:FUNCTION or MODULE:FUNCTION builds. Call this only with a name that the user typed.

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
