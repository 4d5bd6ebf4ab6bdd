"""The firing rule of dynamic-firing-threshold neurons and its contractions, as PyTorch operators.

Operators map activations to activations. Windows have length 1, and a spike of layer l at time t is stored as the
activation a = (l + 1) − t in [0, 1]: a = 1 fires at the window's start, a = 0 is silent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttfs_kernels.neuron import Neuron
    from ttfs_kernels.ops import (
        Normalisation,
        Normalised,
        dft_conv2d,
        dft_linear,
        normalised_conv2d,
        normalised_linear,
        standardise_weight,
    )
    from ttfs_kernels.rule import fuse_passes

# A module is imported when one of its names is first used: commands that list the neuron's properties need no PyTorch.
__all__ = [
    "Neuron",
    "Normalisation",
    "Normalised",
    "dft_conv2d",
    "dft_linear",
    "fuse_passes",
    "normalised_conv2d",
    "normalised_linear",
    "standardise_weight",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        modules = (import_module(f"ttfs_kernels.{module}") for module in ("neuron", "ops", "rule"))
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
