"""What both formats need: packages that only exporting needs, what a network is, and its weights."""

import importlib
import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from ttfs_triton.nn.config import NetworkConfig
from ttfs_triton.nn.folding import plain_synapses
from ttfs_triton.nn.graph import NetworkGraph
from ttfs_triton.nn.trace import unwrapped
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


def check_names(function: str, graph: NetworkGraph, class_names: Sequence[str] | None) -> list[str]:
    """The class names, by default numbers.

    Raises:
        ValueError: in the name of `function`, as many as do not fit the network.
    """
    names = [str(number) for number in range(graph.classes)] if class_names is None else list(class_names)
    if len(names) != graph.classes:
        raise ValueError(f"{function}: class_names must have one name a class ({graph.classes}); got {len(names)}.")
    return names


def configuration(network: nn.Module, graph: NetworkGraph) -> dict[str, Any]:
    """What the network is, as JSON values: the configuration of a `TTFSNetwork`, or a line for each layer."""
    config = getattr(unwrapped(network), "config", None)
    if isinstance(config, NetworkConfig):
        return config.to_dict()
    return {"image_shape": list(graph.image_shape), "classes": graph.classes, "layers": graph.describe()}


def persistence(graph: NetworkGraph) -> str:
    """σ of the neurons; several, by layer, as JSON."""
    if len(graph.persistences) == 1:
        return repr(graph.persistences[0])
    return json.dumps({stage.name: stage.neuron.psp_persistence for stage in graph.stages if stage.neuron is not None})


def synapse_arrays(layer: WeightedLayer) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights [C_out, ...] and initial potentials [C_out], or None, of `plain_synapses`, float32, contiguous."""
    weight, bias = plain_synapses(layer)
    return _array(weight), None if bias is None else _array(bias)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().float().contiguous().numpy()
