"""A network from a file of the user's: "file.py:function", as he names it on the command line, and nobody else."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

from torch import nn


def build_network_of(source: str, *, in_channels: int, image_size: tuple[int, int], classes: int) -> nn.Module:
    """Run a Python file of the user's and call its function.

    The file is run as `python file.py` would, its folder first among those of imports. So call this only with what a
    user typed, never with what stands in a file that came with weights.

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
    module_spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert module_spec is not None
    assert module_spec.loader is not None
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        known = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise ValueError(f"network: {name} must have a function {function}; got {known}. Correct the name.")
    given = {"in_channels": in_channels, "image_size": image_size, "classes": classes}
    parameters = inspect.signature(build).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = given.keys() if takes_all else given.keys() & {parameter.name for parameter in parameters}
    network = build(**{key: given[key] for key in names})
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"network: {source} must build an nn.Module; got {type(network).__name__}. Return the network."
        )
    return network
