"""Weights of an ANN in a file, given to the layers of a specification by order and shapes; and the paper's networks.

Projects name layers as they like, but number them in the order of computation. The order of a file says less:
safetensors are sorted by name. So convolutions come first, then fully connected layers, each by the numbers in its
name; batch norms are counted in the same way, and the first belongs to the first layer. The networks of Wei et al.,
ICCV 2023, say by their names, `conv.N.cnn` and `fc.N.linear`, what their specification is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

from ttfs_kernels import Neuron
from ttfs_triton.convert.layer import fold_norm
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.nn.weighted import WeightedLayer

TrainedAs = Literal["ann", "direct", "proxy"]
"""Which of the paper's networks a file holds. "ann": its ANN. "direct", models/snn_directTrain_model.py: an analog
first layer, logits read at the output window's end. "proxy", models/proxy_ann_model.py: a spiking first layer, logits
read at the output window's start."""
_CONVOLUTION, _DENSE = r"conv\.(\d+)\.cnn\.weight", r"fc\.(\d+)\.linear\.weight"
MNIST_SIDE = 28  # of images whose pixels are spike times; convolutions are not padded
# The paper's code normalises CIFAR-10 and CIFAR-100 by these.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))


@dataclass(frozen=True)
class LayerEntry:
    """Source of one layer of the converted network.

    Attributes:
        name: name of the layer: "conv1", ..., "fc1", ..., "readout".
        sources: names of the source's tensors; empty for a layer with new random weights.
        folded: operations folded into its weights and initial potentials, in words.
    """

    name: str
    sources: tuple[str, ...]
    folded: tuple[str, ...] = ()


def state_of(config: NetworkConfig, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[LayerEntry]]:
    """State of a `TTFSNetwork` with weights from a file, batch norms (epsilon 1e-5) folded, and each layer's source."""
    with torch.device("meta"):
        modules = list(TTFSNetwork(config).named_modules())
    layers = [(path, layer) for path, layer in modules if isinstance(layer, WeightedLayer)]
    if config.encoder == "whitened" or any(layer.skip for _, layer in layers):
        raise ConversionError(
            f"convert: the network of an ANN's file must be a chain of layers; got {config.specification}, encoder "
            f"{config.encoder}. Convert it first: ttfs convert FILE --network FILE.py:FUNCTION."
        )
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=_numbers)
    weights = [name for name in names if tensors.get(f"{name}.weight", torch.empty(0)).dim() > 1]
    weights.sort(key=lambda name: -tensors[f"{name}.weight"].dim())  # stable: convolutions first
    norms = [name for name in names if f"{name}.running_mean" in tensors]
    convolutions = sum(layer.weight.dim() == 4 for _, layer in layers)
    if len(weights) != len(layers) or len(norms) not in (0, convolutions, len(layers) - 1):
        raise ConversionError(
            f"convert: weights must be those of {len(layers)} layers, as {config.specification} with its readout "
            f"has, and batch norms of none, of its convolutions or of all hidden layers; got {len(weights)} and "
            f"{len(norms)}: {', '.join(weights[:24]) or 'none'}. Give the network of the weights (--model), or convert "
            "them first: ttfs convert FILE --network FILE.py:FUNCTION."
        )
    left = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    state, entries = dict[str, Tensor](), list[LayerEntry]()
    for (path, layer), name, norm in zip_longest(layers, weights, norms):
        shape = layer.weight.shape
        sources = tuple(key for key in (f"{name}.weight", f"{name}.bias") if key in left)
        weight = _take(left, f"{name}.weight", shape)
        bias = _take(left, f"{name}.bias", shape[:1]) if f"{name}.bias" in left else None
        if norm is not None:
            affine = ("weight", "bias") if {f"{norm}.weight", f"{norm}.bias"} & left.keys() else ()
            keys = ("running_mean", "running_var", *affine)
            found = {key: _take(left, f"{norm}.{key}", shape[:1]) for key in keys}
            (weight, bias), sources = fold_norm(norm, weight, bias, found), (*sources, f"{norm}.*")
        state |= {f"{path}.weight": weight} | ({} if bias is None else {f"{path}.bias": bias})
        entries.append(LayerEntry(path.removeprefix("features."), sources, () if norm is None else ("batch norm",)))
    if left:
        raise ConversionError(f"convert: every tensor must belong to a layer; left are {', '.join([*left][:12])}.")
    return state, entries


def _take(left: dict[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """Remove a tensor of this shape; a convolution whose kernel covers its whole input gives a linear layer."""
    tensor = left.pop(name, None)
    flat = tensor.flatten(1) if tensor is not None and len(shape) == 2 else tensor
    if flat is None or flat.shape != shape:
        got = "none" if tensor is None else list(tensor.shape)
        raise ConversionError(
            f"convert: {name} must have the shape {list(shape)}; got {got}. Give the network of the weights (--model, "
            "--width)."
        )
    return flat.float()


def _numbers(name: str) -> list[tuple[bool, int, str]]:
    """Key that sorts names by the numbers in them: "features.2" before "features.10"."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


# ---- networks of the paper


def is_paper(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all names are those of the paper's files."""
    return all(re.fullmatch(f"{_CONVOLUTION}|{_DENSE}", name) for name in tensors)


def paper_config(tensors: Mapping[str, Tensor], trained_as: TrainedAs | None) -> NetworkConfig:
    """Configuration of one of the paper's networks, from the names and shapes of its tensors."""
    if trained_as is None:
        raise ConversionError(
            "convert: trained_as must be one of ann, direct, proxy for the paper's networks, whose names are the same; "
            "got None. Give it (--trained-as): calibration would ruin a network that was trained to spike."
        )
    numbered = {int(match[1]): tensors[key] for key in tensors if (match := re.fullmatch(_CONVOLUTION, key))}
    dense = {int(match[1]): tensors[key] for key in tensors if (match := re.fullmatch(_DENSE, key))}
    if 0 not in numbered or 0 not in dense:
        raise ConversionError(f"convert: the paper's networks must have conv.0.cnn and fc.0.linear; got {[*tensors]}.")
    channels, places = numbered[0].shape[1], sorted(numbered)
    tokens = list[str]()
    for place, behind in zip(places, [*places[1:], places[-1] + 3], strict=True):
        size, kernel = len(numbered[place]), numbered[place].shape[-1]
        if behind - place not in (2, 3):  # activation, or activation and pool; the last is followed by a pool
            raise ConversionError(
                f"convert: behind conv.{place}.cnn there must be an activation, and perhaps a pool; got "
                f"{behind - place - 1} places. A layer is missing."
            )
        tokens += [f"{size}C{kernel}" + ("p0" if channels == 1 else ""), *(["P2"] if behind - place == 3 else [])]
    side = round((dense[0].shape[1] / len(numbered[places[-1]])) ** 0.5) * 2 ** tokens.count("P2")
    side = MNIST_SIDE if channels == 1 else side
    hidden = [str(len(dense[place])) for place in sorted(dense)]
    classes = int(hidden.pop())
    statistics = (None, None) if channels != 3 else CIFAR100 if classes == 100 else CIFAR10
    encoder = "latency" if channels == 1 else "signed" if trained_as == "proxy" else "analog"
    return NetworkConfig(
        "-".join([*tokens, *hidden]),
        in_channels=channels,
        image_size=(side, side),
        classes=classes,
        encoder=encoder,
        mean=statistics[0],
        std=statistics[1],
        readout="potential_end" if trained_as == "direct" else "potential_start",
        neuron=Neuron(derivative_clip=1e5) if trained_as == "direct" else Neuron(),
        weight_standardisation=False,
    )
