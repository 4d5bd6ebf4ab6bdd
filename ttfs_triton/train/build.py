"""Builds data, network, augmentation and optimizer of a run from its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ttfs_triton.data.augment import Augmentation
from ttfs_triton.data.decode import NotEnoughMemoryError
from ttfs_triton.data.images import ImageData, draw_images, draw_indices, load_images, train_validation_split
from ttfs_triton.model import ModelDescription
from ttfs_triton.model.own_network import build_network_of, describe_network
from ttfs_triton.nn import (
    DFTConv2d,
    DFTLinear,
    NetworkConfig,
    NetworkError,
    NetworkGraph,
    TTFSNetwork,
    network_graph,
    start_as_identity,
    train_for,
    whiten,
)
from ttfs_triton.nn.config import Encoder
from ttfs_triton.nn.networks import CNN1, RESNET18, RESNET20, VGG11, VGG16, cifarnet_specification
from ttfs_triton.nn.readout import Readout
from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.optimisation import Muon
from ttfs_triton.train.start import Start, check_chip, load_weights, start_on_grid, take_statistics

SPECIFICATIONS: dict[str, tuple[str, Encoder]] = {
    "cnn1": (CNN1, "latency"),
    "cifarnet": (cifarnet_specification(), "whitened"),
    "vgg11": (VGG11, "analog"),
    "vgg16": (VGG16, "analog"),
    "resnet18": (RESNET18, "analog"),
    "resnet20": (RESNET20, "analog"),
}
STATISTICS_IMAGES = 10_000  # for channel statistics with four digits
WHITENING_IMAGES = 5_000
HEAD = "4096-4096"  # fully connected hidden layers of the paper's VGGs


@dataclass(frozen=True)
class RunData:
    """The images of a run.

    Attributes:
        train, test: the training and test images as loaded.
        train_indices, validation_indices: [n] int64, indices into `train`; the second is empty without validation.
    """

    train: ImageData
    test: ImageData
    train_indices: Tensor
    validation_indices: Tensor


def load_data(config: TrainConfig, accelerator: Accelerator, say: Callable[[str], None]) -> RunData:
    """Load both splits and set the validation images aside. The main process comes first, so that it alone downloads.

    Images that do not fit into main memory are streamed, unless `data_placement` is set; recordings never are.
    """

    def load(split: str, samples: int | None, like: ImageData | None, streaming: bool = config.streaming) -> ImageData:
        try:
            return load_images(
                config.dataset,
                config.data_dir,
                split=split,
                like=like,
                image_column=config.image_column,
                label_column=config.label_column,
                image_size=config.image_size,
                cropped=config.random_resized_crop,
                max_samples=samples,
                max_bad_images=config.max_bad_images,
                streaming=streaming,
                events=config.events,
                progress=accelerator.is_main_process,
            )
        except NotEnoughMemoryError as error:
            if streaming or config.data_placement != "auto" or config.events is not None:
                raise
            say(f"{split} images are streamed: {str(error).split('; ', 1)[1].rsplit('. Use', 1)[0]}")
            return load(split, samples, like, streaming=True)

    with accelerator.main_process_first():
        train = load("train", config.max_train_samples, None)
        test = load("test", config.max_test_samples, train)
    return split_data(train, test, config)


def split_data(train: ImageData, test: ImageData, config: TrainConfig) -> RunData:
    """The data of a run: both splits, with the validation images that `config` asks for held out of `train`."""
    return RunData(train, test, *train_validation_split(train, config.validation_fraction, config.seed))


def build_network(
    config: TrainConfig,
    data: RunData,
    device: torch.device | None = None,
    *,
    network: nn.Module | None = None,
    calibrated: bool = True,
    known: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Start | None]:
    """Build the network of a run on the CPU, initialised from `config.seed` and, if given, from `config.weights`.

    Args:
        device: device to calibrate on. Default: the CPU.
        network: the network, if it is built already. Default: a new one, as configured.
        calibrated: whiten the encoder, calibrate an ANN or a grid; False if a checkpoint replaces the weights.
        known: config.json of a resumed run; `config.weights` are then read only if their values are needed.
    Returns:
        The network, and the origin of its weights: None if they were drawn at random.
    """
    if network is None:
        network = _own_network(config, data) if config.network is not None else _specified_network(config, data)
    if config.backend != "auto":
        for layer in network.modules():
            if isinstance(layer, DFTConv2d | DFTLinear):
                layer.backend = config.backend
    if isinstance(network, TTFSNetwork) and network.config.encoder == "whitened" and calibrated:
        images = draw_images(data.train, WHITENING_IMAGES, config.seed, data.train_indices)
        whiten(network.features.get_submodule("conv1"), images)  # pyright: ignore[reportArgumentType]
    weights, start, images = config.weights, None, None
    # `state_bits` are checked against the weights that the run began with, so these must be read.
    if weights is not None and known is not None and config.state_bits is None:
        description = ModelDescription.from_dict(known)
        if isinstance(network, TTFSNetwork) and isinstance(description.network, NetworkConfig):
            take_statistics(network, description.network)
        start = None if description.base_model is None else Start(description.base_model, None)
    elif weights is not None:
        # To load weights without batch norm into batch norm, statistics are needed, even if a checkpoint replaces both.
        if config.calibration_images and (calibrated or config.batch_norm):
            images = draw_images(data.train, config.calibration_images, config.seed, data.train_indices).to(device)
        if isinstance(network, TTFSNetwork) and (config.psp_persistence_rise or (0, 0))[1] > 0:
            # Statistics and calibration must fit the first step, whose σ is 0.
            first = TTFSNetwork(network.config.replace(neuron=replace(network.config.neuron, psp_persistence=0.0)))
            start = load_weights(first, weights, images)
            network.load_state_dict(first.state_dict())
            take_statistics(network, first.config)
        else:
            start = load_weights(network, weights, images)
    if config.grid is not None:
        start_on_grid(network, config.grid, start, images if calibrated else None, learn_units=config.learn_units)
        if config.grid_chip is not None:
            check_chip(network, config.grid, config.grid_chip, data.train.shape[1:])
    if config.faults:
        train_for(network, config.faults)
    return network, start


def check_network(network: nn.Module, data: RunData) -> NetworkGraph:
    """Check that a network can be trained on these images, prepare its layers to count spikes, and return its graph."""
    try:
        graph = network_graph(network, data.train.shape[1:])
    except NetworkError as error:
        raise ConfigError(str(error)) from error
    if graph.classes != (classes := len(data.train.class_names)):
        where = f"each of the {classes} classes of {data.train.name}"
        raise ConfigError(f"network must have an output for {where}; got {graph.classes}. Change its readout.")
    if others := {weight.dtype for weight in network.parameters()} - {torch.float32}:
        raise ConfigError(f"network must have weights in float32; got {others.pop()}. Call its method float() first.")
    graph.prepare_statistics()
    return graph


def check_statistics(graph: NetworkGraph, images: int) -> None:
    """Raise ConfigError if a batch norm has only one value a channel in a micro-batch of `images` images."""
    for stage in graph.stages:
        if getattr(stage.layer, "batch_norm", None) is not None and images * math.prod(stage.shape[1:]) < 2:
            raise ConfigError(
                f"train: micro-batches must hold two images or more in each process, since layer {stage.name} has "
                f"batch norm; got {images}. Raise --batch-size, or lower --gradient-accumulation."
            )


def describe(config: TrainConfig, network: nn.Module, data: RunData, start: Start | None) -> ModelDescription:
    """Content of config.json for a run's network."""
    return ModelDescription.of(
        describe_network(network, data.train.shape[1:], config.network),
        class_names=data.train.class_names,
        fit="crop" if config.random_resized_crop else "stretch",
        events=config.events,
        dataset=data.train.dataset,
        base_model=None if start is None else start.base_model,
    )


