"""Networks built from a specification; the paper's, CNN1, VGG11, VGG16; and ResNets."""

from collections import OrderedDict
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.nn.ann import ANNConv2d, ANNLinear
from ttfs_triton.nn.chip import put_on_grid, without_autocast
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.config import NetworkConfig
from ttfs_triton.nn.folding import fold_batch_norm
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.pooling import EarliestSpikePool2d
from ttfs_triton.nn.readout import FirstSpikeDecision, FirstSpikeReadout, PotentialReadout, Readout, ReadoutOptions
from ttfs_triton.nn.specification import Average, Convolution, Dense, Pool, output_size, parse_specification
from ttfs_triton.nn.standardise import fold_weight_standardisation
from ttfs_triton.nn.statistics import SpikeCounter
from ttfs_triton.nn.weighted import (
    HiddenLinearOptions,
    HiddenOptions,
    WeightedConv2d,
    WeightedLayer,
    WeightedLinear,
    WeightOptions,
    effective_weights,
    skip_step,
)

CNN1 = "16C5-P2-32C5p0-P2-128"
VGG11 = "64C3-P2-128C3-P2-256C3-256C3-P2-512C3-512C3-P2-512C3-512C3-P2-4096-4096"
VGG16 = "64C3-64C3-P2-128C3-128C3-P2-256C3-256C3-256C3-P2-512C3-512C3-512C3-P2-512C3-512C3-512C3-P2-4096-4096"
RESNET18 = "64C3-(64C3-64C3)x2" + "".join(f"-({n}C3s2-{n}C3)-({n}C3-{n}C3)" for n in (128, 256, 512)) + "-A"
RESNET20 = "16C3-(16C3-16C3)x3" + "".join(f"-({n}C3s2-{n}C3)-({n}C3-{n}C3)x2" for n in (32, 64)) + "-A"


def cifarnet_specification(width: float = 1.0, convolutions: int = 2) -> str:
    """Hidden layers of `cifarnet`.

    Args:
        width: factor on 64, 256 and 256 channels.
        convolutions: a block; with three, spikes also go past the last two.
    Raises:
        ValueError: convolutions is neither 2 nor 3, or no channel is left.
    """
    if convolutions not in (2, 3) or not width > 0:
        raise ValueError(
            f"cifarnet: convolutions must be 2 or 3 a block, and width positive; got {convolutions} and {width}."
        )
    blocks = []
    for channels in (max(1, round(width * channels)) for channels in (64, 256, 256)):
        layer = f"{channels}C3"
        blocks.append(f"{layer}-P2-{layer}" if convolutions == 2 else f"{layer}-P2-({layer}-{layer})")
    return "-".join(["24C2", *blocks, "P3"])


