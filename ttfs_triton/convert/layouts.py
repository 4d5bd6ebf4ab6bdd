"""VGG networks of other projects, recognised by the names of their tensors and built as PyTorch modules.

| layout | convolutions | fully connected layers | between them |
|---|---|---|---|
| torchvision VGG | `features.N` | `classifier.N`, or `classifier` alone | adaptive average pool |
| timm VGG | `features.N` | `pre_logits.fc1`, `pre_logits.fc2`, `head.fc`, or the last alone | the same |
| Wei et al., ICCV 2023 | `conv.N.cnn` | `fc.N.linear` | flattened |

Other projects use these names too. The size of the head's input gives the size of the maps that it reads. Mean and std
of the images are known for heads that read ImageNet's 7×7 maps and for the paper's networks; else the caller must give
them.

The paper's networks for MNIST read pixels as spike times, without padding. Three of the paper's networks have the same
names: an ANN and the spiking networks "direct" and "proxy". The caller must say which one a file holds.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ttfs_triton.convert.source import ConversionError, Weights, load_state

TrainedAs = Literal["ann", "direct", "proxy"]
"""Which of the paper's networks a file holds. "ann": its ANN. "direct", models/snn_directTrain_model.py: an analog
first layer, logits read at the output window's end. "proxy", models/proxy_ann_model.py: a spiking first layer, logits
read at the output window's start."""

Statistics = tuple[tuple[float, ...] | None, tuple[float, ...] | None]
"""Mean and std of each channel of images with pixels in [0, 1]."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_MAPS = 7  # height and width of the maps that heads trained on ImageNet read
# The paper's code normalises CIFAR-10 and CIFAR-100 by these.
CIFAR10_PAPER: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_PAPER: Statistics = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
MNIST_SIZE = (28, 28)
NO_STATISTICS = "convert: mean and std must not be given for a source that reads pixels as spike times."
_LAST = 3  # place of a layer whose name has no number, such as timm's head.fc behind fc1 and fc2


@dataclass(frozen=True)
class Names:
    """How a project names the weights of its layers: patterns, whose group is the layer's number.

    `between_dense` counts the places of an `nn.Sequential` between two fully connected layers: activation, dropout.
    """

    layout: str
    convolution: str
    dense: str
    between_dense: int = 2


TORCHVISION = Names("torchvision VGG", r"features\.(\d+)\.weight", r"classifier(?:\.(\d+))?\.weight")
TIMM = Names("timm VGG", r"features\.(\d+)\.weight", r"(?:pre_logits\.fc(\d)|head\.fc)\.weight", between_dense=0)
PAPER = Names("Wei et al., ICCV 2023", r"conv\.(\d+)\.cnn\.weight", r"fc\.(\d+)\.linear\.weight")


@dataclass(frozen=True)
class Layout:
    """A network of another project.

    Attributes:
        name: name of the layout.
        modules: modules in the order of computation, each with the prefix of its tensors' names; "" without tensors.
        image_shape: (channels, height, width).
        latency: pixels are spike times.
        mean, std: mean and standard deviation of each channel of its training images.
        assumptions: assumptions that neither names nor shapes confirm, in words.
    """

    name: str
    modules: tuple[tuple[str, nn.Module], ...]
    image_shape: tuple[int, int, int]
    latency: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    assumptions: tuple[str, ...]

    def load(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        named, found = nn.Module(), {name: tensor.float() for name, tensor in tensors.items()}
        for name, module in self.modules:
            *folders, last = name.split(".")
            parent = named
            for part in folders:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            if name:
                parent.add_module(last, module)
            if isinstance(module, nn.Linear) and f"{name}.weight" in found:
                # A convolution whose kernel covers its whole input is a fully connected layer.
                found[f"{name}.weight"] = found[f"{name}.weight"].flatten(1)
        load_state(named, found, f"the weights must be those of {self.name}", assign=True)
        return nn.Sequential(*(module for _, module in self.modules)).eval()


def foreign_layout(
    weights: Weights,
    image_size: tuple[int, int] | None,
    trained_as: TrainedAs | None,
    statistics: Statistics,
    fallback: Statistics | None,
) -> Layout:
    """Recognise a VGG network of another project by the names and shapes of its tensors.

    Args:
        weights: the weights; the config.json beside them may give mean, std and image size, as timm writes them.
        image_size: (height, width) of the converted network's images. None: the size that its head was made for.
        trained_as: see `convert`.
        statistics: mean and std of the network's training images. None: from config.json, else known values.
        fallback: mean and std to use if nothing else gives them.
    """
    tensors = weights.tensors
    names, convolutions, dense = _recognised(tensors)
    _check_trained_as(names, trained_as)
    first, head = tensors[f"{next(iter(convolutions))}.weight"], tensors[f"{next(iter(dense))}.weight"]
    channels, classes = first.shape[1], len(tensors[f"{list(dense)[-1]}.weight"])
    latency = names is PAPER and channels == 1  # the paper's network for MNIST
    timm, assumptions = _timm_values(weights.config), ["a 2×2 pool ends the convolutions"]
    places = head[0].numel() / len(tensors[f"{list(convolutions)[-1]}.weight"])  # that the head reads in each map
    pools = sum(behind == 2 for behind in convolutions.values())
    average: list[tuple[str, nn.Module]] = []
    if latency and any(statistics):
        raise ConversionError(NO_STATISTICS)
    if latency:
        size, (mean, std) = image_size or MNIST_SIZE, (None, None)
    else:
        size, side = _image_size(names, head, places, pools, image_size or timm.get("size"))
        if side is not None:
            average = [("", nn.AdaptiveAvgPool2d(side))]
            maps = "×".join(str(length // 2**pools) for length in size)
            assumptions.append(f"an average pool turns maps of {maps} into {side}×{side}")
        known = _known_statistics(names, places, channels, classes)
        (mean, std), said = _statistics(statistics, timm.get("statistics"), known, fallback, names.layout)
        assumptions.insert(0, said)
    if names is PAPER:
        assumptions.append(f"trained as {trained_as}, as stated: the paper's networks share their names")
    modules = [
        *_modules(tensors, convolutions, names, padded=not latency),
        *average,
        ("", nn.Flatten()),
        *_modules(tensors, dense, names),
    ]
    shape = (channels, size[0], size[1])
    return Layout(names.layout, tuple(modules[:-1]), shape, latency, mean, std, tuple(assumptions))


def _recognised(tensors: Mapping[str, Tensor]) -> tuple[Names, dict[str, int], dict[str, int]]:
    """The project's names, and its convolutions and fully connected layers as `_chain` gives them."""
    for names in (TORCHVISION, TIMM, PAPER):
        convolutions = _numbered(tensors, names.convolution, (4,))
        dense = _numbered(tensors, names.dense, (2, 4) if names is TIMM else (2,))
        if 0 in convolutions and dense:
            return names, _chain(tensors, convolutions, 2), _chain(tensors, dense, names.between_dense)
    shapes = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()]
    raise ConversionError(
        "convert: the weights must be a network of ttfs-triton, or a VGG with a classifier, named as in torchvision, "
        f"timm or the paper; got {', '.join(shapes[:12])}{' and more' if len(shapes) > 12 else ''}. Name the function "
        "that builds their module, --network FILE.py:FUNCTION, or call ttfs_triton.convert.convert_ann(module, images)."
    )


