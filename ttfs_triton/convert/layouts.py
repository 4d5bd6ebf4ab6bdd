"""Layouts: which tensors of a source are which layer's weights, and whether they are all there."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

TrainedAs = Literal["ann", "direct", "proxy"]
"""What weights were trained as: an ANN, or a spiking network of the paper's models/snn_directTrain_model.py (an analog
first layer, decisions by the potential at the output window's end) or models/proxy_ann_model.py (a first layer of
spiking neurons that read pixels, decisions by the potential at its start)."""

Statistics = tuple[tuple[float, ...] | None, tuple[float, ...] | None]
"""Mean and std of each channel of images with pixels in [0, 1]."""
_OURS = re.compile(r"(?:features\.(?:conv|fc)\d+|readout)\..+")


@dataclass(frozen=True)
class SourceLayer:
    """One layer with weights of the source, by the names of its tensors.

    Attributes:
        name: of the layer in a network of ours: "conv1", ..., "fc1", ..., "readout".
        weight: key of the weight.
        bias: key of the bias, or None.
        batch_norm: what the keys of its batch norm begin with ("features.1"), or None.
        weight_gain: key of the gains of standardised weights, or None.
        skip_weight: key of the weights of delayed spikes, or None.
    """

    name: str
    weight: str
    bias: str | None = None
    batch_norm: str | None = None
    weight_gain: str | None = None
    skip_weight: str | None = None


class AveragePool(NamedTuple):
    """Adaptive average pool between the last maps, of a height and width, and the first fully connected layer."""

    side: int
    maps: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """The network that the tensors are of.

    Attributes:
        name: "ours", or as in `foreign`.
        layers: in the order of computation; the last is the readout.
        config: of that network, for the image size it is converted for.
        bound: upper bound of its hidden activations: 1 for a clamped ReLU, None for a plain one.
        from_ann: whether it was trained as an ANN, not to spike.
        pool: in front of its first fully connected layer; None if that reads the last maps as they are.
        assumptions: what neither names nor shapes say, in words.
    """

    name: str
    layers: tuple[SourceLayer, ...]
    config: NetworkConfig
    bound: float | None
    from_ann: bool = False
    pool: AveragePool | None = None
    assumptions: tuple[str, ...] = ()


def is_own(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a `TTFSNetwork`."""
    return any(_OURS.fullmatch(key) for key in tensors)


def own_layout(tensors: Mapping[str, Tensor], config: NetworkConfig) -> Layout:
    """The layout of a network of ours, with or without batch norm."""
    layers = []
    for name, layer in weighted_layers(skeleton(config)):
        path = name if name == "readout" else f"features.{name}"
        bias, gain = (key if (key := f"{path}.{kind}") in tensors else None for kind in ("bias", "weight_gain"))
        norm = f"{path}.batch_norm" if f"{path}.batch_norm.running_mean" in tensors else None
        layers.append(
            SourceLayer(name, f"{path}.weight", bias, norm, gain, f"{path}.skip_weight" if layer.skip else None)
        )
    return Layout("ours", tuple(layers), config, bound=1.0)


def skeleton(config: NetworkConfig) -> TTFSNetwork:
    """The network without memory for its weights (on the meta device): names, shapes, strides."""
    with torch.device("meta"):
        return TTFSNetwork(config)


def weighted_layers(network: TTFSNetwork) -> Iterator[tuple[str, WeightedLayer]]:
    """Layers with weights by name, in the order of computation."""
    for name, layer in network.features.named_children():
        if isinstance(layer, WeightedLayer):
            yield name, layer
    yield "readout", network.readout


def check_tensors(layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    """Raise ConversionError unless the tensors are all of the layout's, with the shapes that its network needs."""
    problems, known, pool = [], set(), layout.pool
    for source, (name, layer) in zip(layout.layers, weighted_layers(skeleton(layout.config)), strict=True):
        shape = list(layer.weight.shape)
        if not isinstance(layer, WeightedConv2d) and pool is not None:  # the first behind the maps
            shape[1] = shape[1] // math.prod(pool.maps) * pool.side**2
            pool = None
        wanted = {key: shape[:1] for key in (source.bias, source.weight_gain) if key is not None}
        wanted[source.weight] = shape
        if source.skip_weight is not None:
            wanted[source.skip_weight] = [layer.skip]
        if (norm := source.batch_norm) is not None:
            affine = ("weight", "bias") if {f"{norm}.weight", f"{norm}.bias"} & tensors.keys() else ()
            wanted |= {f"{norm}.{key}": shape[:1] for key in ("running_mean", "running_var", *affine)}
            known.add(f"{norm}.num_batches_tracked")
        known |= wanted.keys()
        for key, size in wanted.items():
            found = list(tensors[key].shape) if key in tensors else "missing"
            if len(size) == 2 < len(found) and key in tensors:  # a convolution over all of its inputs is linear
                fits = list(tensors[key].flatten(1).shape) == size
            else:
                fits = found == size
            if not fits:
                problems.append(f"{key}: {found}, {name} needs {size}")
    if problems:
        raise ConversionError(
            f"convert: the weights must be those of {layout.config.specification} ({layout.name}); got "
            f"{'; '.join(problems)}."
        )
    if unused := [key for key in tensors if key not in known]:
        raise ConversionError(
            f"convert: every tensor must belong to {layout.config.specification} ({layout.name}); nothing takes "
            f"{describe(tensors, unused)}. Remove them if they are not part of the network."
        )


def describe(tensors: Mapping[str, Tensor], keys: Sequence[str] | None = None) -> str:
    """Names and shapes for messages, the first twelve."""
    keys = list(tensors) if keys is None else keys
    text = ", ".join(f"{key} {list(tensors[key].shape)}" for key in keys[:12])
    return f"{text}, ... ({len(keys)} in all)" if len(keys) > 12 else text
