"""Which network a set of named tensors is: found by names and shapes, or refused with the reason.

| layout | head | between maps and head | mean, std |
|---|---|---|---|
| ours | `readout`, behind `features.fcN` | flattened | configuration |
| torchvision VGG, also with batch norm | `classifier.0/3/6`, 7·7 places | adaptive average pool | ImageNet |
| timm VGG | `pre_logits.fc1` (7×7 convolution), `fc2`, `head.fc` | adaptive average pool of small maps | ImageNet |
| edadaltocg/vgg16_bn_cifar10 and the like | `head.fc` | global average pool | CIFAR |
| huyvnphan/PyTorch_CIFAR10 | `classifier.0/3/6` | adaptive average pool | CIFAR |
| chenyaofo/pytorch-cifar-models | `classifier.0/3/6`, square | flattened | CIFAR |
| kuangliu/pytorch-cifar | `classifier` | flattened; its average pool of 1 does nothing | CIFAR |
| Wei et al., ICCV 2023, published weights | `fc.N.linear`, behind `conv.N.cnn`, no bias | flattened | CIFAR |

The paper's networks for MNIST read pixels as spike times, without padding. Its names are the same for three networks:
an ANN, and the spiking networks of its two scripts, "direct" and "proxy". Which one a file holds must be said.

A configuration beside the weights (timm writes one) overrides the table's mean and std.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttfs_triton.convert.clean import ConversionError
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

TrainedAs = Literal["ann", "direct", "proxy"]
"""What weights were trained as: an ANN, or a spiking network of the paper's models/snn_directTrain_model.py (an analog
first layer, decisions by the potential at the output window's end) or models/proxy_ann_model.py (a first layer of
spiking neurons that read pixels, decisions by the potential at its start)."""
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

    def keys(self) -> list[str]:
        """Keys of this layer's own tensors, without those of its batch norm."""
        keys = (self.weight, self.weight_gain, self.bias, self.skip_weight)
        return [key for key in keys if key is not None]


@dataclass(frozen=True)
class AveragePool:
    """An adaptive average pool between the last maps and the first fully connected layer.

    Attributes:
        side: height and width of its output.
        maps: height and width of its input.
    """

    side: int
    maps: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """The network that the tensors are of.

    Attributes:
        name: as in the table above.
        layers: in the order of computation; the last is the readout.
        config: of that network, for the image size it is converted for.
        bound: upper bound of its hidden activations: 1 for a clamped ReLU, None for a plain one.
        pool: in front of its first fully connected layer; None if that reads the last maps as they are.
        assumptions: what neither names nor shapes say, in words.
    """

    name: str
    layers: tuple[SourceLayer, ...]
    config: NetworkConfig
    bound: float | None
    pool: AveragePool | None = None
    assumptions: tuple[str, ...] = ()


def own_layout(tensors: Mapping[str, Tensor], config: NetworkConfig) -> Layout:
    """The layout of a network of ours: trained as an ANN, with or without batch norm, or as a spiking network."""
    layers = []
    for name, layer in weighted_layers(skeleton(config)):
        prefix = f"{name}." if name == "readout" else f"features.{name}."
        layers.append(
            SourceLayer(
                name,
                f"{prefix}weight",
                f"{prefix}bias" if f"{prefix}bias" in tensors else None,
                f"{prefix}batch_norm" if f"{prefix}batch_norm.running_mean" in tensors else None,
                f"{prefix}weight_gain" if f"{prefix}weight_gain" in tensors else None,
                f"{prefix}skip_weight" if layer.skip else None,
            )
        )
    return Layout("ours", tuple(layers), config, bound=1.0)


def is_own(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a `TTFSNetwork`."""
    return any(_OURS.fullmatch(key) for key in tensors)


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


def check_layers(layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    """Raise ConversionError unless every tensor of the layout is there, with the shape that its network needs."""
    problems: list[str] = []
    network = skeleton(layout.config)
    last_convolution = next(
        (layer for _, layer in reversed(list(weighted_layers(network))) if isinstance(layer, WeightedConv2d)), None
    )
    behind_maps = True
    for source, (name, layer) in zip(layout.layers, weighted_layers(network), strict=True):
        expected = list(layer.weight.shape)
        if not isinstance(layer, WeightedConv2d):
            if behind_maps and layout.pool is not None and last_convolution is not None:
                expected[1] = last_convolution.out_channels * layout.pool.side**2
            behind_maps = False
        weight = tensors.get(source.weight)
        if weight is None:
            problems.append(f"{source.weight}: missing")
            continue
        shape = list(weight.shape if isinstance(layer, WeightedConv2d) else weight.flatten(1).shape)
        if shape != expected:
            problems.append(f"{source.weight}: {list(weight.shape)}, {name} needs {expected}")
        vectors = [key for key in (source.bias, source.weight_gain) if key is not None]
        if source.batch_norm is not None:
            vectors += [f"{source.batch_norm}.{key}" for key in ("running_mean", "running_var")]
            affine = [f"{source.batch_norm}.{key}" for key in ("weight", "bias")]
            vectors += affine if any(key in tensors for key in affine) else []
        sizes = {key: expected[:1] for key in vectors}
        if source.skip_weight is not None:
            sizes[source.skip_weight] = [layer.skip]
        for key, size in sizes.items():
            found = list(tensors[key].shape) if key in tensors else "missing"
            if found != size:
                problems.append(f"{key}: {found}, {name} needs {size}")
    if problems:
        raise ConversionError(
            f"convert: the weights must be those of {layout.config.specification} ({layout.name}); got "
            f"{'; '.join(problems)}."
        )


def unused_keys(layout: Layout, tensors: Mapping[str, Tensor]) -> list[str]:
    """Keys that no layer of the layout accounts for; counters of training batches are nobody's loss."""
    known = {key for layer in layout.layers for key in layer.keys()}
    prefixes = {layer.batch_norm for layer in layout.layers} - {None}
    norm_keys = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    known |= {f"{prefix}.{key}" for prefix in prefixes for key in norm_keys}
    return [key for key in tensors if key not in known]


def describe(tensors: Mapping[str, Tensor], keys: list[str] | None = None) -> str:
    """Names and shapes for messages, the first twelve."""
    keys = list(tensors) if keys is None else keys
    text = ", ".join(f"{key} {list(tensors[key].shape)}" for key in keys[:12])
    return f"{text}, ... ({len(keys)} in all)" if len(keys) > 12 else text