def _numbered(tensors: Mapping[str, Tensor], pattern: str, dimensions: Sequence[int]) -> dict[int, str]:
    """Names of weights with one of these numbers of dimensions, by their layer's number, in order."""
    found = {
        int(match[1] or _LAST): key
        for key in tensors
        if (match := re.fullmatch(pattern, key)) and tensors[key].dim() in dimensions
    }
    return dict(sorted(found.items()))


def _chain(tensors: Mapping[str, Tensor], numbered: Mapping[int, str], most: int) -> dict[str, int]:
    """Number of modules without weights (activation, pool, dropout) behind each layer, by the prefix of its names.

    At most `most` of them stand between two layers, and `most` behind the last: all VGGs end in a pool.
    """
    found, numbers = {}, list(numbered)
    for index, (number, key) in enumerate(numbered.items()):
        between = most
        if index + 1 < len(numbers):
            norm = f"{_norm_of(key.removesuffix('.weight'))}.running_mean" in tensors
            between = numbers[index + 1] - number - (2 if norm else 1)
        if not min(1, most) <= between <= most:
            raise ConversionError(
                f"convert: behind {key} there must be an activation, and perhaps a pool or dropout; got {between} "
                f"places before {numbered[numbers[index + 1]]}. A layer is missing, or this is not a VGG network."
            )
        found[key.removesuffix(".weight")] = between
    without = [name for name in found if f"{name}.bias" not in tensors]
    if 0 < len(without) < len(found):  # no known project mixes them
        raise ConversionError(
            f"convert: all layers of a kind must have a bias, or none; got none for {', '.join(without)}."
        )
    return found


def _norm_of(name: str) -> str:
    """Prefix of the names of the batch norm behind a layer."""
    place = re.match(r"(\w+)\.(\d+)", name)
    return f"{place[1]}.{int(place[2]) + 1}" if place else "none"