def _own_network(config: TrainConfig, data: RunData) -> nn.Module:
    _, channels, height, width = data.train.shape
    torch.manual_seed(config.seed)
    return build_network_of(
        str(config.network), in_channels=channels, image_size=(height, width), classes=len(data.train.class_names)
    )


def _specified_network(config: TrainConfig, data: RunData) -> TTFSNetwork:
    specification, usual_encoder = SPECIFICATIONS.get(config.model, (config.model, "latency"))
    factor = config.width
    _, channels, height, width = data.train.shape
    if config.model == "cifarnet":
        specification, factor = cifarnet_specification(config.width, config.block_convolutions, channels), 1.0
    if config.model in ("vgg11", "vgg16") and config.head != HEAD:
        specification = specification.removesuffix(HEAD) + config.head
        specification = specification.removesuffix("-none")
    encoder = config.encoder or usual_encoder
    mean, std = channel_statistics(data) if encoder != "latency" else (None, None)
    torch.manual_seed(config.seed)
    description = NetworkConfig(
        specification=specification,
        in_channels=channels,
        image_size=(height, width),
        classes=len(data.train.class_names),
        width=factor,
        encoder=encoder,
        mean=mean,
        std=std,
        readout=config.readout or "potential_start",
        neuron=config.spiking_neuron,
        bias=config.bias,
        weight_standardisation=config.weight_standardisation,
        initial_gain=config.initial_gain,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
    )
    network = TTFSNetwork(description, backend=config.backend)
    if config.identity_start:
        start_as_identity(network)
    return network


