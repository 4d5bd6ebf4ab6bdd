"""From the tokens of a specification to the layers of a network."""

import math
from collections import OrderedDict
from typing import Any

from torch import nn

from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.config import NetworkConfig
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.pooling import EarliestSpikePool2d
from ttfs_triton.nn.readout import FirstSpikeReadout, PotentialReadout, Readout
from ttfs_triton.nn.sizes import skip_step
from ttfs_triton.nn.specification import Average, Convolution, Dense, Pool, Token, parse_specification
from ttfs_triton.nn.statistics import SpikeCounter
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer


class LayerBuilder:
    """Makes the layers of a configuration, one after the other.

    Attributes:
        layers: hidden layers by name: "conv1", "pool1", ..., "flatten", "fc1", ...
        shape: of the spikes that the next layer reads, for one image.
        average: inputs that share a weight of the next layer with synapses.
        waits: windows for which spikes wait that reach a layer by its skip, by its name.
    Raises:
        ValueError: images are too small for the layers, or a block ends in another size than it begins with.
    """

    def __init__(self, config: NetworkConfig) -> None:
        self.config, self.average, self.waits = config, 1, dict[str, int]()
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.shape: tuple[int, ...] = (config.in_channels, *config.image_size)
        self._read: list[tuple[tuple[int, ...], Token]] = []  # shape that each layer with synapses reads, and its token
        if config.encoder == "latency":
            self.layers["encoder"] = LatencyEncoder(config.max_value)
        for token in parse_specification(config.specification):
            self._add(token)
        self._flatten()

    def readout(self) -> Readout:
        """The output layer."""
        config = self.config
        dropout = config.dropout if "fc1" in self.layers else 0.0
        options = self._options() | {"neuron": config.neuron, "spike_dropout": dropout, "average": self.average}
        if config.readout == "first_spike":
            return FirstSpikeReadout(self.shape[0], config.classes, **options)
        at = "end" if config.readout == "potential_end" else "start"
        return PotentialReadout(self.shape[0], config.classes, at=at, **options)

    def _add(self, token: Token) -> None:
        if isinstance(token, Average):
            self.average = token.kernel_size or math.prod(self.shape[1:])
            return
        if isinstance(token, Pool):
            layer = EarliestSpikePool2d(token.kernel_size, token.stride)
            self._append("pool", layer)
            self.shape = self._shape_behind(layer, token)
            return
        if isinstance(token, Dense):
            self._flatten()
        self._read.append((self.shape, token))
        entered, first = self._read[-1 - token.skip]  # by spikes that a skip delays
        skip = min(entered[0], self.config.scaled(token.size)) if token.skip else 0
        options = self._options() | {"batch_norm": self.config.batch_norm, "skip": skip, "average": self.average}
        layer = self._convolution(token, options) if isinstance(token, Convolution) else self._dense(token, options)
        shape = self._shape_behind(layer, token)
        if token.skip and skip_step(entered, shape) is None:
            raise ValueError(
                f"TTFSNetwork: a block must end with as many channels as enter it, or more, and in maps that every "
                f"k-th position of those that enter it makes; got {entered} in front of {first} and {shape} behind "
                f'{token} in "{self.config.specification}". Change its channels or strides.'
            )
        self.shape, self.average = shape, 1
        layer.statistics = SpikeCounter(shape)
        name = self._append("conv" if isinstance(token, Convolution) else "fc", layer)
        self.waits |= {name: token.skip} if token.skip else {}

    def _shape_behind(self, layer: EarliestSpikePool2d | WeightedLayer, token: Token) -> tuple[int, ...]:
        """Shape of a layer's outputs for one image."""
        try:
            return layer.output_shape(self.shape)
        except ValueError as error:
            raise ValueError(
                f"TTFSNetwork: image_size must be large enough for every layer; got {self.config.image_size}, where "
                f'{token} in "{self.config.specification}" cannot read what reaches it: {error} Use another size, or '
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

    def _convolution(self, token: Convolution, options: dict[str, Any]) -> WeightedConv2d:
        config, encodes = self.config, len(self._read) == 1
        statistics = {"mean": config.mean, "std": config.std}
        kernel = (token.kernel_size, token.stride, token.padding)
        if encodes and config.encoder == "whitened":
            options |= {"weight_standardisation": False, "batch_norm": False}
            encoder = AnalogEncoder(self.shape[0], token.channels, *kernel, **statistics, **options)
            encoder.weight.requires_grad_(False)
            return encoder
        sizes = (self.shape[0], config.scaled(token.channels), *kernel)
        if encodes and config.encoder == "signed":
            return SignedEncoder(*sizes, neuron=config.neuron, **statistics, **options)
        if encodes and config.encoder == "analog":
            return AnalogEncoder(*sizes, **statistics, **options)
        return DFTConv2d(*sizes, neuron=config.neuron, **options)

    def _dense(self, token: Dense, options: dict[str, Any]) -> DFTLinear:
        # Dropout is for spikes of fully connected layers: the first of them reads convolutions or the encoder.
        options |= {"spike_dropout": self.config.dropout if "fc1" in self.layers else 0.0}
        return DFTLinear(self.shape[0], self.config.scaled(token.features), neuron=self.config.neuron, **options)
