"""VGG networks of other projects: one chain of `features`, one of several heads."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ttfs_triton.convert.errors import ConversionError
from ttfs_triton.convert.layouts import AveragePool, Layout, SourceLayer, describe
from ttfs_triton.nn import NetworkConfig

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The deviations that these projects divide by; those of the pixels of CIFAR-10 are (0.2470, 0.2435, 0.2616).
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100: Statistics = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
CIFAR100_CHENYAOFO: Statistics = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
# In units of 8-bit pixels: (125.3, 123.0, 113.9) and (63.0, 62.1, 66.7).
CIFAR100_PAPER: Statistics = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))


@dataclass
class _Chain:
    """Layers of a sequence found so far, and the specification that they add up to."""

    layers: list[SourceLayer] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    pools: int = 0

    def add(self, name: str, weight: str, tensors: Mapping[str, Tensor], batch_norm: str | None = None) -> None:
        bias = f"{weight.removesuffix('weight')}bias"
        self.layers.append(SourceLayer(name, weight, bias if bias in tensors else None, batch_norm))


def vgg_layout(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, image_size: tuple[int, int] | None
) -> Layout | None:
    """The layout of a VGG network of another project, or None if the names are not those of one.

    Args:
        tensors: cleaned.
        config: content of the config.json beside them, or None; mean, std and image size as timm writes them are used.
        image_size: (height, width) that the network shall be converted for; None is the size that its head was made
            for.
    Raises:
        ConversionError: names of such a network that do not add up to one.
    """
    if "features.0.weight" in tensors:
        chain = _features(tensors, "features", "")
    elif "conv.0.cnn.weight" in tensors:
        chain = _features(tensors, "conv", "cnn.")
    else:
        return None
    weight = tensors[chain.layers[-1].weight]
    name, head, pooling = _head(tensors)
    first = tensors[head[0][0]]
    side = math.isqrt(first[0].numel() // weight.shape[0])
    if first[0].numel() != weight.shape[0] * side**2:
        raise ConversionError(
            f"convert: {head[0][0]} must read square maps of {weight.shape[0]} channels, as {chain.layers[-1].weight} "
            f"gives them; got {list(first.shape)}."
        )
    for number, (key, norm) in enumerate(head, start=1):
        last = number == len(head)
        chain.add("readout" if last else f"fc{number}", key, tensors, norm)
        if not last:
            chain.tokens.append(str(tensors[key].shape[0]))
    name, statistics, assumptions = _origin(name, head, tensors, side)
    pretrained = _timm_config(config)
    size = image_size or pretrained.get("image_size") or (side * 2**chain.pools,) * 2
    channels = tensors[chain.layers[0].weight].shape[1]
    mean, std = pretrained.get("statistics") or statistics
    if "statistics" in pretrained:
        assumptions = [note for note in assumptions if not note.startswith("mean and std")]
    if channels != len(mean):
        mean = std = None
        assumptions.append(f"mean and std unknown for {channels} channels: 0 and 1")
    network = NetworkConfig(
        "-".join(chain.tokens),
        in_channels=channels,
        image_size=size,
        classes=tensors[head[-1][0]].shape[0],
        encoder="analog",
        mean=mean,
        std=std,
        bias=any(layer.bias for layer in chain.layers),
        weight_standardisation=False,
        neuron="ann",
        batch_norm=any(layer.batch_norm for layer in chain.layers),
    )
    paper = name.startswith("Wei et al.")
    layout = Layout(name, tuple(chain.layers), network, 1.0 if paper else None, None, tuple(assumptions))
    return _pooled(layout, side, pooling, size, chain.pools)


def _features(tensors: Mapping[str, Tensor], root: str, inner: str) -> _Chain:
    """Convolutions and the pools that the gaps between their numbers stand for."""
    pattern = re.compile(rf"{root}\.(\d+)\.{re.escape(inner)}weight")
    numbers = sorted(int(match[1]) for key in tensors if (match := pattern.fullmatch(key)))
    convolutions = [n for n in numbers if tensors[f"{root}.{n}.{inner}weight"].dim() == 4]
    chain = _Chain()
    for count, number in enumerate(convolutions, start=1):
        key = f"{root}.{number}.{inner}weight"
        channels, _, height, width = tensors[key].shape
        if (height, width) not in ((1, 1), (3, 3)):
            raise ConversionError(
                f"convert: {key} must be 3×3 (padding 1) or 1×1, as in VGG networks; got {height}×{width}, of which "
                "the padding is unknown."
            )
        norm = f"{root}.{number + 1}" if f"{root}.{number + 1}.running_mean" in tensors else None
        chain.add(f"conv{count}", key, tensors, norm)
        chain.tokens.append(f"{channels}C{height}")
        following = convolutions[count] if count < len(convolutions) else None
        # Behind each convolution, and its batch norm, an activation; a further place is a pool. All VGGs end in one.
        places = 2 if following is None else following - number - (1 if norm is None else 2)
        if places not in (1, 2):
            raise ConversionError(
                f"convert: behind {key} there must be an activation or an activation and a pool; got {places} places "
                f"before {root}.{following}. This is not a VGG network."
            )
        if places == 2:
            chain.tokens.append("P2")
            chain.pools += 1
    return chain


def _head(tensors: Mapping[str, Tensor]) -> tuple[str, list[tuple[str, str | None]], str]:
    """Kind of head, (weight, batch norm) of its layers, and what lies between it and the maps."""
    if "pre_logits.fc1.weight" in tensors:
        keys = ["pre_logits.fc1.weight", "pre_logits.fc2.weight", "head.fc.weight"]
        return "timm VGG", [(key, None) for key in keys if _present(tensors, key)], "small maps"
    if "head.fc.weight" in tensors:
        return "edadaltocg", [("head.fc.weight", None)], "average"
    if "classifier.weight" in tensors:
        return "kuangliu/pytorch-cifar", [("classifier.weight", None)], "flattened"
    for root, inner, name in (("classifier", "", "torchvision VGG"), ("fc", "linear.", "Wei et al., ICCV 2023")):
        pattern = re.compile(rf"{root}\.(\d+)\.{re.escape(inner)}weight")
        numbers = sorted(int(match[1]) for key in tensors if (match := pattern.fullmatch(key)))
        linear = [n for n in numbers if tensors[f"{root}.{n}.{inner}weight"].dim() == 2]
        if linear:
            norms = [f"{root}.{n + 1}" if f"{root}.{n + 1}.running_mean" in tensors else None for n in linear]
            keys = [f"{root}.{n}.{inner}weight" for n in linear]
            return name, list(zip(keys, norms, strict=True)), "flattened" if inner else "average"
    raise ConversionError(
        "convert: the weights must have a classifier (classifier, head.fc or fc.N.linear); got "
        f"{describe(tensors, [key for key in tensors if not key.startswith(('features.', 'conv.'))]) or 'none'}. "
        "A network without one computes no classes."
    )


def _present(tensors: Mapping[str, Tensor], key: str) -> bool:
    if key not in tensors:
        raise ConversionError(f"convert: a timm VGG must have {key}; it is missing.")
    return True


def _origin(
    name: str, head: Sequence[tuple[str, str | None]], tensors: Mapping[str, Tensor], side: int
) -> tuple[str, Statistics, list[str]]:
    """The layout's name, mean and std, and what of that is assumed."""
    classes = tensors[head[-1][0]].shape[0]
    cifar = CIFAR100 if classes == 100 else CIFAR10
    if name == "torchvision VGG" and side == 1:
        square = tensors[head[0][0]].shape[0] == tensors[head[0][0]].shape[1]
        name = "chenyaofo/pytorch-cifar-models" if square else "huyvnphan/PyTorch_CIFAR10"
        cifar = CIFAR100_CHENYAOFO if square and classes == 100 else cifar
    if name.startswith("Wei et al."):
        cifar = CIFAR100_PAPER if classes == 100 else CIFAR10
    imagenet = name in ("torchvision VGG", "timm VGG")
    data = "ImageNet" if imagenet else "CIFAR-100" if classes == 100 else "CIFAR-10"
    mean, std = statistics = IMAGENET if imagenet else cifar
    assumptions = [f"mean and std of {data}, as that project trains: {mean}, {std}", "a 2×2 pool ends the convolutions"]
    if name == "edadaltocg":
        name = "timm VGG without pre_logits (edadaltocg)"
    if name.startswith("Wei et al."):
        assumptions.append("an ANN or a spiking network: the names are the same; hidden activations are in [0, 1]")
    return name, statistics, assumptions


