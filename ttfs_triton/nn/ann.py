"""The same layers as an artificial network: ReLU clamped to [0, 1], optional batch normalisation.

They take the arguments of `DFTConv2d` and `DFTLinear`, so that a network can be compared with, or started from, its
analog twin. With σ = 0 a spiking layer computes exactly what these compute without batch norm, and on a CPU its
operators compute it here, too: they choose the faster of two contractions.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import Neuron, dft_conv2d, dft_linear, normalised_conv2d, normalised_linear
from ttfs_triton.nn.sizes import Padding, Size
from ttfs_triton.nn.weighted import HiddenLinearOptions, HiddenOptions, WeightedConv2d, WeightedLinear

TWO_PHASE = Neuron(psp_persistence=0.0)


def clamped_relu(potential: Tensor) -> Tensor:
    """`clamp(potential, 0, 1)`, without gradient at the borders themselves: there the neuron is silent or saturated."""
    return F.hardtanh(potential, 0.0, 1.0)


class ANNConv2d(WeightedConv2d):
    """Convolution, optional batch norm, clamped ReLU.

    Input [N, in_channels, height, width], output [N, out_channels, ...] in [0, 1], channels last.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in `torch.nn.Conv2d`.
        batch_norm: normalise over the batch before the clamp.
        bias: learn a bias per channel, from 0; with batch norm, which has its own, there is no second one.
        initial_gain: as in `DFTConv2d`; with batch norm, its initial weight.
        weight_standardisation, skip, average, device, dtype: as in `DFTConv2d`.
    """

    kind = "ann"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        **options: Unpack[HiddenOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, **options)

    def forward(self, x: Tensor, weight: Tensor | None = None, *, skip: Tensor | None = None) -> Tensor:
        """Activations. `skip` [N, skip, ...] are those of an earlier layer, added with their weights behind batch norm;
        see `WeightedLayer.delayed`."""
        skip, skip_weight = self.delayed(skip, x)
        if self.average > 1:
            self.output_shape(tuple(x.shape[1:]))  # refuses maps that do not divide
        weight = self.effective_weight() if weight is None else weight
        return self.record(self._activate(x, weight, self.bias, skip, skip_weight))

    def _activate(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        skip: Tensor | None = None,
        skip_weight: Tensor | None = None,
    ) -> Tensor:
        if self.normalises and x.device.type == "cpu":
            found = normalised_conv2d(
                x,
                weight,
                self.normalisation(),
                **self.geometry,
                skip=skip,
                skip_weight=skip_weight,
                neuron=TWO_PHASE,
                backend="torch",
            )
            return self.follow(found)
        if x.device.type == "cpu":
            weight, bias = self.with_batch_norm(weight)
            return dft_conv2d(
                x,
                weight,
                bias,
                **self.geometry,
                skip=skip,
                skip_weight=skip_weight,
                neuron=TWO_PHASE,
                backend="torch",
            )
        potential = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if self.batch_norm is not None:
            potential = self.batch_norm(potential)
        if skip is not None and skip_weight is not None:
            potential = potential + skip_weight.to(potential.dtype)[:, None, None] * skip
        # A copy only behind one-channel images, whose layout is ambiguous.
        return clamped_relu(potential).contiguous(memory_format=torch.channels_last)


class ANNLinear(WeightedLinear):
    """Fully connected layer, optional batch norm, clamped ReLU.

    Input [N, in_features], output [N, out_features] in [0, 1].

    Args:
        in_features, out_features: as in `torch.nn.Linear`.
        batch_norm, bias, initial_gain, weight_standardisation, skip, device, dtype: as in `ANNConv2d`.
        average, spike_dropout: as in `DFTLinear`.
    """

    kind = "ann"

    def __init__(self, in_features: int, out_features: int, **options: Unpack[HiddenLinearOptions]) -> None:
        super().__init__(in_features, out_features, **options)

    def forward(self, x: Tensor, weight: Tensor | None = None, *, skip: Tensor | None = None) -> Tensor:
        """Activations; `skip` as in `ANNConv2d`."""
        skip, skip_weight = self.delayed(skip, x)
        x, weight = self.synapses(x, weight)
        delayed = {"skip": skip, "skip_weight": skip_weight}
        if self.normalises and x.device.type == "cpu":
            found = normalised_linear(x, weight, self.normalisation(), neuron=TWO_PHASE, backend="torch", **delayed)
            return self.record(self.follow(found))
        if x.device.type == "cpu":
            weight, bias = self.with_batch_norm(weight)
            return self.record(dft_linear(x, weight, bias, neuron=TWO_PHASE, backend="torch", **delayed))
        potential = F.linear(x, weight, self.bias)
        if self.batch_norm is not None:
            potential = self.batch_norm(potential)
        if skip is not None and skip_weight is not None:
            potential = potential + skip_weight.to(potential.dtype) * skip
        return self.record(clamped_relu(potential))
