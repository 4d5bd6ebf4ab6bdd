"""Train deep spiking networks with time-to-first-spike coding: closed form, event-driven gradients, no time axis."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ttfs_triton import nn

if TYPE_CHECKING:
    from ttfs_triton.model import TTFSModel

try:
    __version__ = version("ttfs-triton")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+unknown"

__all__ = ["TTFSModel", "__version__", "nn"]


def __getattr__(name: str) -> Any:
    """`TTFSModel` when it is first asked for: layers alone need nothing that talks to the Hub."""
    if name == "TTFSModel":
        from ttfs_triton.model import TTFSModel

        return TTFSModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
