"""VGG networks of other projects: recognised by names and shapes, or refused with the reason.

| layout | convolutions | fully connected layers | between them |
|---|---|---|---|
| torchvision VGG | `features.N` | `classifier.N`, or `classifier` alone | adaptive average pool |
| timm VGG | `features.N` | `pre_logits.fc1`, `pre_logits.fc2`, `head.fc`, or the last alone | the same |
| Wei et al., ICCV 2023 | `conv.N.cnn` | `fc.N.linear` | flattened |

Other projects use the same names. The size of the head's input says how large the maps are that it was made for; mean
and std of the images are known for ImageNet's 7×7 maps and the paper's networks only, else they must be given.

The paper's networks for MNIST read pixels as spike times, without padding. Its names are the same for three networks:
an ANN, and the spiking networks of its two scripts, "direct" and "proxy". Which one a file holds must be said.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.convert.layouts import AveragePool, Layout, SourceLayer, Statistics, TrainedAs, describe
from ttfs_triton.nn import NetworkConfig, Neuron

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_MAPS = 7  # height and width of the maps that heads trained on ImageNet read
# What the paper's code normalises CIFAR-10 and CIFAR-100 by.
CIFAR10_PAPER: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_PAPER: Statistics = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
MNIST_SIZE = (28, 28)
DIRECT_DERIVATIVE_CLIP = 1e5
# Convolutions between pools of VGG11, 13, 16 and 19.
DEPTHS = ([1, 1, 2, 2, 2], [2, 2, 2, 2, 2], [2, 2, 3, 3, 3], [2, 2, 4, 4, 4])

# What residual networks of torchvision, timm and the CIFAR projects have.
_RESIDUAL = re.compile(r"(?:layers?|stages?)\.?\d+\.\d+\.conv1\.weight")
_LAST = 3  # place of a layer whose name has no number, such as timm's head.fc behind fc1 and fc2


@dataclass(frozen=True)
class Names:
    """How another project names the weights of its layers: patterns with a layer's number as their group.

    Attributes:
        layout: name of the layout.
        convolution, dense: of convolutions and of fully connected layers.
        between_dense: places of an `nn.Sequential` between two of the latter: an activation, perhaps dropout.
    """

    layout: str
    convolution: str
    dense: str
    between_dense: int = 2


TORCHVISION = Names("torchvision VGG", r"features\.(\d+)\.weight", r"classifier(?:\.(\d+))?\.weight")
TIMM = Names("timm VGG", r"features\.(\d+)\.weight", r"(?:pre_logits\.fc(\d)|head\.fc)\.weight", between_dense=0)
PAPER = Names("Wei et al., ICCV 2023", r"conv\.(\d+)\.cnn\.weight", r"fc\.(\d+)\.linear\.weight")


def foreign_layout(
    tensors: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int] | None = None,
    trained_as: TrainedAs | None = None,
    statistics: Statistics = (None, None),
    fallback: Statistics | None = None,
    config: Mapping[str, Any] | None = None,
) -> Layout:
    """The layout of a VGG network of another project.

    Args:
        tensors: plain, by name.
        image_size: (height, width) that the network shall be converted for. None: the size that its head was made for.
        trained_as: see `TrainedAs`; needed for the paper's networks, whose names do not say it.
        statistics: mean and std of the images that it was trained on. None: those of `config`, or those that are known.
        fallback: mean and std that are taken if nothing else says any.
        config: content of the config.json beside the weights, as timm writes it: mean, std and image size.
    Raises:
        ConversionError: the names are of no known network, or do not add up to one, or may be of several.
    """
    names, convolutions, places, dense = _recognised(tensors)
    _check_trained_as(names, trained_as)
    classes, in_channels = len(tensors[dense[-1].weight]), tensors[convolutions[0].weight].shape[1]
    latency = names is PAPER and in_channels == 1
    tokens = _convolution_tokens(tensors, convolutions, places, unpadded=latency)
    pools = tokens.count("P2")
    tokens += [str(len(tensors[layer.weight])) for layer in dense[:-1]]
    timm, assumptions = _timm_values(config), ["a 2×2 pool ends the convolutions"]
    maps = tensors[dense[0].weight][0].numel() / len(tensors[convolutions[-1].weight])  # places of the head's maps
    if latency:  # the paper's for MNIST
        size, pool, (mean, std) = image_size or MNIST_SIZE, None, (None, None)
    else:
        size, pool = _image_size(names, tensors[dense[0].weight], maps, pools, image_size or timm.get("size"))
        known = _known_statistics(names, maps, classes) if in_channels == 3 else None
        (mean, std), said = _statistics(names, statistics, timm.get("statistics"), known, fallback)
        assumptions.insert(0, said)
    if pool is not None:
        assumptions.append(f"an average pool turns maps of {pool.maps[0]}×{pool.maps[1]} into {pool.side}×{pool.side}")
    depths = [stage.count("C") for stage in "-".join(tokens).split("P2")[:-1]]
    if depths not in DEPTHS:
        assumptions.append(f"none of VGG11, 13, 16 and 19: {depths} convolutions between pools")
    layers = (*convolutions, *dense)
    network = NetworkConfig(
        "-".join(tokens),
        in_channels=in_channels,
        image_size=size,
        classes=classes,
        encoder="latency" if latency else "analog",
        mean=mean,
        std=std,
        bias=any(layer.bias for layer in layers),
        weight_standardisation=False,
        batch_norm=any(layer.batch_norm for layer in layers),
    )
    if names is PAPER:
        network = _paper_network(network, trained_as)
        assumptions.append(f"trained as {trained_as}, as said: the names are the same")
    from_ann = trained_as in (None, "ann")
    return Layout(names.layout, layers, network, 1.0 if names is PAPER else None, from_ann, pool, tuple(assumptions))


def _recognised(tensors: Mapping[str, Tensor]) -> tuple[Names, list[SourceLayer], list[int], list[SourceLayer]]:
    """The project, its convolutions, the places behind each (2 with a pool), and its fully connected layers."""
    convolutional = False
    for names in (TORCHVISION, TIMM, PAPER):
        convolutions = _numbered(tensors, names.convolution, (4,))
        dense = _numbered(tensors, names.dense, (2, 4) if names is TIMM else (2,))
        convolutional |= 0 in convolutions
        if 0 in convolutions and dense:
            layers, places = _chain(tensors, convolutions, "conv", 2)
            return names, layers, places, _chain(tensors, dense, "fc", names.between_dense)[0]
    if convolutional:
        rest = [key for key in tensors if not key.startswith(("features.", "conv."))]
        raise ConversionError(
            "convert: the weights must have a classifier (classifier, head.fc or fc.N.linear) of linear layers; got "
            f"{describe(tensors, rest) or 'none'}. A network without one computes no classes."
        )
    if any(_RESIDUAL.match(key) for key in tensors):
        raise ConversionError(
            f"convert: the weights must be of a network of ours, if it has skips; got another project's "
            f"({describe(tensors)}). Its shortcuts mix or move channels, where ours are one synapse a neuron. "
            "Train one: ttfs train resnet20-cifar10, or resnet18-cifar100."
        )
    raise ConversionError(
        "convert: the weights must be of a network of ours, a VGG with the names of torchvision or timm, or the "
        f"paper's; got {describe(tensors)}. Rename the tensors to one of these layouts."
    )


def _numbered(tensors: Mapping[str, Tensor], pattern: str, dimensions: Sequence[int]) -> dict[int, str]:
    """Keys of weights with so many dimensions by their layer's number, in order."""
    found = {
        int(match[1] or _LAST): key
        for key in tensors
        if (match := re.fullmatch(pattern, key)) and tensors[key].dim() in dimensions
    }
    return dict(sorted(found.items()))


