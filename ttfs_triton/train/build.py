"""Builds the network of a run, with the weights that it starts from, and its teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ttfs_triton.convert import (
    Calibration,
    ConversionError,
    Converted,
    Weights,
    WeightsError,
    calibrate_converted,
    convert,
    open_weights,
)
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.convert.source import named_for
from ttfs_triton.data.images import draw_images
from ttfs_triton.model import BaseModel, ModelDescription
from ttfs_triton.model.description import describe_network
from ttfs_triton.model.files import described, find_model
from ttfs_triton.model.hub import HubError
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.model.own_network import OwnNetwork, build_network_of
from ttfs_triton.nn import (
    DFTConv2d,
    DFTLinear,
    NetworkConfig,
    NetworkError,
    NetworkGraph,
    Readout,
    TTFSNetwork,
    network_graph,
    parse_specification,
    start_as_identity,
    train_for,
    whiten,
)
from ttfs_triton.nn.config import Convolution, Dense, Encoder
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.networks import CNN1, RESNET18, RESNET20, VGG11, VGG16, cifarnet_specification
from ttfs_triton.nn.prepare import check_registers, put_on_grid, unfold_batch_norm
from ttfs_triton.train.config import ConfigError, TrainConfig
from ttfs_triton.train.data import RunData, channel_statistics

SPECIFICATIONS: dict[str, tuple[str, Encoder]] = {
    "cnn1": (CNN1, "latency"),
    "cifarnet": (cifarnet_specification(), "whitened"),
    "vgg11": (VGG11, "analog"),
    "vgg16": (VGG16, "analog"),
    "resnet18": (RESNET18, "analog"),
    "resnet20": (RESNET20, "analog"),
}
WHITENING_IMAGES = 5_000
HEAD = "4096-4096"  # fully connected hidden layers of the paper's VGGs
_UNIT = ".log2_unit"  # suffix of the names of weight scales on a grid
_GAIN = ".weight_gain"  # suffix of the names of gains of standardised weights


@dataclass(frozen=True)
class Start:
    """Origin of a network's weights, and its classes; `units` are the weight scales on `grid`, by name."""

    base_model: BaseModel
    calibration: Calibration | None
    grid: Grid | None = None
    units: Mapping[str, Tensor] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)


def build_network(
    config: TrainConfig,
    data: RunData,
    device: torch.device | None = None,
    *,
    network: nn.Module | None = None,
    calibrated: bool = True,
    started: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Start | None]:
    """The network of a run on the CPU, and the origin of its weights: None if they are drawn at random.

    Args:
        device: device to calibrate on. Default: the CPU.
        network: the network, if it is built already. It keeps the weights of an encoder that is whitened. Default: a
            new one, as configured.
        calibrated: whiten the encoder, calibrate an ANN or a grid; False if a checkpoint replaces the weights.
        started: config.json with which a resumed run began; `config.weights` are then read only if they are needed.
    """
    if network is None:
        network = _new_network(config, data)
    if config.backend != "auto":
        for layer in network.modules():
            if isinstance(layer, DFTConv2d | DFTLinear):
                layer.backend = config.backend
    if isinstance(network, TTFSNetwork) and network.config.encoder == "whitened" and calibrated:
        encoder: Any = network.features.get_submodule("conv1")
        positive, negative = encoder.weight.detach().chunk(2)
        if not torch.equal(positive, -negative):  # else a given network is whitened already, and may be trained
            whiten(encoder, draw_images(data.train, WHITENING_IMAGES, config.seed, data.train_indices))
    weights, start, images = config.weights, None, None
    # `state_bits` are checked against the weights that the run began with, so these must be read.
    if weights is not None and started is not None and config.state_bits is None:
        description = ModelDescription.from_dict(started)
        if isinstance(network, TTFSNetwork) and isinstance(description.network, NetworkConfig):
            network.take_statistics(description.network)
        start = None if description.base_model is None else Start(description.base_model, None)
    elif weights is not None:
        # To load weights without batch norm into batch norm, statistics are needed, even if a checkpoint replaces both.
        if config.calibration_images and (calibrated or config.batch_norm):
            images = draw_images(data.train, config.calibration_images, config.seed, data.train_indices).to(device)
        if isinstance(network, TTFSNetwork) and (config.psp_persistence_rise or (0, 0))[1] > 0:
            # Statistics and calibration must fit the first step, whose σ is 0.
            first = TTFSNetwork(network.config.replace(neuron=replace(network.config.neuron, psp_persistence=0.0)))
            start = load_weights(first, weights, images, new_readout=config.new_readout)
            network.load_state_dict(first.state_dict())
            network.take_statistics(first.config)
        else:
            start = load_weights(network, weights, images, new_readout=config.new_readout)
        names, classes = start.class_names, data.train.class_names
        if not config.new_readout and names != classes and sorted(names) == sorted(classes):
            said = f"the classes of these images must be in the order of those of {weights}, {names!s:.300}"
            raise ConfigError(f"weights: {said}; got {classes!s:.300}. Reorder them, or give --new-readout.")
    if config.grid is not None:
        start_on_grid(network, config.grid, start, images if calibrated else None, learn_units=config.learn_units)
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
        rule = f"have one output per class of {data.train.name}, {classes} in all"
        raise ConfigError(f"network must {rule}; got {graph.classes}. Change its readout.")
    if others := {weight.dtype for weight in network.parameters()} - {torch.float32}:
        raise ConfigError(f"network must have weights in float32; got {others.pop()}. Call its method float() first.")
    graph.prepare_statistics()
    return graph


