"""The first layer of a network with an analog encoder: real-valued, with rounded weights."""

import torch.nn.functional as F
from torch import Tensor

from ttfs_triton.hardware.simulation.quantise import QuantisedWeight
from ttfs_triton.nn.coding import AnalogEncoder


class AnalogLayer:
    """Dense multiply-accumulates in front of the first spikes.

    Args:
        layer: the encoder.
        weight: its weights, batch norm folded in.
        bias: [C_out] or None, batch norm folded in.
    """

    def __init__(self, layer: AnalogEncoder, weight: QuantisedWeight, bias: Tensor | None) -> None:
        self._layer, dtype = layer, layer.weight.dtype
        self._weight, self._bias = weight.dequantise().to(dtype), None if bias is None else bias.to(dtype)

    def normalise(self, images: Tensor) -> Tensor:
        """What the synapses read: images [N, C, height, width] in standard deviations from the mean."""
        return (images - self._layer.mean) / self._layer.std

    def activations(self, images: Tensor) -> Tensor:
        """Activations in [0, 1] of normalised images."""
        layer = self._layer
        potential = F.conv2d(
            images, self._weight, self._bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        return potential.clamp(0, 1)
