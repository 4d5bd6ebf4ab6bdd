"""A network that code of the user's builds: what its files say of it. They hold no code, and name whose was used.

Whoever loads such a file passes the network, or the function that builds it; nothing that a file names is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ttfs_triton.nn.config import MAX_CHANNELS, MAX_SIDE, NetworkConfig
from ttfs_triton.nn.graph import NetworkGraph
from ttfs_triton.nn.models import TTFSNetwork
from ttfs_triton.nn.specification import MAX_SIZE
from ttfs_triton.nn.trace import network_graph

MAX_LAYERS = 2**12
_MAX_TEXT = 2**12


@dataclass(frozen=True)
class OwnNetwork:
    """What is known of a network without a specification.

    Attributes:
        builder: what built it, for readers: "file.py:function" or the name of a class. Never run.
        in_channels: of the images.
        image_size: (height, width) of the images.
        classes: number of classes.
        layers: a line for each layer, `NetworkGraph.describe`; a network with other lines is another one.
        analog: whether it is an ANN.
    Raises:
        ValueError: a value of another type or out of range.
    """

    builder: str
    in_channels: int
    image_size: tuple[int, int]
    classes: int
    layers: tuple[str, ...]
    analog: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "layers"):  # JSON has no tuples
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = (self.in_channels, *self.image_size) if isinstance(self.image_size, tuple) else (None,)
        bounds = (MAX_CHANNELS, MAX_SIDE, MAX_SIDE)
        if len(sizes) != 3 or not all(_is_size(size, most) for size, most in zip(sizes, bounds, strict=True)):
            _refuse("in_channels and image_size", f"be three sizes up to {bounds}", sizes)
        if not _is_size(self.classes, MAX_SIZE):
            _refuse("classes", f"be 1 to {MAX_SIZE}", self.classes)
        if not isinstance(self.analog, bool):
            _refuse("analog", "be True or False", self.analog)
        texts = self.layers if isinstance(self.layers, tuple) else (None,)
        if not 1 <= len(texts) <= MAX_LAYERS or not all(map(_is_text, (self.builder, *texts))):
            _refuse("builder and layers", f"be texts, of at most {MAX_LAYERS} layers", self.layers)

    @classmethod
    def of(cls, graph: NetworkGraph, builder: str) -> OwnNetwork:
        """What is known of a network of images.

        Raises:
            ValueError: it reads something else.
        """
        if len(graph.image_shape) != 3:
            _refuse("image_shape", "be (channels, height, width)", graph.image_shape)
        channels, height, width = graph.image_shape
        builder = builder.replace("\\", "/").rpartition("/")[2]  # folders of this machine say nothing to readers
        return cls(builder, channels, (height, width), graph.classes, tuple(graph.describe()), graph.analog)

    @property
    def max_value(self) -> float:
        """Pixel value of the brightest: networks are trained with pixels in [0, 1]."""
        return 1.0

    def check(self, network: nn.Module) -> None:
        """Raise unless a network is this one.

        Raises:
            ValueError: the first layer that differs, or what `network_graph` says.
        """
        graph = network_graph(network, (self.in_channels, *self.image_size))
        found, wanted = graph.describe(), list(self.layers)
        for place in range(max(len(found), len(wanted))):
            mine, theirs = (lines[place] if place < len(lines) else "no layer" for lines in (wanted, found))
            if mine != theirs:
                raise ValueError(
                    f"network must be the one that the weights are of, built by {self.builder}; got in layer {place} "
                    f"{theirs}, not {mine}. Pass that builder's."
                )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self) | {"image_size": list(self.image_size), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OwnNetwork:
        """What `to_dict` gave.

        Raises:
            TypeError, ValueError: unknown or missing keys, or values that do not pass the checks.
        """
        return cls(**values)


def describe_network(
    network: nn.Module, image_shape: Sequence[int] | None = None, builder: str | None = None
) -> NetworkConfig | OwnNetwork:
    """What config.json says of a network.

    Args:
        network, image_shape: as of `network_graph`, which checks what is no `TTFSNetwork`.
        builder: what builds it, where it is no `TTFSNetwork`. Default: the name of its class.
    Raises:
        NetworkError: as `network_graph`.
    """
    if isinstance(network, TTFSNetwork):
        return network.config
    return OwnNetwork.of(network_graph(network, image_shape), builder or type(network).__qualname__)


def _is_size(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def _refuse(name: str, rule: str, value: object) -> None:
    raise ValueError(f"OwnNetwork: {name} must {rule}; got {value!r:.200}.")