def _chain(
    tensors: Mapping[str, Tensor], numbered: Mapping[int, str], kind: str, most: int
) -> tuple[list[SourceLayer], list[int]]:
    """Layers in order, and how many places without weights stand behind each: an activation, a pool or dropout.

    Args:
        tensors: of the source.
        numbered: keys of the weights by place.
        kind: "conv" or "fc", of which the last is the readout.
        most: places that may stand between two layers, and stand behind the last: all VGGs end in a pool.
    """
    layers, places, numbers = [], [], list(numbered)
    for index, (number, key) in enumerate(numbered.items()):
        norm = f"{key.partition('.')[0]}.{number + 1}"
        norm = norm if f"{norm}.running_mean" in tensors else None
        between = most
        if index + 1 < len(numbers):
            between = numbers[index + 1] - number - (1 if norm is None else 2)
        if not min(1, most) <= between <= most:
            raise ConversionError(
                f"convert: behind {key} there must be an activation, and perhaps a pool or dropout; got {between} "
                f"places before {numbered[numbers[index + 1]]}. A layer is missing, or this is not a VGG network."
            )
        name = "readout" if kind == "fc" and index + 1 == len(numbers) else f"{kind}{index + 1}"
        bias = f"{key.removesuffix('weight')}bias"
        layers.append(SourceLayer(name, key, bias if bias in tensors else None, norm))
        places.append(between)
    without = [layer.weight for layer in layers if layer.bias is None]
    if 0 < len(without) < len(layers):  # no project has such
        raise ConversionError(
            f"convert: all layers of a kind must have a bias, or none; got none for {', '.join(without)}."
        )
    return layers, places