def _timm_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """`statistics` and `image_size` as a timm configuration says, in its present or former form."""
    if config is None:
        return {}
    values = config.get("pretrained_cfg", config)
    found: dict[str, Any] = {}
    if isinstance(values, Mapping):
        mean, std, size = values.get("mean"), values.get("std"), values.get("input_size")
        if isinstance(mean, list) and isinstance(std, list):
            found["statistics"] = (tuple(map(float, mean)), tuple(map(float, std)))
        if isinstance(size, list) and len(size) == 3:
            found["image_size"] = (int(size[1]), int(size[2]))
    return found


def _pooled(layout: Layout, side: int, pooling: str, size: tuple[int, int], pools: int) -> Layout:
    """The layout with its average pool, unless the maps are what the head reads anyway."""
    maps = (size[0] // 2**pools, size[1] // 2**pools)
    if min(maps) < 1:
        raise ConversionError(
            f"convert: image_size must be at least {2**pools} for {pools} pools; got {size}. Use larger images."
        )
    if maps == (side, side):
        return layout
    if pooling == "flattened" or layout.name.startswith("chenyaofo"):
        raise ConversionError(
            f"convert: image_size must be {side * 2**pools} for a head that reads maps of {side}×{side}; got {size}, "
            f"which gives {maps[0]}×{maps[1]}."
        )
    if pooling == "small maps" and max(maps) > side:
        raise ConversionError(
            f"convert: image_size must leave maps of at most {side}×{side} for a timm VGG; got {size}, which gives "
            f"{maps[0]}×{maps[1]}: its head would be applied at several places and averaged."
        )
    return dataclasses.replace(layout, pool=AveragePool(side, maps))