def check_statistics(graph: NetworkGraph, images: int) -> None:
    """Raise ConfigError if a batch norm has only one value per channel in a micro-batch of `images` images."""
    for stage in graph.stages:
        if getattr(stage.layer, "batch_norm", None) is not None and images * math.prod(stage.shape[1:]) < 2:
            raise ConfigError(
                f"train: micro-batches must hold two images or more per process, since layer {stage.name} has batch "
                f"norm; got {images}. Raise --batch-size, or lower --gradient-accumulation."
            )


def describe(config: TrainConfig, network: nn.Module, data: RunData, start: Start | None) -> ModelDescription:
    """Content of config.json for a run's network."""
    return ModelDescription.of(
        describe_network(network, data.train.shape[1:], config.network),
        class_names=data.train.class_names,
        fit="crop" if getattr(data.train.store, "cropped", False) else "stretch",
        events=config.events,
        dataset=data.train.dataset,
        base_model=None if start is None else start.base_model,
    )


def _new_network(config: TrainConfig, data: RunData) -> nn.Module:
    """The network that the configuration names or describes."""
    _, channels, height, width = data.train.shape
    size, classes = (height, width), len(data.train.class_names)
    if config.network is not None:
        torch.manual_seed(config.seed)
        return build_network_of(config.network, in_channels=channels, image_size=size, classes=classes)
    if config.model[:1].islower() and config.model not in SPECIFICATIONS:
        rule = f"one of {', '.join(SPECIFICATIONS)}, or a specification such as 16C5-P2-128"
        raise ConfigError(f"model must be {rule}; got {config.model}.")
    specification, usual_encoder = SPECIFICATIONS.get(config.model, (config.model, "latency"))
    factor = config.width
    if config.model == "cifarnet":
        blocks = config.block_convolutions, channels, config.channels
        specification, factor = cifarnet_specification(config.width, *blocks), 1.0
    specification = specification.replace(HEAD, config.head).removesuffix("-none")
    encoder = config.encoder or usual_encoder
    mean, std = channel_statistics(data) if encoder != "latency" else (None, None)
    torch.manual_seed(config.seed)
    description = NetworkConfig(
        specification=specification,
        in_channels=channels,
        image_size=size,
        classes=classes,
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


def load_weights(
    network: nn.Module, source: str | Weights, images: Tensor | None = None, *, new_readout: bool = False
) -> Start:
    """Load weights into a network, strictly: every tensor must be used or folded, and every parameter be given.

    Tensors that do not fit our networks are converted: batch norm and standardised weights are folded. An ANN with the
    network's layers is calibrated on `images`, [N, in_channels, height, width] in [0, 1], on the device to compute on.
    These images also give the statistics of a batch norm that the weights lack; outputs stay the same. With
    `new_readout`, the network keeps its readout, which has other classes than that of the weights.
    """
    said = source if isinstance(source, str) else source.name
    ours = network if isinstance(network, TTFSNetwork) else None
    try:
        weights = source if isinstance(source, Weights) else open_weights(source)
        weights = replace(weights, tensors=named_for(network, weights.tensors))
        if new_readout:
            readouts = tuple(f"{name}." for name, layer in network.named_modules() if isinstance(layer, Readout))
            drawn = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(readouts)}
            if any(_GAIN in name for name in drawn) and not any(_GAIN in name for name in weights.tensors):
                raise ConversionError(f"{said} has plain weights. Give --no-weight-standardisation.")
            weights = replace(weights, tensors=weights.tensors | drawn)
        description = weights.description()
        described = None if description is None else description.network
        trained = described if ours is not None and isinstance(described, NetworkConfig) else None
        if ours is not None and ours.config.batch_norm and (trained is None or not trained.batch_norm):
            return _load_plain(ours, weights, images)
        on_grid = any(name.endswith(_UNIT) for name in network.state_dict())
        units = {} if on_grid else {name: unit for name, unit in weights.tensors.items() if name.endswith(_UNIT)}
        tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in units}
        calibration = None
        if ours is not None and _shapes(tensors) != _shapes(network.state_dict()):
            converted = _convert(ours.config, replace(weights, tensors=tensors))
            if images is not None and converted.needs_calibration:
                if not converted.network.config.bias:
                    raise ConversionError("calibration needs biases. Give --bias or --calibration-images 0.")
                converted, calibration = calibrate_converted(converted, images)
            tensors, trained = converted.network.state_dict(), converted.network.config
        base_model = weights.base_model()
    except WeightsError as error:
        raise ConfigError(f"weights: {error}") from error
    except ConversionError as error:
        raise ConfigError(f"weights: {said} does not fit the network: {error}") from error
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"weights: {said} does not fit the network: {error}") from error
    if ours is not None and trained is not None:
        ours.take_statistics(trained)
    classes = [] if description is None else list(description.class_names)
    return Start(base_model, calibration, None if described is None else described.grid, units, classes)


