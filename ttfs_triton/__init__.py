"""Train deep spiking networks with time-to-first-spike coding: closed form, event-driven gradients, no time axis."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttfs_triton import nn
    from ttfs_triton.model import TTFSModel

try:
    __version__ = version("ttfs-triton")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+unknown"

__all__ = ["TTFSModel", "__version__", "nn"]
_PACKAGES = frozenset("chip convert data energy evaluate export hub model nn sweep train".split())


def __getattr__(name: str) -> Any:
    """Import packages and `TTFSModel` on first use: commands start before PyTorch loads, layers need no Hub client."""
    if name in _PACKAGES:
        return import_module(f"ttfs_triton.{name}")
    if name == "TTFSModel":
        from ttfs_triton.model import TTFSModel

        return TTFSModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES})
