"""`TTFSNetwork`, built from a configuration: its layers from the tokens of the specification, and its decisions."""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.config import Average, Convolution, Dense, NetworkConfig, Pool, Token, parse_specification
from ttfs_triton.nn.graph import network_graph
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d
from ttfs_triton.nn.prepare import fold_batch_norm, fold_weight_standardisation, put_on_grid
from ttfs_triton.nn.readout import FirstSpikeDecision, Readout
from ttfs_triton.nn.statistics import SpikeCounter
from ttfs_triton.nn.trace import unwrapped
from ttfs_triton.nn.weighted import WeightedLayer, skip_step

# Initial mean of normalised potentials in front of a pool, in standard deviations. The largest of four neighbours
# exceeds the mean by about as much, so that at first half of the pooled neurons fire, not nearly all.
BIAS_BEFORE_POOL = -0.8


class LayerBuilder:
    """Makes the layers of a configuration, one after the other.

    Attributes:
        layers: hidden layers by name: "conv1", "pool1", ..., "flatten", "fc1", ...
        shape: shape of the spikes that the next layer reads, for one image.
        average: argument `average` of the next layer with synapses.
        delays: by layer name, the number of windows for which the layer's skip delays spikes.
    """

    def __init__(self, config: NetworkConfig, backend: str) -> None:
        self.config, self.backend, self.average, self.delays = config, backend, 1, dict[str, int]()
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.shape: tuple[int, ...] = (config.in_channels, *config.image_size)
        self._read: list[tuple[tuple[int, ...], Token]] = []  # shape that each layer with synapses reads, and its token
        if config.encoder == "latency":
            self.layers["encoder"] = LatencyEncoder()
        for token in parse_specification(config.specification):
            self._add(token)
        self._flatten()

    def readout(self) -> Readout:
        """The output layer."""
        config = self.config
        dropout = config.dropout if "fc1" in self.layers else 0.0
        options = self._options() | {"neuron": config.neuron, "spike_dropout": dropout, "average": self.average}
        return Readout(self.shape[0], config.classes, at=config.readout, **options)

    def _add(self, token: Token) -> None:
        if isinstance(token, Average):
            self.average = token.kernel_size or math.prod(self.shape[1:])
            return
        if isinstance(token, Pool):
            if norm := getattr(next(reversed(self.layers.values()), None), "batch_norm", None):
                nn.init.constant_(norm.bias, BIAS_BEFORE_POOL * self.config.initial_gain)
            layer = EarliestSpikePool2d(token.kernel_size, token.stride, token.padding)
            self._append("pool", layer)
            self.shape = self._shape_behind(layer, token)
            return
        if isinstance(token, Dense):
            self._flatten()
        self._read.append((self.shape, token))
        block_inputs, first = self._read[-1 - token.skip]  # with a skip: the block's input and first layer
        skip = min(block_inputs[0], self.config.scaled(token.size)) if token.skip else 0
        options = self._options() | {"batch_norm": self.config.batch_norm, "backend": self.backend}
        if isinstance(token, Convolution) and len(self._read) == 1 and self.config.encoder != "latency":
            layer = self._encoder(token, options)
        else:
            layer = self._spiking(token, options | {"skip": skip, "average": self.average})
        shape = self._shape_behind(layer, token)
        if token.skip and skip_step(block_inputs, shape) is None:
            raise ValueError(
                f"TTFSNetwork: a block must end with as many channels as enter it, or more, and its output maps must "
                f"have the size of every k-th row and column of its input; got {block_inputs} before {first}, {shape} "
                f'after {token} in "{self.config.specification}". Change its channels or strides.'
            )
        self.shape, self.average = shape, 1
        layer.statistics = SpikeCounter(shape)
        name = self._append("conv" if isinstance(token, Convolution) else "fc", layer)
        self.delays |= {name: token.skip} if token.skip else {}

    def _shape_behind(self, layer: EarliestSpikePool2d | WeightedLayer, token: Token) -> tuple[int, ...]:
        """Shape of a layer's outputs for one image."""
        try:
            return layer.output_shape(self.shape)
        except ValueError as error:
            raise ValueError(
                f"TTFSNetwork: image_size must be large enough for every layer; got {self.config.image_size}, where "
                f'{token} in "{self.config.specification}" cannot read its inputs: {error} Use another size, or '
                "fewer pools."
            ) from None

    def _append(self, kind: str, layer: nn.Module) -> str:
        name = f"{kind}{1 + sum(other.startswith(kind) for other in self.layers)}"
        self.layers[name] = layer
        return name

    def _flatten(self) -> None:
        if "flatten" not in self.layers:
            self.layers["flatten"], self.shape = nn.Flatten(), (math.prod(self.shape),)

    def _options(self) -> dict[str, Any]:
        standardised = self.config.weight_standardisation and not self.config.batch_norm
        gain = self.config.initial_gain
        return {"bias": self.config.bias, "weight_standardisation": standardised, "initial_gain": gain}

    def _encoder(self, token: Convolution, options: dict[str, Any]) -> AnalogEncoder:
        config = self.config
        whitened, kind = config.encoder == "whitened", AnalogEncoder
        if whitened:
            options |= {"weight_standardisation": False, "batch_norm": False}
        elif config.encoder == "signed":
            options["neuron"], kind = config.neuron, SignedEncoder
        channels = token.size if whitened else config.scaled(token.size)
        geometry = (token.kernel_size, token.stride, token.padding)
        encoder = kind(self.shape[0], channels, *geometry, mean=config.mean, std=config.std, **options)
        encoder.weight.requires_grad_(not whitened)
        return encoder

    def _spiking(self, token: Convolution | Dense, options: dict[str, Any]) -> DFTConv2d | DFTLinear:
        size, options = self.config.scaled(token.size), options | {"neuron": self.config.neuron}
        if isinstance(token, Convolution):
            return DFTConv2d(self.shape[0], size, token.kernel_size, token.stride, token.padding, **options)
        # Dropout is for spikes of fully connected layers; the first such layer reads a convolution or the encoder.
        options["spike_dropout"] = self.config.dropout if "fc1" in self.layers else 0.0
        return DFTLinear(self.shape[0], size, **options)


