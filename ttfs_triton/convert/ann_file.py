"""Weights of an ANN in a file, given to the layers of a specification by order and shapes; and the paper's networks.

Projects name layers as they like, but number them in the order of computation. The order of a file says less:
safetensors are sorted by name. So convolutions come first, then fully connected layers, each by the numbers in its
name; batch norms are counted in the same way, and the first belongs to the first layer. The networks of Wei et al.,
ICCV 2023, say by their names, `conv.N.cnn` and `fc.N.linear`, what their specification is.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn.config import Average, Convolution, Dense, NetworkConfig, Pool, Token, parse_specification

TrainedAs = Literal["ann", "direct", "proxy"]
"""Which of the paper's networks a file holds. "ann": its ANN. "direct", models/snn_directTrain_model.py: an analog
first layer, logits read at the output window's end. "proxy", models/proxy_ann_model.py: a spiking first layer, logits
read at the output window's start."""
_CONVOLUTION, _DENSE = r"conv\.(\d+)\.cnn\.weight", r"fc\.(\d+)\.linear\.weight"
MNIST_SIDE = 28  # of images whose pixels are spike times; convolutions are not padded
# The paper's code normalises CIFAR-10 and CIFAR-100 by these.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))

Sources = list[tuple[str, ...]]
"""Names of the tensors of each layer with weights."""


def ann_of(config: NetworkConfig, tensors: Mapping[str, Tensor], *, bounded: bool = False) -> tuple[nn.Module, Sources]:
    """The ANN of a configuration's specification with weights from a file, as a PyTorch module in evaluation mode.

    Its first layer is a convolution of pixels, or reads them as spikes; batch norms have an epsilon of 1e-5. If
    `bounded`, activations are clamped to [0, 1].
    """
    tokens = parse_specification(config.specification)
    blocks = any(isinstance(token, Convolution | Dense) and token.skip for token in tokens)
    if blocks or config.encoder == "whitened":
        raise ConversionError(
            f"convert: the network of an ANN's file must be a chain of layers; got {config.specification}, encoder "
            f"{config.encoder}. Convert it first: ttfs convert FILE --network FILE.py:FUNCTION."
        )
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=_numbers)
    weights = [name for name in names if tensors.get(f"{name}.weight", torch.empty(0)).dim() > 1]
    weights.sort(key=lambda name: -tensors[f"{name}.weight"].dim())  # stable: convolutions first
    norms = [name for name in names if f"{name}.running_mean" in tensors]
    layers = [token for token in tokens if isinstance(token, Convolution | Dense)]
    hidden = [sum(isinstance(token, kind) for token in layers) for kind in (Convolution, Convolution | Dense)]
    if len(weights) != len(layers) + 1 or len(norms) not in (0, *hidden):
        raise ConversionError(
            f"convert: weights must be those of {len(layers) + 1} layers, as {config.specification} with its readout "
            f"has, and batch norms of none, of its convolutions or of all hidden layers; got {len(weights)} and "
            f"{len(norms)}: {', '.join(weights[:24]) or 'none'}. Give the network of the weights (--model), or convert "
            "them first: ttfs convert FILE --network FILE.py:FUNCTION."
        )
    ann, inputs, sources = _ANN(tensors, bounded), config.in_channels, Sources()
    for token in (*tokens, Dense(config.classes)):
        if isinstance(token, Convolution | Dense):
            place = len(sources)
            size = config.classes if place == len(layers) else config.scaled(token.size)
            norm = norms[place] if place < len(norms) else None
            sources.append(ann.add(token, weights[place], size, inputs, norm, last=place == len(layers)))
            inputs = size
        else:
            ann.modules.append(_pool(token))
    if left := sorted(tensors.keys() - ann.used - {name for name in tensors if name.endswith("num_batches_tracked")}):
        raise ConversionError(f"convert: every tensor must belong to a layer; left are {', '.join(left[:12])}.")
    return nn.Sequential(*ann.modules).eval(), sources


class _ANN:
    """Modules in their order, and the tensors that they have taken."""

    def __init__(self, tensors: Mapping[str, Tensor], bounded: bool) -> None:
        self.tensors, self.bounded = tensors, bounded
        self.modules, self.used = list[nn.Module](), set[str]()

    def add(
        self, token: Convolution | Dense, name: str, size: int, inputs: int, norm: str | None, *, last: bool
    ) -> tuple[str, ...]:
        """Add a layer with its batch norm and activation; returns the names of its tensors."""
        weight, bias = self.tensors[f"{name}.weight"], f"{name}.bias" in self.tensors
        with torch.device("meta"):
            if isinstance(token, Convolution):
                layer = nn.Conv2d(inputs, size, token.kernel_size, token.stride, token.padding, bias=bias)
            else:
                if not any(isinstance(module, nn.Flatten) for module in self.modules):
                    self.modules.append(nn.Flatten())
                    inputs = weight[0].numel()  # of maps, whose size the traced network checks
                layer = nn.Linear(inputs, size, bias)
            kind = nn.BatchNorm2d if isinstance(token, Convolution) else nn.BatchNorm1d
            affine = bool({f"{norm}.weight", f"{norm}.bias"} & self.tensors.keys())
            parts = [(name, layer), *([] if norm is None else [(norm, kind(size, affine=affine))])]
        for prefix, part in parts:
            self._load(part, prefix)
        self.modules += [part for _, part in parts]
        if not last:
            self.modules.append(nn.Hardtanh(0.0, 1.0) if self.bounded else nn.ReLU())
        return tuple(f"{name}.{key}" for key in layer.state_dict()) + (() if norm is None else (f"{norm}.*",))

    def _load(self, module: nn.Module, prefix: str) -> None:
        """Give a module the tensors of a prefix."""
        state: dict[str, Tensor] = {}
        for key, wanted in module.state_dict().items():
            tensor = self.tensors.get(f"{prefix}.{key}")
            if key == "num_batches_tracked":
                tensor = torch.zeros(()) if tensor is None else tensor
            elif isinstance(module, nn.Linear) and tensor is not None and key == "weight":
                tensor = tensor.flatten(1)  # a convolution whose kernel covers its whole input
            if tensor is None or tensor.shape != wanted.shape:
                got = "none" if tensor is None else list(tensor.shape)
                raise ConversionError(
                    f"convert: {prefix}.{key} must have the shape {list(wanted.shape)}; got {got}. Give the network of "
                    "the weights (--model, --width)."
                )
            state[key] = tensor.float() if tensor.is_floating_point() else tensor
        module.load_state_dict(state, assign=True)
        self.used.update(f"{prefix}.{key}" for key in state)


def _pool(token: Token) -> nn.Module:
    if isinstance(token, Pool):
        return nn.MaxPool2d(token.kernel_size, token.stride, token.padding)
    assert isinstance(token, Average)
    return nn.AdaptiveAvgPool2d(1) if token.kernel_size is None else nn.AvgPool2d(token.kernel_size)


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
