"""Train deep spiking networks with time-to-first-spike coding: closed form, event-driven gradients, no time axis."""

from importlib.metadata import PackageNotFoundError, version

from ttfs_triton import nn

try:
    __version__ = version("ttfs-triton")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+unknown"

__all__ = ["__version__", "nn"]