def _modules(
    tensors: Mapping[str, Tensor], chain: Mapping[str, int], names: Names, padded: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Layers of a chain, each with its batch norm, activation and pool."""
    inputs = 0  # for the first layer: as many as its weight has
    for name, behind in chain.items():
        weight, bias = tensors[f"{name}.weight"], f"{name}.bias" in tensors
        maps = weight.dim() == 4 and "fc" not in name
        with torch.device("meta"):
            if maps:
                yield name, _convolution(name, weight, inputs or weight.shape[1], bias, padded)
            else:
                yield name, nn.Linear(inputs or weight[0].numel(), len(weight), bias)
            inputs = len(weight)
            norm = _norm_of(name)
            if f"{norm}.running_mean" in tensors:
                affine = bool({f"{norm}.weight", f"{norm}.bias"} & tensors.keys())
                kind = nn.BatchNorm2d if maps else nn.BatchNorm1d
                yield norm, kind(len(weight), affine=affine)
        yield "", nn.Hardtanh(0.0, 1.0) if names is PAPER else nn.ReLU()
        if maps and behind == 2:
            yield "", nn.MaxPool2d(2)


def _convolution(name: str, weight: Tensor, inputs: int, bias: bool, padded: bool) -> nn.Conv2d:
    channels, _, height, width = weight.shape
    if (height, width) not in ((1, 1), (3, 3)) and (padded or height != width):
        raise ConversionError(
            f"convert: {name}.weight must be 3×3 (padding 1) or 1×1, as in VGG networks; got {height}×{width}, "
            "whose padding is unknown."
        )
    return nn.Conv2d(inputs, channels, height, padding=(height - 1) // 2 if padded else 0, bias=bias)


def _image_size(
    names: Names, head: Tensor, places: float, pools: int, size: tuple[int, int] | None
) -> tuple[tuple[int, int], int | None]:
    """(height, width) of the images, and the side of the average pool that their maps need, None without.

    `head` is the weight of the first fully connected layer, which reads `places` places a channel.
    """
    side = round(places**0.5)
    maps = (side, side) if size is None else (size[0] // 2**pools, size[1] // 2**pools)
    size = size or (side * 2**pools,) * 2
    if min(maps) < 1 <= side:
        raise ConversionError(
            f"convert: image_size must be at least {2**pools} for {pools} pools; got {size}. Use larger images."
        )
    if places == maps[0] * maps[1]:
        return size, None
    if places != side**2:
        raise ConversionError(
            "convert: the first fully connected layer must read square maps of the last convolution's channels, or "
            f"maps that fit image_size; got weights {list(head.shape)}, {places:g} places a channel. Give the images' "
            "height and width (--image-size)."
        )
    if names is PAPER:
        raise ConversionError(
            f"convert: image_size must be {side * 2**pools} for a head that reads maps of {side}×{side}; got {size}, "
            f"which gives {maps[0]}×{maps[1]}."
        )
    if head.dim() == 4 and max(maps) > side:
        raise ConversionError(
            f"convert: image_size must leave maps of at most {side}×{side} for a timm VGG; got {size}, which gives "
            f"{maps[0]}×{maps[1]}: its head would be applied at several places and averaged."
        )
    return size, side


def _known_statistics(names: Names, places: float, channels: int, classes: int) -> Statistics | None:
    """Mean and std of ImageNet, for a head that reads 7×7 maps, or of the paper's code; None if not known."""
    if channels != 3:
        return None
    if names is PAPER:
        return CIFAR100_PAPER if classes == 100 else CIFAR10_PAPER
    return IMAGENET if places == IMAGENET_MAPS**2 else None


def _statistics(
    given: Statistics, timm: Statistics | None, known: Statistics | None, fallback: Statistics | None, layout: str
) -> tuple[Statistics, str]:
    """Mean and std of the source's training images, and their origin in words: the first candidate that has them."""
    candidates = (
        (given if None not in given else None, "mean and std as given"),
        (timm, "mean and std of the config.json beside the weights"),
        (known, f"mean and std as {layout} has them: {known and known[0]}"),
        (fallback, "mean and std of the images to train on"),
    )
    for values, said in candidates:
        if values is not None:
            return (given[0] or values[0], given[1] or values[1]), said
    raise ConversionError(
        "convert: mean and std must be given for these weights, whose names and shapes do not tell their training "
        "images; got none. Give both (--mean, --std), pixels in [0, 1]."
    )


def _check_trained_as(names: Names, trained_as: TrainedAs | None) -> None:
    if names is PAPER and trained_as is None:
        raise ConversionError(
            "convert: trained_as must be one of ann, direct, proxy for the paper's networks, whose names are the same; "
            "got None. Give it (--trained-as): calibration would ruin a network that was trained to spike."
        )
    if names is not PAPER and trained_as not in (None, "ann"):
        raise ConversionError(f"convert: trained_as must be ann for a {names.layout}; got {trained_as}. Leave it out.")


def _timm_values(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """ "statistics" (mean, std) and "size" (height, width) of a timm configuration, in its present or former form."""
    values = {} if config is None else config.get("pretrained_cfg", config)
    if not isinstance(values, Mapping):
        return {}
    mean, std, size = (values.get(name) for name in ("mean", "std", "input_size"))
    found: dict[str, Any] = {}
    try:
        if isinstance(mean, list) and isinstance(std, list):
            found["statistics"] = tuple(map(float, mean)), tuple(map(float, std))
        if isinstance(size, list) and len(size) == 3:
            found["size"] = int(size[1]), int(size[2])
    except (TypeError, ValueError) as error:
        raise ConversionError(f"convert: the config.json beside the weights must hold numbers; {error}.") from error
    return found
