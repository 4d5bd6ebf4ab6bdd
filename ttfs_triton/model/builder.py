"""A network from a Python file of the user's, "file.py:function" on the command line."""

from __future__ import annotations

import inspect
import runpy
import sys
from pathlib import Path

from torch import nn


def build_network_of(source: str, *, in_channels: int, image_size: tuple[int, int], classes: int) -> nn.Module:
    """Run a Python file of the user's, with its folder on the import path, and call one of its functions.

    Call this only with a source that the user typed, never with one from a file that came with weights.

    Args:
        source: "file.py:function".
        in_channels, image_size, classes: of the data; the function is called with those of these names that it takes.
    Raises:
        ValueError: no such file or function, or it builds no `nn.Module`. What the file itself raises comes through.
    """
    name, _, function = source.rpartition(":")
    path = Path(name)
    if not name or not function.isidentifier():
        raise ValueError(f"network: must be FILE.py:FUNCTION; got {source}.")
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"network: must name a Python file that exists; got {name}. Correct the path.")
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)
    names = runpy.run_path(str(path.resolve()))
    build = names.get(function)
    if not callable(build):
        known = ", ".join(key for key, value in names.items() if inspect.isfunction(value)) or "none"
        raise ValueError(f"network: {name} must have a function {function}; got {known}. Correct the name.")
    given = {"in_channels": in_channels, "image_size": image_size, "classes": classes}
    parameters = inspect.signature(build).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    taken = given.keys() if takes_all else given.keys() & {parameter.name for parameter in parameters}
    network = build(**{key: given[key] for key in taken})
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"network: {source} must build an nn.Module; got {type(network).__name__}. Return the network."
        )
    return network
