"""Shared by the formats: imports of extras, metadata of a network, its weights as arrays."""

import importlib
import json
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from torch import Tensor, nn

from ttfs_triton.nn.config import NetworkConfig
from ttfs_triton.nn.graph import NetworkGraph
from ttfs_triton.nn.layers import SpikeUpsample2d
from ttfs_triton.nn.prepare import plain_synapses
from ttfs_triton.nn.trace import unwrapped
from ttfs_triton.nn.weighted import WeightedLayer

FORMAT_VERSION = 1


def require(function: str, module: str, extra: str) -> ModuleType:
    """The module of that name, which an extra of ttfs-triton installs; else RuntimeError in the name of `function`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{function}: {error.name} must be installed; got none. Run: pip install 'ttfs-triton[{extra}]'."
        ) from error


def metadata(
    function: str, network: nn.Module, graph: NetworkGraph, class_names: Sequence[str] | None, dataset: str, **more: str
) -> dict[str, str]:
    """Metadata of a network, as strings: configuration, class names, σ (by layer if layers differ), `more`, grid.

    The configuration of a network that is no `TTFSNetwork` has one line per layer. Default class names are numbers.
    """
    names = [str(number) for number in range(graph.classes)] if class_names is None else list(class_names)
    if len(names) != graph.classes:
        raise ValueError(f"{function}: class_names must have one name per class ({graph.classes}); got {len(names)}.")
    config = getattr(unwrapped(network), "config", None)
    built = {"image_shape": list(graph.image_shape), "classes": graph.classes, "layers": graph.describe()}
    sigmas = {stage.name: stage.neuron.psp_persistence for stage in graph.stages if stage.neuron is not None}
    return {
        "format_version": str(FORMAT_VERSION),
        "network": json.dumps(config.to_dict() if isinstance(config, NetworkConfig) else built),
        "class_names": json.dumps(names, ensure_ascii=False),
        "dataset": dataset,
        "psp_persistence": repr(graph.persistences[0]) if len(graph.persistences) == 1 else json.dumps(sigmas),
        **more,
        **({} if graph.grid is None else {"grid": json.dumps(graph.grid.to_dict())}),
    }


def refuse_upsampling(function: str, graph: NetworkGraph) -> None:
    """Raise NotImplementedError, in the name of `function`, if a layer reads upsampled spikes."""
    for stage in graph.stages:
        for module in (module for wire in stage.wires for module in wire.route):
            if isinstance(module, SpikeUpsample2d):
                raise NotImplementedError(
                    f"{function}: network must not upsample spikes; got {module} in front of {stage.name}. Use to_onnx."
                )


def synapse_arrays(layer: WeightedLayer) -> tuple[np.ndarray, np.ndarray | None]:
    """`plain_synapses` as contiguous float32 arrays: weights [C_out, ...], initial potentials [C_out] or None."""
    weight, bias = plain_synapses(layer)
    return as_array(weight), None if bias is None else as_array(bias)


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor as a contiguous float32 array."""
    return tensor.detach().cpu().float().contiguous().numpy()


def ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights [C_out, C_in / groups, ...] as weights of one group, [C_out, C_in, ...], for readers without groups."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    dense = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), np.float32)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense
