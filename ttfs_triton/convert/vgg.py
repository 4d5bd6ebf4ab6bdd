"""VGG networks of other projects: one chain of convolutions, one of several heads."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ttfs_triton.convert.clean import ConversionError
from ttfs_triton.convert.layouts import AveragePool, Layout, SourceLayer, TrainedAs, describe
from ttfs_triton.nn import NetworkConfig, Neuron

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The deviations that these projects divide by; those of the pixels of CIFAR-10 are (0.2470, 0.2435, 0.2616).
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100: Statistics = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
CIFAR100_CHENYAOFO: Statistics = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
# In units of 8-bit pixels: (125.3, 123.0, 113.9) and (63.0, 62.1, 66.7).
CIFAR100_PAPER: Statistics = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))

MNIST = (28, 28)
"""Images that the paper's networks of one channel read."""
DIRECT_BOUND = 1e5
"""Of its derivatives."""

# Convolutions between pools of VGG11, 13, 16 and 19.
DEPTHS = ([1, 1, 2, 2, 2], [2, 2, 2, 2, 2], [2, 2, 3, 3, 3], [2, 2, 4, 4, 4])


@dataclass(frozen=True)
class Project:
    """What a project does that its weights do not say.

    Attributes:
        name: of the layout.
        statistics, statistics_100: mean and std, and those for 100 classes.
        reads: what its head does with maps of another size than it was made for: "average" pools them, "small" ones
            only, or nothing ("exact").
        bound: of hidden activations.
    """

    name: str
    statistics: Statistics
    statistics_100: Statistics
    reads: Literal["average", "small", "exact"]
    bound: float | None = None


TORCHVISION = Project("torchvision VGG", IMAGENET, IMAGENET, "average")
TIMM = Project("timm VGG", IMAGENET, IMAGENET, "small")
EDADALTOCG = Project("timm VGG without pre_logits (edadaltocg)", CIFAR10, CIFAR100, "average")
HUYVNPHAN = Project("huyvnphan/PyTorch_CIFAR10", CIFAR10, CIFAR100, "average")
CHENYAOFO = Project("chenyaofo/pytorch-cifar-models", CIFAR10, CIFAR100_CHENYAOFO, "exact")
KUANGLIU = Project("kuangliu/pytorch-cifar", CIFAR10, CIFAR100, "exact")
PAPER = Project("Wei et al., ICCV 2023", CIFAR10, CIFAR100_PAPER, "exact", bound=1.0)


@dataclass
class _Chain:
    """Layers of a sequence found so far, and the specification that they add up to."""

    layers: list[SourceLayer] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def add(self, name: str, weight: str, tensors: Mapping[str, Tensor], batch_norm: str | None = None) -> None:
        bias = f"{weight.removesuffix('weight')}bias"
        self.layers.append(SourceLayer(name, weight, bias if bias in tensors else None, batch_norm))

    @property
    def pools(self) -> int:
        return self.tokens.count("P2")


def vgg_layout(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    image_size: tuple[int, int] | None,
    trained_as: TrainedAs | None = None,
) -> Layout | None:
    """The layout of a VGG network of another project, or None if the names are not those of one.

    Args:
        tensors: cleaned.
        config: content of the config.json beside them, or None; mean, std and image size as timm writes them are used.
        image_size: (height, width) that the network shall be converted for; None is the size that its head was made
            for.
        trained_as: see `TrainedAs`; needed for the paper's networks, whose names do not say it.
    Raises:
        ConversionError: names of such a network that do not add up to one, or that may be of several.
    """
    if "features.0.weight" in tensors:
        chain = _convolutions(tensors, "features", "")
    elif "conv.0.cnn.weight" in tensors:
        chain = _convolutions(tensors, "conv", "cnn.")
    else:
        return None
    project, head = _head(tensors)
    _check_trained_as(project, trained_as)
    side = _side(tensors, chain.layers[-1].weight, head[0][0])
    if project is TORCHVISION and side == 1:
        hidden, inputs = tensors[head[0][0]].shape
        project = CHENYAOFO if hidden == inputs else HUYVNPHAN
    for number, (key, norm) in enumerate(head, start=1):
        last = number == len(head)
        chain.add("readout" if last else f"fc{number}", key, tensors, norm)
        chain.tokens += [] if last else [str(tensors[key].shape[0])]
    _check_biases(chain.layers, tensors)
    network, assumptions = _config(project, chain, tensors, config)
    if project is PAPER:
        network = _paper_network(network, trained_as)
        assumptions.append(f"trained as {trained_as}, as said: the names are the same")
    if project is PAPER and network.in_channels == 1:
        layers = tuple(chain.layers)
        return Layout(project.name, layers, network.replace(image_size=image_size or MNIST), 1.0, None, (*assumptions,))
    size = image_size or _timm_size(config) or (side * 2**chain.pools,) * 2
    layout = Layout(
        project.name, tuple(chain.layers), network.replace(image_size=size), project.bound, None, tuple(assumptions)
    )
    return _pooled(layout, project, side, chain.pools)


def _convolutions(tensors: Mapping[str, Tensor], root: str, inner: str) -> _Chain:
    """Convolutions and the pools that the gaps between their numbers stand for.

    The paper's for MNIST, which read one channel, are not padded, whatever their kernel.
    """
    chain = _Chain()
    found = _sequence(tensors, root, inner, dimensions=4)
    unpadded = inner == "cnn." and bool(found) and tensors[found[0][1]].shape[1] == 1
    for count, (number, key, norm) in enumerate(found, start=1):
        channels, _, height, width = tensors[key].shape
        if (height, width) not in ((1, 1), (3, 3)) and not (unpadded and height == width):
            raise ConversionError(
                f"convert: {key} must be 3×3 (padding 1) or 1×1, as in VGG networks; got {height}×{width}, of which "
                "the padding is unknown."
            )
        chain.add(f"conv{count}", key, tensors, norm)
        # Behind each convolution, and its batch norm, an activation; a further place is a pool. All VGGs end in one.
        places = _places(found, count, number, norm) or 2
        if places > 2:
            raise ConversionError(
                f"convert: behind {key} there must be an activation, and perhaps a pool; got {places} places before "
                f"{found[count][1]}. A layer is missing, or this is not a VGG network."
            )
        chain.tokens += [f"{channels}C{height}{'p0' if unpadded else ''}", "P2"][:places]
    if not found:
        raise ConversionError(f"convert: {root}.0.{inner}weight must be of a convolution; got {describe(tensors)}.")
    return chain


def _sequence(
    tensors: Mapping[str, Tensor], root: str, inner: str, dimensions: int
) -> list[tuple[int, str, str | None]]:
    """(number, key of the weight, batch norm behind it) of the layers of an `nn.Sequential` whose weights have so many
    dimensions."""
    pattern = re.compile(rf"{root}\.(\d+)\.{re.escape(inner)}weight")
    numbers = sorted((int(match[1]), key) for key in tensors if (match := pattern.fullmatch(key)))
    return [
        (number, key, norm if f"{(norm := f'{root}.{number + 1}')}.running_mean" in tensors else None)
        for number, key in numbers
        if tensors[key].dim() == dimensions
    ]


def _places(found: Sequence[tuple[int, str, str | None]], count: int, number: int, norm: str | None) -> int | None:
    """Places between a layer, with its batch norm, and the next; None behind the last."""
    return found[count][0] - number - (1 if norm is None else 2) if count < len(found) else None


def _head(tensors: Mapping[str, Tensor]) -> tuple[Project, list[tuple[str, str | None]]]:
    """The project, and weight and batch norm of each fully connected layer."""
    named = {
        "pre_logits.fc1.weight": (TIMM, ["pre_logits.fc1.weight", "pre_logits.fc2.weight", "head.fc.weight"]),
        "head.fc.weight": (EDADALTOCG, ["head.fc.weight"]),
        "classifier.weight": (KUANGLIU, ["classifier.weight"]),
    }
    for first, (project, keys) in named.items():
        if first in tensors:
            for key in keys:
                if key not in tensors or tensors[key].dim() not in (2, 4):
                    raise ConversionError(
                        f"convert: a {project.name} must have {key}, a linear layer or a convolution; got "
                        f"{list(tensors[key].shape) if key in tensors else 'none'}."
                    )
            return project, [(key, None) for key in keys]
    for root, inner, project in (("classifier", "", TORCHVISION), ("fc", "linear.", PAPER)):
        found = _sequence(tensors, root, inner, dimensions=2)
        for count, (number, key, norm) in enumerate(found, start=1):
            # An activation, and perhaps dropout, between two layers.
            if (places := _places(found, count, number, norm)) is not None and places > 2:
                raise ConversionError(
                    f"convert: behind {key} there must be an activation, and perhaps dropout; got {places} places "
                    f"before {found[count][1]}. A layer is missing, or this is not a VGG network."
                )
        if found:
            return project, [(key, norm) for _, key, norm in found]
    raise ConversionError(
        "convert: the weights must have a classifier (classifier, head.fc or fc.N.linear); got "
        f"{describe(tensors, [key for key in tensors if not key.startswith(('features.', 'conv.'))]) or 'none'}. "
        "A network without one computes no classes."
    )