def _convolution_tokens(
    tensors: Mapping[str, Tensor], layers: Sequence[SourceLayer], places: Sequence[int], unpadded: bool
) -> list[str]:
    """The convolutions and pools of a specification."""
    tokens = []
    for layer, behind in zip(layers, places, strict=True):
        channels, _, height, width = tensors[layer.weight].shape
        if (height, width) not in ((1, 1), (3, 3)) and not (unpadded and height == width):
            raise ConversionError(
                f"convert: {layer.weight} must be 3×3 (padding 1) or 1×1, as in VGG networks; got {height}×{width}, of "
                "which the padding is unknown."
            )
        tokens += [f"{channels}C{height}{'p0' if unpadded else ''}", "P2"][:behind]
    return tokens


def _image_size(
    names: Names, head: Tensor, places: float, pools: int, size: tuple[int, int] | None
) -> tuple[tuple[int, int], AveragePool | None]:
    """(height, width) of the images, and the average pool that their maps need to become what the head reads.

    Args:
        names: of the project.
        head: weight of the first fully connected layer.
        places: of the maps that it reads.
        pools: 2×2 pools between images and maps.
        size: (height, width) of the images. None: what the head was made for.
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
            f"those of image_size; got weights {list(head.shape)}, {places:g} places a channel. Give the images' "
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
    return size, AveragePool(side, maps)


def _known_statistics(names: Names, maps: float, classes: int) -> Statistics | None:
    """Mean and std of a project's colour images; None if names and shapes do not say it."""
    if names is PAPER:
        return CIFAR100_PAPER if classes == 100 else CIFAR10_PAPER
    return IMAGENET if maps == IMAGENET_MAPS**2 else None


def _statistics(
    names: Names, given: Statistics, timm: Statistics | None, known: Statistics | None, fallback: Statistics | None
) -> tuple[Statistics, str]:
    """Mean and std of the images that the source was trained on, and who says so."""
    found = next((each for each in (timm, known, fallback) if each is not None), given)
    if None in given and found is given:
        raise ConversionError(
            "convert: mean and std must be those of the images that the weights were trained on, which neither names "
            "nor shapes say; got none. Give both (--mean, --std), pixels in [0, 1]."
        )
    said = "mean and std as given"
    if None in given:
        said = f"mean and std as {names.layout} has them: {found[0]}, {found[1]}"
        said = "mean and std of the images to train on" if found is fallback else said
        said = "mean and std of the config.json beside the weights" if found is timm else said
    return (given[0] or found[0], given[1] or found[1]), said


def _check_trained_as(names: Names, trained_as: TrainedAs | None) -> None:
    if names is PAPER and trained_as is None:
        raise ConversionError(
            "convert: trained_as must be one of ann, direct, proxy for the paper's networks, whose names are the same; "
            "got None. Give it (--trained-as): calibrating what was trained to spike would ruin it."
        )
    if names is not PAPER and trained_as not in (None, "ann"):
        raise ConversionError(f"convert: trained_as must be ann for a {names.layout}; got {trained_as}. Leave it out.")


def _paper_network(network: NetworkConfig, trained_as: TrainedAs | None) -> NetworkConfig:
    """The network as the paper's script of that name has it; of one channel, pixels are spike times in all of them."""
    if trained_as == "direct":
        neuron = Neuron(derivative_clip=DIRECT_DERIVATIVE_CLIP)
        return network.replace(readout="potential_end", neuron=neuron)
    if trained_as == "proxy":
        encoder = "latency" if network.in_channels == 1 else "signed"
        return network.replace(readout="potential_start", neuron=Neuron(), encoder=encoder)
    return network


def _timm_values(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """ "statistics" (mean, std) and "size" (height, width) of a timm configuration, in its present or former form."""
    values = {} if config is None else config.get("pretrained_cfg", config)
    if not isinstance(values, Mapping):
        return {}
    mean, std, size = (values.get(name) for name in ("mean", "std", "input_size"))
    found: dict[str, Any] = {}
    if isinstance(mean, list) and isinstance(std, list):
        found["statistics"] = tuple(map(float, mean)), tuple(map(float, std))
    if isinstance(size, list) and len(size) == 3:
        found["size"] = int(size[1]), int(size[2])
    return found
