"""`ttfs convert`: converts weights, prints the source of each layer, writes a folder for training and evaluation."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

from rich.console import Console
from torch import nn

from ttfs_triton.commands import ConvertOptions
from ttfs_triton.convert.build import ConvertedNetwork, code_of
from ttfs_triton.convert.conversion import Converted, calibrate_converted, convert
from ttfs_triton.convert.from_ann import convert_ann
from ttfs_triton.convert.shared import (
    check_folder,
    check_images,
    draw,
    load_training_images,
    training_split,
    write_folder,
)
from ttfs_triton.convert.source import ConversionError, Weights, load_state, open_weights
from ttfs_triton.data.images import ImageData
from ttfs_triton.model import TTFSModel
from ttfs_triton.model.description import ModelDescription
from ttfs_triton.model.own_network import build_network_of
from ttfs_triton.nn import NetworkConfig, Neuron, network_graph
from ttfs_triton.table import print_whole


def run(options: ConvertOptions) -> Converted | None:
    """Convert weights, print the report and write the output folder.

    Returns:
        The converted network; None if --network built the ANN.
    """
    check_folder("convert", options.output_dir)
    if options.network is not None:
        check_images(options, "convert")
    weights, console = open_weights(options.source, sha256=options.sha256), Console()
    if options.network is not None:
        return _run_traced(options, options.network, weights)
    copied = ("trained_as", "replace_head", "keep_standardisation", "classes", "seed")
    converted = convert(weights, **{name: getattr(options, name) for name in copied}, **_overrides(options, weights))
    print_whole(converted.report.table())
    data = calibration = None
    calibrated = options.calibrate and converted.needs_calibration
    if not calibrated and (options.dataset or options.data_dir):
        raise ConversionError("convert: the network is not calibrated; got --dataset or --data-dir. Leave them out.")
    if calibrated:
        data = load_training_images(options, "convert", description_of(converted), options.calibration_images)
        images = draw(options, data, options.calibration_images)
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
    data = training_split(options, options.image_size, streaming=True)
    images = draw(options, data, options.calibration_images)
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