def _side(tensors: Mapping[str, Tensor], convolution: str, dense: str) -> int:
    """Height and width of the maps that the head was made for."""
    channels, inputs = tensors[convolution].shape[0], tensors[dense][0].numel()
    side = math.isqrt(inputs // channels)
    if side == 0 or inputs != channels * side**2:
        raise ConversionError(
            f"convert: {dense} must read square maps of {channels} channels, as {convolution} gives them; got "
            f"{list(tensors[dense].shape)}."
        )
    return side


def _check_biases(layers: Sequence[SourceLayer], tensors: Mapping[str, Tensor]) -> None:
    """No project gives some of its convolutions, or some of its linear layers, a bias: there, one is missing."""
    for kind in (
        [layer for layer in layers if layer.name.startswith("conv")],
        [layer for layer in layers if not layer.name.startswith("conv")],
    ):
        without = [layer.weight for layer in kind if layer.bias is None]
        if 0 < len(without) < len(kind):
            raise ConversionError(
                f"convert: all layers of a kind must have a bias, or none; got none for {', '.join(without)}."
            )


def _config(
    project: Project, chain: _Chain, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None
) -> tuple[NetworkConfig, list[str]]:
    """The source's configuration, for any image size, and what of it is assumed."""
    classes = tensors[chain.layers[-1].weight].shape[0]
    channels = tensors[chain.layers[0].weight].shape[1]
    mean, std = statistics = project.statistics_100 if classes == 100 else project.statistics
    assumptions = [f"mean and std as {project.name} has them: {mean}, {std}"]
    if (given := _timm_statistics(config)) is not None:
        (mean, std), assumptions = given, ["mean and std of the config.json beside the weights"]
    elif channels != len(statistics[0]):
        mean = std = None
        assumptions = [f"mean and std unknown for {channels} channels: 0 and 1"]
    assumptions.append("a 2×2 pool ends the convolutions")
    stages = "-".join(chain.tokens).split("P2")
    latency = project is PAPER and channels == 1
    depths = [stage.count("C") for stage in stages[:-1]]
    if depths not in DEPTHS:
        assumptions.append(f"none of VGG11, 13, 16 and 19: {depths} convolutions between pools")
    network = NetworkConfig(
        "-".join(chain.tokens),
        in_channels=channels,
        classes=classes,
        encoder="latency" if latency else "analog",
        mean=mean,
        std=std,
        bias=any(layer.bias for layer in chain.layers),
        weight_standardisation=False,
        analog=True,
        batch_norm=any(layer.batch_norm for layer in chain.layers),
    )
    return network, assumptions


def _check_trained_as(project: Project, trained_as: TrainedAs | None) -> None:
    if project is PAPER and trained_as is None:
        raise ConversionError(
            "convert: trained_as must be one of ann, direct, proxy for the paper's networks, whose names are the same; "
            "got None. Give it (--trained-as): calibrating what was trained to spike would ruin it."
        )
    if project is not PAPER and trained_as not in (None, "ann"):
        raise ConversionError(f"convert: trained_as must be ann for a {project.name}; got {trained_as}. Leave it out.")


def _paper_network(network: NetworkConfig, trained_as: TrainedAs | None) -> NetworkConfig:
    """The network as the paper's script of that name has it; of one channel, pixels are spike times in all of them."""
    if trained_as == "direct":
        return network.replace(analog=False, readout="potential_end", neuron=Neuron(derivative_clip=DIRECT_BOUND))
    if trained_as == "proxy":
        encoder = "latency" if network.in_channels == 1 else "signed"
        return network.replace(analog=False, readout="potential_start", neuron=Neuron(), encoder=encoder)
    return network


def _timm_values(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A timm configuration, in its present or former form."""
    values = {} if config is None else config.get("pretrained_cfg", config)
    return values if isinstance(values, Mapping) else {}


def _timm_statistics(config: Mapping[str, Any] | None) -> Statistics | None:
    mean, std = (_timm_values(config).get(name) for name in ("mean", "std"))
    if not isinstance(mean, list) or not isinstance(std, list):
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def _timm_size(config: Mapping[str, Any] | None) -> tuple[int, int] | None:
    size = _timm_values(config).get("input_size")
    return (int(size[1]), int(size[2])) if isinstance(size, list) and len(size) == 3 else None


def _pooled(layout: Layout, project: Project, side: int, pools: int) -> Layout:
    """The layout with its average pool, unless the maps are what the head reads anyway."""
    size = layout.config.image_size
    maps = (size[0] // 2**pools, size[1] // 2**pools)
    if min(maps) < 1:
        raise ConversionError(
            f"convert: image_size must be at least {2**pools} for {pools} pools; got {size}. Use larger images."
        )
    if maps == (side, side):
        return layout
    if project.reads == "exact":
        raise ConversionError(
            f"convert: image_size must be {side * 2**pools} for a head that reads maps of {side}×{side}; got {size}, "
            f"which gives {maps[0]}×{maps[1]}."
        )
    if project.reads == "small" and max(maps) > side:
        raise ConversionError(
            f"convert: image_size must leave maps of at most {side}×{side} for a timm VGG; got {size}, which gives "
            f"{maps[0]}×{maps[1]}: its head would be applied at several places and averaged."
        )
    return dataclasses.replace(layout, pool=AveragePool(side, maps))
