"""Converts a file of weights to a spiking network: weights of this package, of the paper's code, or of a given ANN.

An ANN's tensors are given to the layers of a specification by order and shapes. Projects name layers as they like, but
number them in the order of computation. The order of a file says less: safetensors are sorted by name. So convolutions
come first, then fully connected layers, both sorted by the numbers in their names; batch norms are sorted in the same
way, and the first belongs to the first layer. In files of Wei et al., ICCV 2023, the names, `conv.N.cnn` and
`fc.N.linear`, tell the specification.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ttfs_kernels import Neuron
from ttfs_triton.convert.calibration import Calibration, calibrate_network, fit_range
from ttfs_triton.convert.layer import fold_norm
from ttfs_triton.convert.source import ConversionError, Weights, load_state, open_weights
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.nn.weighted import WeightedLayer

TrainedAs = Literal["ann", "direct", "proxy"]
"""Which of the paper's networks a file holds. "ann": its ANN. "direct", models/snn_directTrain_model.py: an analog
first layer, logits read at the output window's end. "proxy", models/proxy_ann_model.py: a spiking first layer, logits
read at the output window's start."""
_OURS = re.compile(r"(?:features\.(?:conv|fc)\d+|readout)\..+")
_CONVOLUTION, _DENSE = r"conv\.(\d+)\.cnn\.weight", r"fc\.(\d+)\.linear\.weight"
MNIST_SIDE = 28  # of images whose pixels are spike times; convolutions are not padded
# The paper's code normalises CIFAR-10 and CIFAR-100 by these.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))


@dataclass(frozen=True)
class Converted:
    """A spiking network with the weights of a file.

    Attributes:
        network: the network, in evaluation mode; not calibrated.
        bounded: whether the source clamps its hidden activations to [0, 1].
        from_ann: whether the source is an ANN of another project, which is to be calibrated. Networks of this package,
            which train on while σ rises, and networks that were trained to spike are left as they are.
    """

    network: TTFSNetwork
    bounded: bool
    from_ann: bool

    @property
    def needs_calibration(self) -> bool:
        """Whether the network differs from its ANN: its slopes persist, or the ANN's activations exceed 1."""
        return self.from_ann and (not self.bounded or self.network.config.neuron.has_slope)


