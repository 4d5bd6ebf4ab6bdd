"""What `train_step.py` compares: one network as an ANN, as ours, and as the composition a user would write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_kernels.reference import compose_conv2d, compose_linear
from ttfs_triton.nn import AnalogEncoder, ANNConv2d, ANNLinear, DFTConv2d, DFTLinear, Neuron, TTFSNetwork, models

ANN = "ANN"
COMPOSITION = "composition σ=1"
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Contender(Generic[Network]):
    """A network to train.

    Attributes:
        name: in tables.
        network: on the CPU.
        floor: its contractions over an ANN's three.
        twin: another network that must compute the same, with weights of its own; None without a check.
        statistics: count spikes in every step.
        fused: let PyTorch's compiler fuse the passes over neurons.
    """

    name: str
    network: Network
    floor: float
    twin: Network | None = None
    statistics: bool = False
    fused: bool = False


class Composed(nn.Module):
    """A layer of ours with PyTorch's operators: an analog one as anyone has it, a spiking one by `reference`."""

    def __init__(self, layer: ANNConv2d | ANNLinear | DFTConv2d | DFTLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, ANNLinear):
            return F.hardtanh(F.linear(x, layer.effective_weight(), layer.bias), 0.0, 1.0)
        if isinstance(layer, ANNConv2d):
            geometry = layer.stride, layer.padding, layer.dilation, layer.groups
            return F.hardtanh(F.conv2d(x, layer.effective_weight(), layer.bias, *geometry), 0.0, 1.0)
        if isinstance(layer, DFTLinear):
            return compose_linear(x, layer.effective_weight(), layer.bias, psp_persistence=layer.neuron.psp_persistence)
        return compose_conv2d(
            x,
            layer.effective_weight(),
            layer.bias,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            psp_persistence=layer.neuron.psp_persistence,
        )


def compose(network: TTFSNetwork) -> TTFSNetwork:
    """Replace the operators of all hidden layers but the encoder; parameters stay the same ones, in the same order."""
    for name, layer in network.features.named_children():
        ours = isinstance(layer, ANNConv2d | ANNLinear | DFTConv2d | DFTLinear)
        if ours and not isinstance(layer, AnalogEncoder):
            setattr(network.features, name, Composed(layer))
    return network


def build(
    model: str,
    image_size: int | None,
    *,
    statistics: bool,
    fuse: bool = False,
    backends: Sequence[str] = ("auto",),
    **options,
) -> list[Contender[TTFSNetwork]]:
    """All contenders, the ANN first, with the same weights.

    Args:
        model: a function of `ttfs_triton.nn.models`.
        image_size: side of the images. None: the model's own.
        statistics: add ours with spikes counted in every step.
        fuse: add ours with passes over neurons fused by PyTorch's compiler.
        backends: kernels of ours; a name other than "auto" is added to the contender's.
        **options: fields of `NetworkConfig`.
    """
    make = getattr(models, model)
    if image_size is not None:
        options["image_size"] = image_size
    ann = compose(make(analog=True, **options))
    contenders = [Contender(ANN, ann, 1.0)]
    for backend in backends:
        suffix = "" if backend == "auto" else f" {backend}"
        for psp_persistence, floor in ((0.0, 1.0), (0.25, 5 / 3), (1.0, 5 / 3)):
            neuron = Neuron(psp_persistence)
            ours = make(neuron=neuron, backend=backend, **options)
            twin = compose(make(neuron=neuron, **options)) if neuron.has_slope else ann
            contenders.append(Contender(f"DFT σ={psp_persistence:g}{suffix}", ours, floor, twin))
            if fuse:
                name = f"{contenders[-1].name} fused"
                contenders.append(
                    Contender(name, make(neuron=neuron, backend=backend, **options), floor, twin, fused=True)
                )
    contenders.append(Contender(COMPOSITION, compose(make(**options)), 5 / 3))
    if statistics:
        contenders.append(Contender("DFT σ=1 counting", make(**options), 5 / 3, statistics=True))
    for contender in contenders:
        for network in (contender.network, contender.twin):
            copy_weights(ann, network)
    return contenders


def copy_weights(source: TTFSNetwork, target: TTFSNetwork | None) -> None:
    """Parameters by position: those of a composed network have other names."""
    if target is not None:
        for theirs, ours in zip(source.parameters(), target.parameters(), strict=True):
            ours.data.copy_(theirs.data)
