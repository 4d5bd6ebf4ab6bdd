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
from ttfs_triton.nn.specification import Average, Convolution, Dense, Pool, Token, output_size, parse_specification
from ttfs_triton.nn.statistics import SpikeCounter
from ttfs_triton.nn.weighted import WeightedConv2d


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
        self._read: list[tuple[tuple[int, ...], Token]] = []  # what each layer with synapses reads, and its token
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
            return FirstSpikeReadout(*self.shape, config.classes, **options)
        at = "end" if config.readout == "potential_end" else "start"
        return PotentialReadout(*self.shape, config.classes, at=at, **options)

    def _add(self, token: Token) -> None:
        if isinstance(token, Average):
            self.average = token.kernel_size or math.prod(self.shape[1:])
            return
        if isinstance(token, Pool):
            self.shape = (self.shape[0], *self._map_size(token))
            self._append("pool", EarliestSpikePool2d(token.kernel_size, token.stride))
            return
        if isinstance(token, Dense):
            self._flatten()
        self._read.append((self.shape, token))
        size = self._map_size(token) if isinstance(token, Convolution) else ()
        skip = self._skip(token, (self.config.scaled(token.size), *size))
        options = self._options() | {"batch_norm": self.config.batch_norm, "skip": skip, "average": self.average}
        layer = self._convolution(token, options) if isinstance(token, Convolution) else self._dense(token, options)
        self.shape, self.average = (len(layer.weight), *size), 1
        layer.statistics = SpikeCounter(self.shape)
        name = self._append("conv" if isinstance(token, Convolution) else "fc", layer)
        self.waits |= {name: token.skip} if token.skip else {}

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
        return DFTLinear(*self.shape, self.config.scaled(token.features), neuron=self.config.neuron, **options)

    def _skip(self, token: Convolution | Dense, shape: tuple[int, ...]) -> int:
        """Channels that reach the layer of a token by its skip, 0 without; `shape` is of its neurons."""
        if not token.skip:
            return 0
        before, first = self._read[-1 - token.skip]
        if skip_step(before, shape) is None:
            raise ValueError(
                f"TTFSNetwork: a block must end with as many channels as enter it, or more, and in maps that every "
                f"k-th position of those that enter it makes; got {before} in front of {first} and {shape} behind "
                f'{token} in "{self.config.specification}". Change its channels or strides.'
            )
        return before[0]

    def _map_size(self, token: Convolution | Pool) -> tuple[int, int]:
        _, *size = self.shape
        maps = "×".join(map(str, size))
        if any(length % self.average for length in size):
            raise ValueError(
                f"TTFSNetwork: maps must divide into windows of an average; got {maps} in front of A{self.average} in "
                f'"{self.config.specification}". Use another size.'
            )
        padding = token.padding if isinstance(token, Convolution) else 0
        height, width = (output_size(side // self.average, token.kernel_size, token.stride, padding) for side in size)
        if min(height, width) < 1:
            raise ValueError(
                f"TTFSNetwork: image_size must be large enough for every layer; got {self.config.image_size}, which "
                f'leaves maps of {maps} in front of {token} in "{self.config.specification}". Use larger images or '
                "fewer pools."
            )
        return height, width