def channel_statistics(data: RunData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1], over training images drawn at random."""
    _, channels, height, width = data.train.shape
    sums, count = torch.zeros(2, channels, dtype=torch.float64), 0
    for some in draw_indices(data.train_indices, STATISTICS_IMAGES).sort().values.split(100):
        pixels = data.train.images_at(some).double() / 255
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
        count += len(some) * height * width
    mean = sums[0] / count
    std = ((sums[1] - count * mean.square()).clamp_min(0) / max(1, count - 1)).sqrt().clamp_min(1e-3)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def build_augmentation(config: TrainConfig) -> Augmentation:
    """The augmentation of the training images."""
    return Augmentation(**config.model_dump(include=set(Augmentation.model_fields)))


def build_optimizer(config: TrainConfig, network: nn.Module, precision: str = "no") -> Optimizer:
    """The optimizer of a run. Weight decay applies to weights, not to gains, initial potentials and batch norm.

    A factor on a learning rate leaves the decay per step unchanged. Muon multiplies in bfloat16 if `precision` is bf16.
    """
    groups = [
        {
            "params": parameters,
            "lr": config.lr * rate,
            "initial_lr": config.lr * rate,  # the peak rate, as PyTorch's schedules call it
            "weight_decay": config.weight_decay / rate if kind != "offset" else 0.0,
            "rotated": kind == "hidden" and config.optimizer == "muon",
        }
        for (kind, rate), parameters in _by_rate(config, network).items()
    ]
    # Fused: one pass over weights and moments instead of ten, on CPU and GPU alike.
    if config.optimizer in ("adamw", "adam"):
        adam = AdamW if config.optimizer == "adamw" else Adam
        return adam(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    if config.optimizer == "muon":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        optimizer = Muon(groups, lr=config.lr, momentum=config.momentum, dtype=dtype)
    else:
        optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.momentum > 0:
        # Fused SGD would leave the buffers uninitialised if it skipped its first step.
        for parameter in network.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _by_rate(config: TrainConfig, network: nn.Module) -> dict[tuple[str, float], list[nn.Parameter]]:
    """Parameters by kind and by the factor on their learning rate; hidden weights without a factor come first.

    Kinds: "hidden": weights of hidden layers; "readout": weights of the readout; "offset": gains, initial potentials.
    """
    rates: dict[int, float] = {}
    readout: set[int] = set()
    for module in network.modules():
        if isinstance(norm := getattr(module, "batch_norm", None), nn.BatchNorm1d | nn.BatchNorm2d):
            rates |= {id(norm.bias): config.norm_bias_rate, id(norm.weight): config.norm_gain_rate}
        if isinstance(module, Readout):
            readout |= {id(parameter) for parameter in module.parameters()}
            rates |= dict.fromkeys(readout, config.readout_rate)
    groups: dict[tuple[str, float], list[nn.Parameter]] = {("hidden", 1.0): [], ("offset", 1.0): []}
    for parameter in network.parameters():
        kind = "offset" if parameter.dim() <= 1 else "readout" if id(parameter) in readout else "hidden"
        groups.setdefault((kind, rates.get(id(parameter), 1.0)), []).append(parameter)
    return {key: parameters for key, parameters in groups.items() if parameters}
