"""Synapses of a layer: the fan-out of its inputs, exact at borders and in groups, and the neurons that inputs reach."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from ttfs_triton.nn.on_chip import earliest_input
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer, WeightedLinear


class FanOut(NamedTuple):
    """Fan-out of a layer's inputs: an input of any channel at a place reaches places[place] · channels neurons.

    Attributes:
        places: [height · width] int64, neurons of one output channel that an input reaches; [1] of a linear layer.
        channels: output channels that an input channel reaches (those of its group), or output features.
        inputs: input channels, or input features.
    """

    places: Tensor
    channels: int
    inputs: int

    @property
    def synapses(self) -> int:
        """Connections of the layer, without those into padding."""
        return int(self.places.sum()) * self.channels * self.inputs


def fan_out(layer: WeightedLayer, input_size: tuple[int, ...]) -> FanOut:
    """Fan-out of a layer's inputs.

    Args:
        layer: convolution or fully connected layer.
        input_size: (height, width) of the maps it reads, or () for a fully connected layer.
    """
    if isinstance(layer, WeightedConv2d):
        outputs = layer.output_shape((layer.in_channels, *input_size))[1:]
        taps, reached = (torch.ones(1, 1, *size, dtype=torch.float64) for size in (layer.kernel_size, outputs))
        geometry = layer.geometry | {"groups": 1}
        places = conv2d_input((1, 1, *input_size), taps, reached, **geometry)
        return FanOut(places.flatten().long(), layer.out_channels // layer.groups, layer.in_channels)
    assert isinstance(layer, WeightedLinear)
    return FanOut(torch.ones(1, dtype=torch.int64), layer.out_features, layer.in_features)


@torch.no_grad()
def neurons_reached(layer: WeightedLayer, inputs: Tensor, skip: Tensor | None = None) -> Tensor | None:
    """Mask [N, 1, ...] of the places of a convolution that an input spike reaches; None for other layers: all are.

    Args:
        layer, inputs, skip: as of `waiting`; groups are not told apart.
    """
    if not isinstance(layer, WeightedConv2d):
        return None
    return (earliest_input(layer, inputs, skip).amax(1, keepdim=True) > 0).to(inputs.dtype)


def waiting(layer: WeightedLayer, inputs: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Time that neurons wait for their first input spike, summed over a batch; scalars on the device.

    Args:
        layer: a convolution or fully connected layer that reads spikes.
        inputs: activations [N, channels, height, width] or [N, features], or steps to the window's end.
        skip: delayed spikes, one a neuron, or None.
    Returns:
        Neurons that no spike reaches and no initial potential moves, int64. Potential and threshold are both 0 at their
        window's end: they are silent here, and fire by Eq. 7 to the letter;
        the time from neurons' first spikes to the window's end, in the unit of `inputs`, float64;
        the time that neurons without any spike wait in the window of firing, in windows, float64.
    """
    earliest = earliest_input(layer, inputs, skip).transpose(0, 1).flatten(1)  # of each group, or channel
    bias = layer.with_batch_norm(layer.weight)[1]
    bias = torch.zeros(len(layer.weight), device=inputs.device) if bias is None else bias.detach().double()
    until = torch.ones_like(bias)
    if layer.kind == "spiking":  # where the initial potential alone meets the ramp; sums are exact in any order
        until = 1 - (bias.clamp(0, 1) * 2**20).round() / 2**20
    unreached, channels = (earliest <= 0).sum(1, dtype=torch.float64), len(bias) // len(earliest)
    still, late = ((unreached * each.view(len(earliest), -1).sum(1)).sum() for each in ((bias == 0).double(), until))
    return still.long(), earliest.sum(dtype=torch.float64) * channels, late.double()
