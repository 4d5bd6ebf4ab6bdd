"""Networks built from a specification; the paper's, CNN1, VGG11, VGG16; and ResNets."""

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttfs_kernels import standardise_weights
from ttfs_triton.nn.chip import put_on_grid, without_autocast
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.config import NetworkConfig
from ttfs_triton.nn.folding import fold_batch_norm
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.pooling import EarliestSpikePool2d
from ttfs_triton.nn.readout import FirstSpikeDecision, FirstSpikeReadout, PotentialReadout, Readout, ReadoutOptions
from ttfs_triton.nn.sizes import skip_step
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
)


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


def effective_weights(modules: Iterable[nn.Module]) -> list[Tensor | None]:
    """Standardised weights of layers, in as few kernel calls as `standardise_weights` needs for all of them.

    Under autocast they come in autocast's dtype, in which they are used. Hand each to its layer's `forward`.

    Args:
        modules: layers of a network, on one device, among others.
    Returns:
        For each module its `effective_weight()`; None if it has none, or no weight standardisation.
    """
    modules = list(modules)
    layers = [layer for layer in modules if isinstance(layer, WeightedLayer) and layer.weight_gain is not None]
    if not layers:
        return [None] * len(modules)
    weights, gains = [layer.weight for layer in layers], [layer.weight_gain for layer in layers]
    dtype, device_type = weights[0].dtype, weights[0].device.type
    # The meta device has no autocast; asking whether a device has it stops PyTorch 2.11's compiler.
    autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    if autocast and dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(device_type)
    standardised = standardise_weights(weights, gains, dtype=dtype)  # pyright: ignore[reportArgumentType]
    found = iter([layer.spread(weight) for layer, weight in zip(layers, standardised, strict=True)])
    return [next(found) if any(layer is other for other in layers) else None for layer in modules]


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
    if first and config.encoder == "signed":
        return SignedEncoder(*sizes, mean=config.mean, std=config.std, neuron=config.neuron, **options)
    if first and config.encoder != "latency":
        return AnalogEncoder(*sizes, mean=config.mean, std=config.std, **options)
    return DFTConv2d(*sizes, neuron=config.neuron, **options)


def _dense(
    config: NetworkConfig, token: Dense, in_features: int, skip: int, average: int, dropout: float
) -> WeightedLinear:
    out_features = config.scaled(token.features)
    options: HiddenLinearOptions = {**_hidden_options(config), "spike_dropout": dropout}
    options |= {"skip": skip, "average": average}
    return DFTLinear(in_features, out_features, neuron=config.neuron, **options)


def _readout(config: NetworkConfig, in_features: int, average: int) -> Readout:
    behind_dense = isinstance(parse_specification(config.specification)[-1], Dense)
    options: ReadoutOptions = {
        **_weight_options(config),
        "neuron": config.neuron,
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
        "weight_standardisation": config.weight_standardisation and not config.batch_norm,
        "initial_gain": config.initial_gain,
    }


def _hidden_options(config: NetworkConfig) -> HiddenOptions:
    return {**_weight_options(config), "batch_norm": config.batch_norm}