def _load_plain(network: TTFSNetwork, source: Weights, images: Tensor | None) -> Start:
    """Load weights without batch norm into a network with batch norm, whose statistics come from `images`."""
    if images is None or not len(images):
        raise ConfigError(
            f"weights: {source.name} has no batch norm, so its statistics must come from calibration images; got "
            "none. Give --calibration-images, or --no-batch-norm."
        )
    plain = TTFSNetwork(network.config.replace(batch_norm=False, weight_standardisation=False))
    start = load_weights(plain, source, images)
    unfold_batch_norm(network.to(images.device), plain.to(images.device), images)
    network.cpu()
    network.take_statistics(plain.config)
    return start


def start_on_grid(
    network: nn.Module,
    grid: Grid,
    start: Start | None = None,
    images: Tensor | None = None,
    *,
    learn_units: bool = True,
) -> None:
    """Put a network on a grid, in place. The weight scales are those of `start` if its grid is the same. Otherwise the
    network is calibrated on `images` (`calibrate_grid`); without images, the scales are fitted to the weights.
    """
    same = start is not None and start.grid == grid
    if images is not None and not same:
        calibrate_grid(network.to(images.device), images, grid)
        network.cpu()
    else:
        put_on_grid(network, grid)
        if same and start is not None:  # scales too fine for the registers are clamped
            network.load_state_dict(start.units, strict=False)
        else:
            check_registers(network)
    for name, parameter in network.named_parameters():
        if name.endswith(_UNIT):
            parameter.requires_grad_(learn_units)


