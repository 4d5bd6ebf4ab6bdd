"""The networks of Wei et al., ICCV 2023, recognised by the names in their files: `conv.N.cnn`, `fc.N.linear`.

Their networks for MNIST read pixels as spike times, without padding. An ANN and the spiking networks "direct" and
"proxy" have the same names: the caller must say which one a file holds.
"""

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ttfs_kernels import Neuron
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import NetworkConfig

TrainedAs = Literal["ann", "direct", "proxy"]
"""Which of the paper's networks a file holds. "ann": its ANN. "direct", models/snn_directTrain_model.py: an analog
first layer, logits read at the output window's end. "proxy", models/proxy_ann_model.py: a spiking first layer, logits
read at the output window's start."""
_CONVOLUTION, _DENSE = r"conv\.(\d+)\.cnn\.weight", r"fc\.(\d+)\.linear\.weight"
MNIST_SIDE = 28
# The paper's code normalises CIFAR-10 and CIFAR-100 by these.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))


def is_paper(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all names are those of the paper's files."""
    return all(re.fullmatch(f"{_CONVOLUTION}|{_DENSE}", name) for name in tensors)


def paper_config(tensors: Mapping[str, Tensor], trained_as: TrainedAs | None) -> NetworkConfig:
    """Configuration of one of the paper's networks, from the names and shapes of its tensors.

    Raises:
        ConversionError: `trained_as` is None, or the names leave gaps that no pool explains.
    """
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
