"""Networks that the user's code builds: runs that code, and has their part of config.json."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass
from torch import nn

from ttfs_triton.nn.config import MAX_CHANNELS, MAX_SIZE, Side
from ttfs_triton.nn.graph import NetworkGraph, network_graph
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.prepare import put_on_grid
from ttfs_triton.nn.trace import what_was_raised

Network = nn.Module | Callable[[], nn.Module] | str
"""A network, a function without arguments that builds it, or "FILE.py:FUNCTION", see `build_network_of`."""
MAX_LAYERS = 2**12
Text = Annotated[str, Field(min_length=1, max_length=2**12)]


def _plain(builder: str) -> str:
    """The builder's name without this machine's folders."""
    return builder.replace("\\", "/").rpartition("/")[2]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class OwnNetwork:
    """The description of a network without a specification.

    Attributes:
        builder: name of the code that built it, "file.py:function" or a class, for readers. Never run.
        in_channels: channels of the images.
        image_size: (height, width) of the images.
        classes: number of classes.
        layers: a line per layer, from `NetworkGraph.describe`; a network with other lines is refused.
        grid: grid of the chip that the network was trained or calibrated for; None: real numbers.
    """

    builder: Annotated[Text, AfterValidator(_plain)]
    in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    image_size: tuple[Side, Side]
    classes: Annotated[int, Field(ge=1, le=MAX_SIZE)]
    layers: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    grid: Grid | None = None

    @classmethod
    def of(cls, graph: NetworkGraph, builder: str) -> OwnNetwork:
        """The description of a network that reads images."""
        if len(graph.image_shape) != 3:
            raise ValueError(f"OwnNetwork: image_shape must be (channels, height, width); got {graph.image_shape}.")
        channels, height, width = graph.image_shape
        layers = tuple(graph.describe())
        return cls(builder, channels, (height, width), graph.classes, layers, graph.grid)

    @property
    def argument(self) -> str:
        """The argument `network=…` of `TTFSModel.from_pretrained`, as Python code, for a reader who has the builder."""
        name = re.sub(r"[^\w.:/-]", "_", self.builder)
        return f'network="{name}"' if ".py:" in name else f"network={name.rpartition('.')[2]}()"

    def build(self, network: Network) -> nn.Module:
        """The network that the user's code builds; a function in a file gets the sizes of this description."""
        if isinstance(network, str):
            sizes: Any = {name: getattr(self, name) for name in ("in_channels", "image_size", "classes")}
            return build_network_of(network, **sizes)
        return network if isinstance(network, nn.Module) else network()

    def take(self, network: nn.Module) -> None:
        """Put a network on the description's grid, unless its code has done so, and check that the network fits."""
        graph = network_graph(network, (self.in_channels, *self.image_size))
        if self.grid is not None and graph.grid is None:
            put_on_grid(network, self.grid)
        elif self.grid is not None and graph.grid != self.grid:
            raise ValueError(f"network must be on the grid of the weights, {self.grid}; got {graph.grid}.")
        for place, (mine, theirs) in enumerate(zip_longest(self.layers, graph.describe(), fillvalue="no layer")):
            if mine != theirs:
                raise ValueError(
                    f"network must be the one of the weights, built by {self.builder}; got in layer {place} {theirs}, "
                    f"not {mine}. Pass the network of that builder."
                )

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON values."""
        return _ADAPTER.dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OwnNetwork:
        """The description for values from `to_dict`."""
        return _ADAPTER.validate_json(json.dumps(dict(values)))


_ADAPTER = TypeAdapter(OwnNetwork)


def file_and_function(source: str, option: str = "network") -> tuple[Path, str]:
    """The parts of "file.py:function"; ValueError, which names the option, if there is no such file."""
    name, _, function = source.rpartition(":")
    if not name or not function.isidentifier():
        raise ValueError(f"{option}: must be FILE.py:FUNCTION; got {source}.")
    if not name.endswith(".py") or not Path(name).is_file():
        raise ValueError(f"{option}: must name a Python file that exists; got {name}. Correct the path.")
    return Path(name), function


@contextmanager
def _code_of(source: str, remedy: str = "Correct it.") -> Iterator[None]:
    """Errors of the user's code in the `with` block say where they come from."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"network: {source} must run without errors; got {what_was_raised(error)}. {remedy}"
        ) from error


def build_network_of(source: str, *, in_channels: int, image_size: tuple[int, int], classes: int) -> nn.Module:
    """The network that a function in the user's Python file builds; runs the file, with its folder on the import path.

    Call this only with a `source`, "file.py:function", that the user typed, never with one from a file that came with
    weights. in_channels, image_size and classes (or num_classes) are passed to the function if it has such parameters.
    """
    path, function = file_and_function(source)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)
    with _code_of(source):
        names = runpy.run_path(str(path.resolve()))
    build = names.get(function)
    if not callable(build):
        values = filter(inspect.isfunction, names.values())
        functions = ", ".join(value.__name__ for value in values if value.__module__ == names["__name__"]) or "none"
        raise ValueError(f"network: {path} must have a function {function}; got {functions}. Correct the name.")
    given = {"in_channels": in_channels, "image_size": image_size, "classes": classes}
    parameters = inspect.signature(build).parameters.values()
    named = {parameter.name for parameter in parameters}
    if "num_classes" in named and "classes" not in named:  # as in torchvision and timm
        given["num_classes"] = given.pop("classes")
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    taken = given.keys() if takes_all else given.keys() & named
    with _code_of(source, "Correct it; its parameters may be in_channels, image_size and classes or num_classes."):
        network = build(**{key: given[key] for key in taken})
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"network: {source} must build an nn.Module; got {type(network).__name__}. Return the network."
        )
    return network