def _convert(target: NetworkConfig, weights: Weights) -> Converted:
    """The converted network, if its configuration fits `target`."""
    assumed = target.replace(
        readout="potential_start",
        batch_norm=any(".batch_norm." in key for key in weights.tensors),
        weight_standardisation=any(key.endswith(_GAIN) for key in weights.tensors),
    )
    kept = target.weight_standardisation
    converted = convert(weights, config=assumed, keep_standardisation=kept, bias=target.bias, neuron=target.neuron)
    config = converted.network.config
    if config.in_channels != target.in_channels:
        rule = f"have {config.in_channels} channels, as {weights.name} reads"
        raise ConversionError(f"images must {rule}; got {target.in_channels}. Convert the images.")
    if _structure(config) != _structure(target):
        raise ConversionError(
            f"specification must be {config.specification}, as {weights.name} gives; got {target.specification} at "
            f"width {target.width:g}. Give --model {config.specification} --width 1."
        )
    for name, flag in (
        ("classes", "images of as many classes"),
        ("image_size", f"--image-size {config.image_size[0]}"),
        ("encoder", f"--encoder {config.encoder}"),
        ("batch_norm", "--no-batch-norm"),
        ("weight_standardisation", "--no-weight-standardisation"),
    ):
        value, mine = getattr(config, name), getattr(target, name)
        if value != mine:
            raise ConversionError(f"{name} must be {value}, as {weights.name} gives; got {mine}. Give {flag}.")
    return converted


def _structure(config: NetworkConfig) -> tuple[object, ...]:
    """Hidden layers at their scaled sizes, and the channels of the input."""
    tokens, at_width = parse_specification(config.specification), config.scaled
    scaled = (replace(one, size=at_width(one.size)) if isinstance(one, Convolution | Dense) else one for one in tokens)
    return (*scaled, config.in_channels)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Teacher:
    """Knowledge distillation: a trained network whose class probabilities a run learns besides the labels.

    `weight` is w, the share of the loss that compares the two networks; `sha256` is the hash of the teacher's file.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015, with temperature 1.
    """

    network: nn.Module
    weight: float
    accelerator: Accelerator
    sha256: str

    def loss(self, cross_entropy: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 − w)·cross entropy + w·KL(teacher's probabilities ‖ network's), a scalar; `logits`: [b, classes]."""
        with torch.no_grad(), self.accelerator.autocast():
            wanted = self.network(images).float().log_softmax(1)
        divergence = F.kl_div(logits.float().log_softmax(1), wanted, reduction="batchmean", log_target=True)
        return (1 - self.weight) * cross_entropy + self.weight * divergence


def load_teacher(config: TrainConfig, data: RunData, accelerator: Accelerator) -> Teacher | None:
    """The teacher of a run; None without one. If it is a user-defined network, `config.network` builds it."""
    if config.teacher is None:
        return None
    try:
        files = find_model(config.teacher)
        by_user = isinstance(described(files).network, OwnNetwork)
        model = TTFSModel.from_files(files, config.network if by_user else None)
    except (ValueError, HubError) as error:
        raise ConfigError(f"teacher: {error}") from error
    names, classes = list(model.class_names), data.train.class_names
    numbers = [str(number) for number in range(len(classes))]
    if model.image_shape != data.train.shape[1:] or names not in (classes, numbers):
        raise ConfigError(
            f"teacher must be trained on images like these, {data.train.shape[1:]} (channels, height, width) in the "
            f"classes {', '.join(classes):.200}; got {config.teacher}, trained on {model.image_shape} in the classes "
            f"{', '.join(names):.200}. Choose another teacher, or the data that it was trained on."
        )
    network = model.network.float().to(accelerator.device).requires_grad_(False)
    return Teacher(network.eval(), config.teacher_weight, accelerator, files.sha256)
