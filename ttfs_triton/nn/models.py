"""`TTFSNetwork`, a network built from a configuration, whose tokens become layers; decisions of any network."""

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
from ttfs_triton.nn.prepare import fold_batch_norm, put_on_grid
from ttfs_triton.nn.readout import FirstSpikeDecision, Readout
from ttfs_triton.nn.statistics import SpikeCounter
from ttfs_triton.nn.trace import TURNS, unwrapped
from ttfs_triton.nn.weighted import WeightedLayer

# Initial mean of normalised potentials in front of a pool, in standard deviations. The largest of four neighbours
# exceeds the mean by about as much, so at first half of the pooled neurons fire, not nearly all.
BIAS_BEFORE_POOL = -0.8


class LayerBuilder:
    """Makes the layers of a configuration, one after the other.

    Attributes:
        layers: hidden layers by name: "conv1", "pool1", ..., "flatten", "fc1", ...
        shape: shape of the spikes that the next layer reads, for one image.
        average: argument `average` of the next layer with synapses.
        delays: windows by which a layer's skip delays spikes, by the layer's name.
    """

    def __init__(self, config: NetworkConfig, backend: str) -> None:
        self.config, self.backend, self.average, self.delays = config, backend, 1, dict[str, int]()
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.shape: tuple[int, ...] = (config.in_channels, *config.image_size)
        self._read: list[tuple[int, ...]] = []  # shapes that layers with synapses read
        if config.encoder == "latency":
            self.layers["encoder"] = LatencyEncoder()
        for token in parse_specification(config.specification):
            self._add(token)
        self._flatten()

    def readout(self) -> Readout:
        """The output layer."""
        config = self.config
        options = self._options() | {"neuron": config.neuron, "spike_dropout": self._dropout(), "average": self.average}
        return Readout(self.shape[0], config.classes, at=config.readout, **options)

    def _add(self, token: Token) -> None:
        if isinstance(token, Average):
            self.average = token.kernel_size or math.prod(self.shape[1:])
            return
        if isinstance(token, Pool):
            if norm := getattr(next(reversed(self.layers.values()), None), "batch_norm", None):
                nn.init.constant_(norm.bias, BIAS_BEFORE_POOL * self.config.initial_gain)
            self._append("pool", EarliestSpikePool2d(token.kernel_size, token.stride, token.padding), token)
            return
        if isinstance(token, Dense):
            self._flatten()
        self._read.append(self.shape)
        skip = min(self._read[-1 - token.skip][0], self.config.scaled(token.size)) if token.skip else 0
        layer = self._layer(token, skip)
        name = self._append("conv" if isinstance(token, Convolution) else "fc", layer, token)
        layer.statistics, self.average = SpikeCounter(self.shape), 1
        self.delays |= {name: token.skip} if token.skip else {}

    def _append(self, kind: str, layer: EarliestSpikePool2d | WeightedLayer, token: Token) -> str:
        """Add a layer after the others; returns its name."""
        try:
            self.shape = layer.output_shape(self.shape)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"TTFSNetwork: image_size must be large enough for every layer; got {self.config.image_size}, where "
                f'{token} in "{self.config.specification}" cannot read {self.shape}: {str(error).rstrip(".")}. Use '
                "another size, or fewer pools."
            ) from None
        name = f"{kind}{1 + sum(other.startswith(kind) for other in self.layers)}"
        self.layers[name] = layer
        return name

    def _flatten(self) -> None:
        if "flatten" not in self.layers:
            self.layers["flatten"], self.shape = nn.Flatten(), (math.prod(self.shape),)

    def _dropout(self) -> float:
        """Dropout of the next layer's inputs: only spikes of fully connected layers are dropped."""
        return self.config.dropout if "fc1" in self.layers else 0.0

    def _options(self) -> dict[str, Any]:
        standardised = self.config.weight_standardisation and not self.config.batch_norm
        gain = self.config.initial_gain
        return {"bias": self.config.bias, "weight_standardisation": standardised, "initial_gain": gain}

    def _layer(self, token: Convolution | Dense, skip: int) -> DFTConv2d | DFTLinear:
        config, inputs, size = self.config, self.shape[0], self.config.scaled(token.size)
        options = self._options() | {"batch_norm": config.batch_norm, "backend": self.backend}
        spiking = options | {"neuron": config.neuron, "skip": skip, "average": self.average}
        if isinstance(token, Dense):
            return DFTLinear(inputs, size, spike_dropout=self._dropout(), **spiking)
        geometry = (token.kernel_size, token.stride, token.padding)
        if config.encoder == "latency" or len(self._read) > 1:
            return DFTConv2d(inputs, size, *geometry, **spiking)
        options |= {"mean": config.mean, "std": config.std}
        if config.encoder == "signed":
            return SignedEncoder(inputs, size, *geometry, neuron=config.neuron, **options)
        if config.encoder == "whitened":
            size, options = token.size, options | {"weight_standardisation": False, "batch_norm": False}
        encoder = AnalogEncoder(inputs, size, *geometry, **options)
        encoder.weight.requires_grad_(config.encoder != "whitened")
        return encoder


class TTFSNetwork(nn.Module):
    """A feed-forward network with time-to-first-spike coding: one spike per neuron, one window per layer.

    Input [N, in_channels, height, width] floating point images, output [N, classes] logits. Weights and activations of
    convolutions are channels last throughout; the input is converted once.

    Args:
        config: the network; also kept as the attribute `config`.
        backend: backend of the spiking layers: "auto", "torch" or "triton"; see `ttfs_kernels.dft_linear`.
    Attributes:
        features, readout: hidden layers by name ("conv1", "pool1", ..., "fc1"), and the output layer.
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

    @torch.no_grad()
    def take_statistics(self, trained: NetworkConfig) -> None:
        """Take over an encoder's mean and std from the network of the weights: others would shift every potential."""
        first = self.features[0]
        if not isinstance(first, AnalogEncoder) or trained.encoder == "latency":
            return
        for buffer, values, default in ((first.mean, trained.mean, 0.0), (first.std, trained.std, 1.0)):
            buffer.copy_(torch.tensor(values or [default] * trained.in_channels).view_as(buffer))
        self.config = self.config.replace(mean=trained.mean, std=trained.std)

    def fold_batch_norm(self) -> None:
        """Fold batch norm in every layer, as `ttfs_triton.nn.fold_batch_norm`, and update the configuration."""
        if not self.config.batch_norm:
            return
        fold_batch_norm(self.features)
        for layer in (*self.features, self.readout):  # a whitened encoder and the readout have no batch norm
            if isinstance(layer, WeightedLayer) and layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
        self.readout.fold_standardisation()
        self.config = self.config.replace(batch_norm=False, weight_standardisation=False, bias=True)

    def fold_standardisation(self) -> None:
        """Make standardised weights plain weights of the same values, and update the configuration."""
        for layer in self.modules():
            if isinstance(layer, WeightedLayer):
                layer.fold_standardisation()
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
    with TURNS:
        hook = readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = network(images)
        finally:
            hook.remove()
    return logits, readout.decide(seen[0])
