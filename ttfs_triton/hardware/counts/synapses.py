"""Synapses of a layer: the fan-out of its inputs, exact at borders and in groups, and the neurons that inputs reach."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ttfs_triton.nn.clocked import earliest_input
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer, WeightedLinear


class FanOut(NamedTuple):
    """Fan-out of a layer's inputs, as a product: a convolution's input at (channel, row, column) reaches
    rows[row] · columns[column] · channels neurons; a fully connected layer's reaches `channels`.

    Attributes:
        rows: [height] int64, output rows that an input row takes part in, one count for each tap.
        columns: [width] int64, the same for columns.
        channels: output channels that an input channel reaches (those of its group), or output features.
        inputs: input channels, or input features.
    """

    rows: Tensor
    columns: Tensor
    channels: int
    inputs: int

    @property
    def places(self) -> Tensor:
        """[height · width] int64, neurons of one channel that an input at each place reaches."""
        return torch.outer(self.rows, self.columns).flatten()

    @property
    def synapses(self) -> int:
        """Connections of the layer; those into padding do not exist."""
        return int(self.rows.sum()) * int(self.columns.sum()) * self.channels * self.inputs


def fan_out(layer: WeightedLayer, input_size: tuple[int, ...]) -> FanOut:
    """Fan-out of a layer's inputs.

    Args:
        layer: convolution or fully connected layer.
        input_size: (height, width) of the maps it reads, or () for a fully connected layer.
    Raises:
        TypeError: a layer that is neither.
    """
    if isinstance(layer, WeightedConv2d):
        rows, columns = (_taps(layer, input_size[axis], axis) for axis in (0, 1))
        return FanOut(rows, columns, layer.out_channels // layer.groups, layer.in_channels)
    if isinstance(layer, WeightedLinear):
        one = torch.ones(1, dtype=torch.int64)
        return FanOut(one, one, layer.out_features, layer.in_features)
    raise TypeError(f"fan_out: layer must be a convolution or fully connected; got {type(layer).__name__}.")


def _taps(layer: WeightedConv2d, size: int, axis: int) -> Tensor:
    """How many (output position, tap) pairs read each of `size` input positions."""
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    padding = layer.padding[axis]
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    read = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation - padding
    return torch.bincount(read[(read >= 0) & (read < size)], minlength=size)


@torch.no_grad()
def neurons_reached(layer: WeightedLayer, inputs: Tensor, skip: Tensor | None = None) -> Tensor | None:
    """Which places of a convolution some input spike reaches: ones and zeros, [N, 1, ...]; None, all, for other layers.

    Args:
        layer, inputs, skip: as of `neurons_without_input`; groups are not told apart.
    """
    if not isinstance(layer, WeightedConv2d):
        return None
    return (earliest_input(layer, inputs, skip).amax(1, keepdim=True) > 0).to(inputs.dtype)


def waiting(layer: WeightedLayer, inputs: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """How neurons wait for their first input spike, summed over a batch; scalars on the device.

    Args:
        layer: a convolution or fully connected layer that reads spikes.
        inputs: activations [N, channels, height, width] or [N, features], or what counts steps to the window's end.
        skip: delayed spikes, one a neuron, or None.
    Returns:
        Neurons that no spike reaches and no initial potential moves, int64: their potential is 0 at the window's end,
        where the threshold is 0 too. They are silent here, and fire by Eq. 7 to the letter;
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