# Per-channel mean and standard deviation of CIFAR-10's training images, pixels in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class TTFSNetwork(nn.Module):
    """A feed-forward network with time-to-first-spike coding: one spike per neuron, one window per layer.

    Input [N, in_channels, height, width] floating point images, output [N, classes] logits. Weights and activations of
    convolutions are channels last throughout; the input is converted once.

    Args:
        config: the network; also kept as the attribute `config`.
        backend: of the spiking layers on this machine: "auto", "torch" or "triton"; see `ttfs_kernels.dft_linear`.
    Attributes:
        features: hidden layers by name ("conv1", "pool1", ..., "fc1"), each with a `SpikeCounter`.
        readout: `PotentialReadout` or `FirstSpikeReadout`.
    Raises:
        ValueError: images are too small for the layers; the message names the token.
    Example:
        >>> network = TTFSNetwork(NetworkConfig("16C5-P2-128", image_size=(28, 28), classes=10))
        >>> images = torch.rand(8, 1, 28, 28)
        >>> network(images).shape  # logits: train them with cross entropy
        torch.Size([8, 10])
        >>> network.decide(images).spike_times.shape  # let the output neurons fire
        torch.Size([8, 10])
    """

    def __init__(self, config: NetworkConfig, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        layers, in_features, average, self._waits = _hidden_layers(config)
        self._longest_wait = max(self._waits.values(), default=0)
        self.features = nn.Sequential(layers)
        self.readout = _readout(config, in_features, average)
        self.readout.statistics = SpikeCounter((config.classes,))
        for layer in layers.values():
            if isinstance(layer, DFTConv2d | DFTLinear):
                layer.backend = backend
        put_on_grid(self, config.grid)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image: (channels, height, width)."""
        return (self.config.in_channels, *self.config.image_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.hidden(images))

    def hidden(self, images: Tensor) -> Tensor:
        """Activations [N, features] of the last hidden layer."""
        expected = self.image_shape
        if images.dim() != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"TTFSNetwork: images must have shape [N, {', '.join(map(str, expected))}]; got {tuple(images.shape)}. "
                "Set in_channels and image_size in the configuration."
            )
        activations = images.contiguous(memory_format=torch.channels_last)
        names, layers = zip(*self.features.named_children(), strict=True)
        # Integers of a grid are those of the weights themselves, not of what a mixed precision leaves of them.
        with nullcontext() if self.config.grid is None else without_autocast(images.device):
            weights = effective_weights(layers)
        # Spikes that entered the last layers with weights, for as long as some skip may still read them.
        entered: list[Tensor] = []
        kept = 1 + self._longest_wait
        pooled = False
        for name, layer, following, weight in zip(names, layers, (*layers[1:], None), weights, strict=True):
            if pooled:
                pooled = False
                continue
            options: dict[str, Any] = {} if weight is None else {"weight": weight}
            if isinstance(layer, WeightedLayer):
                entered = [*entered, activations][-kept:]
                if name in self._waits:
                    options["skip"] = entered[-1 - self._waits[name]]
            pooled = computes_pool(layer, following)
            if pooled:
                options["pool"] = 2
            activations = layer(activations, **options)
        return activations

    def decide(self, images: Tensor) -> FirstSpikeDecision:
        """Classify images by the earliest output spike, whichever readout the network was trained with."""
        return self.readout.decide(self.hidden(images))

    def put_on_grid(self, grid: Grid | None) -> None:
        """Compute on a chip's grid from now on, or on none; the units of weights are those that fit them best.

        Batch norm is folded first.
        """
        if grid is not None:
            self.fold_batch_norm()
        self.config = self.config.replace(grid=grid)
        put_on_grid(self, grid)

    def fold_batch_norm(self) -> None:
        """Fold every layer, as `ttfs_triton.nn.fold_batch_norm` does, and note it in the configuration."""
        if not self.config.batch_norm:
            return
        fold_batch_norm(self.features)
        if self.readout.bias is None:
            self.readout.bias = nn.Parameter(torch.zeros_like(self.readout.weight[:, 0]))
        fold_weight_standardisation(self.readout)
        self.config = self.config.replace(batch_norm=False, weight_standardisation=False, bias=True)

    def fold_standardisation(self) -> None:
        """Fold every layer, as `fold_weight_standardisation` does, and note it in the configuration."""
        fold_weight_standardisation(self.features)
        fold_weight_standardisation(self.readout)
        self.config = self.config.replace(weight_standardisation=False)


def computes_pool(layer: nn.Module, following: nn.Module | None) -> bool:
    """Whether a layer computes the pool behind it, so that the spikes of its neurons are seen nowhere.

    Not while they are counted, or while a hook asks for them.
    """
    if not (isinstance(layer, DFTConv2d) and isinstance(following, EarliestSpikePool2d)) or layer.skip:
        return False
    if layer.grid is not None or (layer.training and layer.faults):
        return False
    if following.kernel_size != (2, 2) or following.stride != (2, 2):
        return False
    counted = layer.statistics is not None and layer.statistics.recording
    return not (counted or layer._forward_hooks or following._forward_hooks or following._forward_pre_hooks)


class _Entering(NamedTuple):
    """Shape of the spikes that enter a layer with weights, for one image, and the token of that layer."""

    shape: tuple[int, ...]
    token: Convolution | Dense


def _hidden_layers(config: NetworkConfig) -> tuple["OrderedDict[str, nn.Module]", int, int, dict[str, int]]:
    """Modules by name, the number of features that the readout gets and averages, and the windows each skip waits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if config.encoder == "latency":
        layers["encoder"] = LatencyEncoder(config.max_value)
    channels, size = config.in_channels, config.image_size
    convolutions = pools = dense = maps = 0
    average = 1
    entering: list[_Entering] = []
    waits: dict[str, int] = {}
    tokens = parse_specification(config.specification)
    for token in tokens:
        if isinstance(token, Dense):
            break  # nothing but fully connected layers from here on
        maps += 1
        if isinstance(token, Average):
            average = token.kernel_size or size[0] * size[1]
            continue
        before, size = size, _map_size(token, size, config, average)
        if isinstance(token, Pool):
            pools += 1
            layers[f"pool{pools}"] = EarliestSpikePool2d(token.kernel_size, token.stride)
        else:
            convolutions += 1
            entering.append(_Entering((channels, *before), token))
            skip = _skipped(config, entering, (config.scaled(token.channels), *size))
            layer = _convolution(config, token, channels, skip, average, first=convolutions == 1)
            average = 1
            layer.statistics = SpikeCounter((layer.out_channels, *size))
            layers[f"conv{convolutions}"], channels = layer, layer.out_channels
            waits |= {f"conv{convolutions}": token.skip} if token.skip else {}
    layers["flatten"], features = nn.Flatten(), channels * size[0] * size[1]
    for token in tokens[maps:]:
        assert isinstance(token, Dense)
        dense += 1
        entering.append(_Entering((features,), token))
        skip = _skipped(config, entering, (config.scaled(token.features),))
        # Dropout is for spikes of fully connected layers: the first of them reads convolutions or the encoder.
        layer = _dense(config, token, features, skip, average, config.dropout if dense > 1 else 0.0)
        average = 1
        layer.statistics = SpikeCounter((layer.out_features,))
        layers[f"fc{dense}"], features = layer, layer.out_features
        waits |= {f"fc{dense}": token.skip} if token.skip else {}
    return layers, features, average, waits


def _skipped(config: NetworkConfig, entering: list[_Entering], shape: tuple[int, ...]) -> int:
    """Channels that reach the last layer by its skip, 0 without; `shape` is of its neurons."""
    token = entering[-1].token
    if not token.skip:
        return 0
    first = entering[-1 - token.skip]
    if skip_step(first.shape, shape) is None:
        raise ValueError(
            f"TTFSNetwork: a block must end with as many channels as enter it, or more, and in maps that every k-th "
            f"position of those that enter it makes; got {first.shape} in front of {first.token} and {shape} behind "
            f'{token} in "{config.specification}". Change its channels or strides.'
        )
    return first.shape[0]


def _map_size(token: Convolution | Pool, size: tuple[int, int], config: NetworkConfig, average: int) -> tuple[int, int]:
    padding = token.padding if isinstance(token, Convolution) else 0
    if any(length % average for length in size):
        raise ValueError(
            f"TTFSNetwork: maps must divide into windows of an average; got {size[0]}×{size[1]} in front of "
            f'A{average} in "{config.specification}". Use another size.'
        )
    height, width = (output_size(length // average, token.kernel_size, token.stride, padding) for length in size)
    if min(height, width) < 1:
        raise ValueError(
            f"TTFSNetwork: image_size must be large enough for every layer; got {config.image_size}, which leaves maps "
            f'of {size[0]}×{size[1]} in front of {token} in "{config.specification}". Use larger images or fewer pools.'
        )
    return height, width


def _convolution(
    config: NetworkConfig, token: Convolution, channels: int, skip: int, average: int, *, first: bool
) -> WeightedConv2d:
    sizes = (channels, config.scaled(token.channels), token.kernel_size, token.stride, token.padding)
    options: HiddenOptions = {**_hidden_options(config), "skip": skip, "average": average}
    if first and config.encoder == "whitened":
        options |= {"weight_standardisation": False, "batch_norm": False}
        sizes = (channels, token.channels, *sizes[2:])
        encoder = AnalogEncoder(*sizes, mean=config.mean, std=config.std, **options)
        encoder.weight.requires_grad_(False)
        return encoder
    if first and config.encoder == "signed" and not config.analog:
        return SignedEncoder(*sizes, mean=config.mean, std=config.std, neuron=config.neuron, **options)
    if first and config.encoder != "latency":
        return AnalogEncoder(*sizes, mean=config.mean, std=config.std, **options)
    if config.analog:
        return ANNConv2d(*sizes, **options)
    return DFTConv2d(*sizes, neuron=config.neuron, **options)


def _dense(
    config: NetworkConfig, token: Dense, in_features: int, skip: int, average: int, dropout: float
) -> WeightedLinear:
    out_features = config.scaled(token.features)
    options: HiddenLinearOptions = {**_hidden_options(config), "spike_dropout": dropout}
    options |= {"skip": skip, "average": average}
    if config.analog:
        return ANNLinear(in_features, out_features, **options)
    return DFTLinear(in_features, out_features, neuron=config.neuron, **options)


def _readout(config: NetworkConfig, in_features: int, average: int) -> Readout:
    behind_dense = isinstance(parse_specification(config.specification)[-1], Dense)
    options: ReadoutOptions = {
        **_weight_options(config),
        "neuron": Neuron(psp_persistence=0.0) if config.analog else config.neuron,
        "spike_dropout": config.dropout if behind_dense else 0.0,
        "average": average,
    }
    if config.readout == "first_spike":
        return FirstSpikeReadout(in_features, config.classes, **options)
    return PotentialReadout(
        in_features, config.classes, at="end" if config.readout == "potential_end" else "start", **options
    )


def _weight_options(config: NetworkConfig) -> WeightOptions:
    return {
        "bias": config.bias,
        "weight_standardisation": config.weight_standardisation and (config.analog or not config.batch_norm),
        "initial_gain": config.initial_gain,
    }


def _hidden_options(config: NetworkConfig) -> HiddenOptions:
    return {**_weight_options(config), "batch_norm": config.batch_norm}


def cnn1(
    image_size: int | tuple[int, int] = 28,
    in_channels: int = 1,
    classes: int = 10,
    *,
    backend: str = "auto",
    **overrides: Any,
) -> TTFSNetwork:
    """The paper's network for MNIST, 16C5-P2-32C5-P2-800-128-10 ("800" is the flattened size), latency encoder.

    Args:
        image_size: side of square images, or (height, width).
        in_channels: of the images.
        classes: number of classes.
        backend: as in `TTFSNetwork`.
        **overrides: any other field of `NetworkConfig`.
    Example:
        >>> network = cnn1(neuron=Neuron(psp_persistence=0.25))
        >>> network(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    values: dict[str, Any] = {"specification": CNN1, "encoder": "latency"}
    return TTFSNetwork(_config(values, image_size, in_channels, classes, overrides), backend=backend)


def vgg11(
    image_size: int | tuple[int, int] = 32,
    in_channels: int = 3,
    classes: int = 10,
    *,
    backend: str = "auto",
    **overrides: Any,
) -> TTFSNetwork:
    """VGG11 without batch norm, ending 512-4096-4096-classes; its first convolution is the analog encoder.

    Args:
        image_size, in_channels, classes, backend, overrides: as in `cnn1`; `width=0.5` halves every hidden layer.
            Mean and std are CIFAR-10's for three channels unless given.
    Example:
        >>> network = vgg11(classes=100, width=0.125)
        >>> network(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """
    values: dict[str, Any] = {"specification": VGG11, "encoder": "analog"}
    return TTFSNetwork(_config(values, image_size, in_channels, classes, overrides), backend=backend)


def vgg16(
    image_size: int | tuple[int, int] = 32,
    in_channels: int = 3,
    classes: int = 10,
    *,
    backend: str = "auto",
    **overrides: Any,
) -> TTFSNetwork:
    """VGG16, as `vgg11`, with thirteen convolutions."""
    values: dict[str, Any] = {"specification": VGG16, "encoder": "analog"}
    return TTFSNetwork(_config(values, image_size, in_channels, classes, overrides), backend=backend)


def cifarnet(
    image_size: int | tuple[int, int] = 32,
    in_channels: int = 3,
    classes: int = 10,
    *,
    width: float = 1.0,
    convolutions: int = 2,
    backend: str = "auto",
    **overrides: Any,
) -> TTFSNetwork:
    """A small, fast network for 32×32 images: a whitened encoder of 2×2 patches, three blocks, batch norm.

    2.0 million weights at width 1. Whiten its encoder before training: `whiten(network.features.conv1, images)`.

    Args:
        image_size, in_channels, classes, backend, overrides: as in `vgg11`.
        width, convolutions: see `cifarnet_specification`.
    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, whose shape it has.
    Example:
        >>> network = cifarnet(neuron=Neuron(psp_persistence=0.25))
        >>> network(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    values: dict[str, Any] = {"specification": cifarnet_specification(width, convolutions), "encoder": "whitened"}
    values |= {"batch_norm": True}
    return TTFSNetwork(_config(values, image_size, in_channels, classes, overrides), backend=backend)


def resnet20(
    image_size: int | tuple[int, int] = 32,
    in_channels: int = 3,
    classes: int = 10,
    *,
    backend: str = "auto",
    **overrides: Any,
) -> TTFSNetwork:
    """ResNet-20 for small images: nine blocks of two convolutions, whose spikes also arrive past them, a window late.

    Where maps get smaller, every second position arrives, and new channels hear nothing. The readout averages each map.
    The first convolution is the analog encoder.

    Args:
        image_size, in_channels, classes, backend, **overrides: as in `vgg11`.
    Source: He et al., "Deep residual learning for image recognition", 2016, section 4.2, option A.
    Example:
        >>> network = resnet20(neuron=Neuron(psp_persistence=0.25))
        >>> network(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    values: dict[str, Any] = {"specification": RESNET20, "encoder": "analog"}
    return TTFSNetwork(_config(values, image_size, in_channels, classes, overrides), backend=backend)


def resnet18(
    image_size: int | tuple[int, int] = 32,
    in_channels: int = 3,
    classes: int = 10,
    *,
    backend: str = "auto",
    **overrides: Any,
) -> TTFSNetwork:
    """ResNet-18 with a first convolution for small images, as `resnet20`: eight blocks, 64 to 512 channels."""
    values: dict[str, Any] = {"specification": RESNET18, "encoder": "analog"}
    return TTFSNetwork(_config(values, image_size, in_channels, classes, overrides), backend=backend)


def _config(
    defaults: dict[str, Any],
    image_size: int | tuple[int, int],
    in_channels: int,
    classes: int,
    overrides: dict[str, Any],
) -> NetworkConfig:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    values = defaults | {"image_size": size, "in_channels": in_channels, "classes": classes} | overrides
    if values["encoder"] != "latency" and in_channels == 3:
        values = {"mean": CIFAR10_MEAN, "std": CIFAR10_STD} | values
    return NetworkConfig(**values)
