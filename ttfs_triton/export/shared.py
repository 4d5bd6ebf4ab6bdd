"""What both formats need: packages that only exporting needs, a network that fits, and its weights."""

import importlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from torch import Tensor, nn

from ttfs_triton.nn.folding import plain_synapses
from ttfs_triton.nn.models import TTFSNetwork
from ttfs_triton.nn.weighted import WeightedLayer


def require(function: str, module: str, extra: str) -> ModuleType:
    """Import a module of an extra.

    Args:
        function: who asks, for the message.
        module: to import.
        extra: of ttfs-triton, that installs it.
    Raises:
        RuntimeError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{function}: {error.name} must be installed; found none. Run: pip install 'ttfs-triton[{extra}]'."
        ) from error


def check_network(function: str, network: nn.Module, class_names: Sequence[str] | None) -> list[str]:
    """The class names, by default numbers.

    Raises:
        TypeError, ValueError: in the name of `function`, a network of another kind or names that do not fit it.
    """
    if not isinstance(network, TTFSNetwork):
        raise TypeError(f"{function}: network must be a TTFSNetwork; got {type(network).__name__}.")
    classes = network.config.classes
    names = [str(number) for number in range(classes)] if class_names is None else list(class_names)
    if len(names) != classes:
        raise ValueError(f"{function}: class_names must have one name a class ({classes}); got {len(names)}.")
    return names


def synapse_arrays(layer: WeightedLayer) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights [C_out, ...] and initial potentials [C_out], or None, of `plain_synapses`, float32, contiguous."""
    weight, bias = plain_synapses(layer)
    return _array(weight), None if bias is None else _array(bias)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().float().contiguous().numpy()