def convert(
    source: str | Path | Weights,
    *,
    config: NetworkConfig | None = None,
    trained_as: TrainedAs | None = None,
    keep_standardisation: bool = True,
    **changes: Any,
) -> Converted:
    """A spiking network with the weights of a file, batch norm folded; `calibrate_converted` calibrates it.

    At σ = 0 the network computes the same as its source, if the source clamps its activations to [0, 1]. No weight is
    drawn at random, and tensors that fit no layer are an error. Use `convert_ann` for an ANN that is no chain of
    layers, or whose file does not tell its layers.

    Args:
        source: a source that `open_weights` reads, or its result: weights of this package, of the paper's networks, or
            of an ANN with the layers of `config`.
        config: the network that an ANN becomes, by order and shapes; or the configuration of weights of this package
            without a config.json beside them. A timm config.json beside an ANN's weights replaces its mean and std.
        trained_as: see `TrainedAs`; needed for the paper's networks. Networks that were trained to spike are not
            calibrated, and keep their encoder, neuron and readout.
        keep_standardisation: keep standardised weights and their gains for further training; plain weights stay plain.
        **changes: fields of `NetworkConfig` that the weights leave open, such as neuron, readout, mean, std and bias.
    Raises:
        WeightsError: the source cannot be read.
        ConversionError: names or shapes do not fit together, or `config` or `trained_as` is missing or needless.
        ValueError: a value out of range, see `NetworkConfig`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import nn
        >>> from ttfs_triton.nn import Neuron
        >>> ann = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 4, 10)
        ... )
        >>> config = NetworkConfig("4C3-P2", in_channels=3, image_size=(8, 8), encoder="analog")
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(ann.state_dict(), f"{folder}/ann.pth")
        ...     converted = convert(f"{folder}/ann.pth", config=config, neuron=Neuron(psp_persistence=0.25))
        >>> converted.needs_calibration
        True
        >>> converted.network(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    weights = source if isinstance(source, Weights) else open_weights(source)
    paper = all(re.fullmatch(f"{_CONVOLUTION}|{_DENSE}", name) for name in weights.tensors)
    ours = any(_OURS.fullmatch(name) for name in weights.tensors)
    if trained_as is not None and not paper:
        raise ConversionError(f"convert: trained_as must be left out for weights not of the paper; got {trained_as}.")
    if ours:
        plain = _folded(weights, config, keep_standardisation)
        config, state = plain.config, plain.state_dict()
    else:
        if paper and (config is None or trained_as is not None):
            config = paper_config(weights.tensors, trained_as)
        elif config is None:
            names = ", ".join([*weights.tensors][:6])
            raise ConversionError(
                f"convert: weights must be of a network of ttfs-triton or of the paper; got {names}, ... Name the "
                "function that builds their module: --network FILE.py:FUNCTION or torchvision.models:vgg16_bn."
            )
        else:
            mean, std = weights.statistics() or (config.mean, config.std)
            config = config.replace(mean=mean, std=std)
        config = config.replace(batch_norm=False, weight_standardisation=False, grid=None)
        state = state_of(config, weights.tensors)
    config = config.replace(**{"bias": any(key.endswith(".bias") for key in state), **changes})
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        network = TTFSNetwork(config).eval()
    zeros = {name: value for name, value in network.state_dict().items() if name.endswith(".bias")}
    load_state(network, zeros | state, f"the weights must be those of {config.specification}")
    return Converted(network, bounded=ours or paper, from_ann=not ours and trained_as in (None, "ann"))


def calibrate_converted(converted: Converted, images: Tensor) -> tuple[Converted, Calibration]:
    """Fit a converted network to its source: scale activations into [0, 1], then choose initial potentials.

    Args:
        converted: result of `convert`, on the CPU; its network is changed in place.
        images: [N, in_channels, height, width], as the network reads them, on the device to compute on; 256 are enough.
    Returns:
        The converted network, on the CPU again, and the result of calibration.
    Raises:
        ConversionError: no images, or a network without initial potentials.
    """
    network = converted.network.to(images.device)
    if not converted.bounded:
        fit_range(network, images)
    calibration = calibrate_network(network, images)
    network.cpu()
    return replace(converted, bounded=True), calibration


def _folded(weights: Weights, config: NetworkConfig | None, keep_standardisation: bool) -> TTFSNetwork:
    """A network of this package without its grid, batch norm folded, and standardised weights too unless kept."""
    if (description := weights.description()) is not None:
        if not isinstance(description.network, NetworkConfig):
            raise ConversionError(
                f"convert: {weights.name} must hold a network of a specification; got one that "
                f"{description.network.builder} builds. Train on from it: --network FILE.py:FUNCTION --weights."
            )
        config = description.network
    if config is None:
        raise ConversionError(f"convert: {weights.name} must have config.json beside it, as training writes; got none.")
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        network = TTFSNetwork(config.replace(grid=None))
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.endswith(".log2_unit")}
    load_state(network, tensors, f"the weights must be those of {config.specification}")
    network.fold_batch_norm()
    if not keep_standardisation:
        network.fold_standardisation()
    return network


def state_of(config: NetworkConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of a `TTFSNetwork` with the weights of an ANN, whose batch norms (epsilon 1e-5) are folded."""
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
    state = dict[str, Tensor]()
    for (path, layer), name, norm in zip_longest(layers, weights, norms):
        shape = layer.weight.shape
        weight = _take(left, f"{name}.weight", shape)
        bias = _take(left, f"{name}.bias", shape[:1]) if f"{name}.bias" in left else None
        if norm is not None:
            affine = ("weight", "bias") if {f"{norm}.weight", f"{norm}.bias"} & left.keys() else ()
            keys = ("running_mean", "running_var", *affine)
            weight, bias = fold_norm(norm, weight, bias, {key: _take(left, f"{norm}.{key}", shape[:1]) for key in keys})
        state |= {f"{path}.weight": weight} | ({} if bias is None else {f"{path}.bias": bias})
    if left:
        raise ConversionError(f"convert: every tensor must belong to a layer; left are {', '.join([*left][:12])}.")
    return state


def _take(left: dict[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """Take a tensor of this shape out of `left`; for a linear layer, it may be a kernel that covers its whole input."""
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