class TTFSNetwork(nn.Module):
    """A feed-forward network with time-to-first-spike coding: one spike per neuron, one window per layer.

    Input [N, in_channels, height, width] floating point images, output [N, classes] logits. Weights and activations of
    convolutions are channels last throughout; the input is converted once.

    Args:
        config: the network; also kept as the attribute `config`.
        backend: backend of the spiking layers: "auto", "torch" or "triton"; see `ttfs_kernels.dft_linear`.
    Attributes:
        features: hidden layers by name ("conv1", "pool1", ..., "fc1"), each with a `SpikeCounter`.
        readout: the output layer.
    Raises:
        ValueError: an unknown backend, or images that are too small for the layers; the message names the token.
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
        built = LayerBuilder(config, backend)
        self._delays = built.delays
        self._longest_delay = max(self._delays.values(), default=0)
        self.features = nn.Sequential(built.layers)
        self.readout = built.readout()
        self.readout.statistics = SpikeCounter((config.classes,))
        if config.grid is not None:
            self.put_on_grid(config.grid)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
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
        block_inputs: list[Tensor] = []  # inputs of the last layers with weights, which skips may still read
        for name, layer in self.features.named_children():
            options: dict[str, Tensor] = {}
            if isinstance(layer, WeightedLayer):
                block_inputs = [*block_inputs, activations][-1 - self._longest_delay :]
                if name in self._delays:
                    options["skip"] = block_inputs[-1 - self._delays[name]]
            activations = layer(activations, **options)
        return activations

    def decide(self, images: Tensor) -> FirstSpikeDecision:
        """Classify images by the earliest output spike, whichever readout the network was trained with."""
        return self.readout.decide(self.hidden(images))

    def put_on_grid(self, grid: Grid | None) -> None:
        """Compute on a chip's grid from now on (None: in real numbers), with the units that fit the weights best.

        Batch norm is folded first, and the configuration updated.
        """
        if grid is not None:
            self.fold_batch_norm()
        self.config = self.config.replace(grid=grid)
        put_on_grid(self.features, grid)
        put_on_grid(self.readout, grid)

    def fold_batch_norm(self) -> None:
        """Fold batch norm in every layer, as `ttfs_triton.nn.fold_batch_norm`, and update the configuration."""
        if not self.config.batch_norm:
            return
        fold_batch_norm(self.features)
        for layer in (*self.features, self.readout):  # a whitened encoder and the readout have no batch norm
            if isinstance(layer, WeightedLayer) and layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
        fold_weight_standardisation(self.readout)
        self.config = self.config.replace(batch_norm=False, weight_standardisation=False, bias=True)

    def fold_standardisation(self) -> None:
        """Fold every layer, as `fold_weight_standardisation` does, and update the configuration."""
        fold_weight_standardisation(self.features)
        fold_weight_standardisation(self.readout)
        self.config = self.config.replace(weight_standardisation=False)


@torch.no_grad()
def decide(network: nn.Module, images: Tensor) -> FirstSpikeDecision:
    """Classify images by the earliest output spike, whichever readout the network was trained with.

    Args:
        network: any network that `network_graph` takes; it runs in its current mode.
        images: images as the network takes them, [N, ...], on its device.
    Raises:
        NetworkError: as `network_graph`.
    Example:
        >>> from ttfs_triton.nn import DFTLinear, LatencyEncoder, Readout
        >>> network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 8), Readout(8, 2))
        >>> decide(network, torch.rand(4, 1, 8, 8)).prediction.shape
        torch.Size([4])
    """
    graph = network_graph(network, images.shape[1:])
    return logits_and_decision(unwrapped(network), graph.readout, images)[1]  # a compiled one would see no hook


def logits_and_decision(network: nn.Module, readout: Readout, images: Tensor) -> tuple[Tensor, FirstSpikeDecision]:
    """Logits of a network that ends with `readout`, and its decision by the first spike, in one pass in its mode."""
    seen: list[Tensor] = []
    hook = readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = network(images)
    finally:
        hook.remove()
    return logits, readout.decide(seen[0])
