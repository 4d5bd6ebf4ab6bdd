"""The same layers as an artificial network: ReLU clamped to [0, 1], optional batch normalisation.

They take the arguments of `DFTConv2d` and `DFTLinear`, so that a network can be compared with, or started from, its
analog twin. With psp_persistence = 0 a spiking layer computes exactly what these compute without batch norm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.nn.weighted import Size, WeightedConv2d, WeightedLinear


def clamped_relu(potential: Tensor) -> Tensor:
    """`clamp(potential, 0, 1)`, without gradient at the borders themselves: there the neuron is silent or saturated."""
    return F.hardtanh(potential, 0.0, 1.0)


def _with_gain(norm: nn.BatchNorm1d | nn.BatchNorm2d | None, initial_gain: float) -> nn.Module | None:
    """Start at standard deviation `initial_gain`: at 1, most maps are saturated behind two or three max pools."""
    if norm is not None:
        nn.init.constant_(norm.weight, initial_gain)
    return norm


class ANNConv2d(WeightedConv2d):
    """Convolution, optional batch norm, clamped ReLU.

    Input [N, in_channels, height, width], output [N, out_channels, ...] in [0, 1], channels last.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in `torch.nn.Conv2d`.
        bias: learn a bias per channel, from 0; with batch norm, which has its own, there is no second one.
        weight_standardisation: as in `DFTConv2d`.
        initial_gain: as in `DFTConv2d`; with batch norm, its initial weight.
        batch_norm: normalise over the batch before the clamp.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        bias: bool = True,
        weight_standardisation: bool = True,
        initial_gain: float = 0.5,
        batch_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias=bias and not batch_norm,
            weight_standardisation=weight_standardisation,
            initial_gain=initial_gain,
            device=device,
            dtype=dtype,
        )
        norm = nn.BatchNorm2d(out_channels, device=device, dtype=dtype) if batch_norm else None
        self.batch_norm = _with_gain(norm, initial_gain)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        weight = self.effective_weight() if weight is None else weight
        potential = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.batch_norm is not None:
            potential = self.batch_norm(potential)
        # A copy only behind one-channel images, whose layout is ambiguous.
        activations = clamped_relu(potential).contiguous(memory_format=torch.channels_last)
        return self.record(activations)


class ANNLinear(WeightedLinear):
    """Fully connected layer, optional batch norm, clamped ReLU.

    Input [N, in_features], output [N, out_features] in [0, 1].

    Args:
        in_features, out_features: as in `torch.nn.Linear`.
        bias, weight_standardisation, initial_gain, batch_norm: as in `ANNConv2d`.
        spike_dropout: as in `DFTLinear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        weight_standardisation: bool = True,
        initial_gain: float = 0.5,
        batch_norm: bool = False,
        spike_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias=bias and not batch_norm,
            weight_standardisation=weight_standardisation,
            initial_gain=initial_gain,
            spike_dropout=spike_dropout,
            device=device,
            dtype=dtype,
        )
        norm = nn.BatchNorm1d(out_features, device=device, dtype=dtype) if batch_norm else None
        self.batch_norm = _with_gain(norm, initial_gain)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        x, weight = self.synapses(x, weight)
        potential = F.linear(x, weight, self.bias)
        if self.batch_norm is not None:
            potential = self.batch_norm(potential)
        return self.record(clamped_relu(potential))
