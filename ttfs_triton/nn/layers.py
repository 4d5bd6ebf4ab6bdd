"""Layers of neurons with a dynamic firing threshold (DFT): activations in, activations out, no state, no time axis."""

import math

import torch
from torch import Tensor

from ttfs_kernels import Neuron, dft_conv2d, dft_linear
from ttfs_triton.nn.weighted import Size, WeightedConv2d, WeightedLinear


class DFTConv2d(WeightedConv2d):
    """Convolution of spiking neurons with a dynamic firing threshold.

    Input [N, in_channels, height, width], output [N, out_channels, ...], channels last: activations in [0, 1], where
    0 is silent and 1 fires at the window's start. Padding is silence.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in `torch.nn.Conv2d`.
        bias: learn an initial membrane potential per channel, from 0.
        weight_standardisation: standardise weights over the fan-in, with a learned norm per channel; folds into
            plain weights by `fold_weight_standardisation`.
        initial_gain: factor on the Kaiming initialisation; see `reset_parameters`.
        psp_persistence: σ in [0, 1], the fraction of the potential's slope that remains in the firing window;
            1 is the paper's neuron, 0 the two-phase neuron (a clamped ReLU).
        derivative_clip: bound on both local derivatives; None is the exact gradient.
        surrogate_width: δ; above 0, neurons just short of a spike learn too; 0 is the exact gradient. See
            `ttfs_kernels.dft_linear`.
        backend: "auto", "torch" or "triton".
    Raises:
        ValueError: sizes, groups, initial_gain or psp_persistence out of range.
    Source: Wei et al., ICCV 2023, Eq. 5-7, 9-10.
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
        psp_persistence: float = 1.0,
        derivative_clip: float | None = 11.0,
        surrogate_width: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_neuron("DFTConv2d", psp_persistence, derivative_clip, surrogate_width)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias=bias,
            weight_standardisation=weight_standardisation,
            initial_gain=initial_gain,
            device=device,
            dtype=dtype,
        )
        self.psp_persistence, self.derivative_clip = psp_persistence, derivative_clip
        self.surrogate_width, self.backend = surrogate_width, backend

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        activations = dft_conv2d(
            x,
            self.effective_weight() if weight is None else weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            neuron=Neuron(self.psp_persistence, self.derivative_clip, self.surrogate_width),
            backend=self.backend,
        )
        return self.record(activations)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, psp_persistence={self.psp_persistence}"


class DFTLinear(WeightedLinear):
    """Fully connected spiking neurons with a dynamic firing threshold.

    Input [N, in_features], output [N, out_features]: activations in [0, 1], where 0 is silent and 1 fires at the
    window's start.

    Args:
        in_features, out_features: as in `torch.nn.Linear`.
        spike_dropout: probability that an input spike is dropped while training; the weights make up for it.
        bias, weight_standardisation, initial_gain, psp_persistence, derivative_clip, surrogate_width, backend: see
            `DFTConv2d`.
    Raises:
        ValueError: sizes, initial_gain, spike_dropout or psp_persistence out of range.
    Source: Wei et al., ICCV 2023, Eq. 5-7, 9-10.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        weight_standardisation: bool = True,
        initial_gain: float = 0.5,
        psp_persistence: float = 1.0,
        derivative_clip: float | None = 11.0,
        surrogate_width: float = 0.0,
        spike_dropout: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_neuron("DFTLinear", psp_persistence, derivative_clip, surrogate_width)
        super().__init__(
            in_features,
            out_features,
            bias=bias,
            weight_standardisation=weight_standardisation,
            initial_gain=initial_gain,
            spike_dropout=spike_dropout,
            device=device,
            dtype=dtype,
        )
        self.psp_persistence, self.derivative_clip = psp_persistence, derivative_clip
        self.surrogate_width, self.backend = surrogate_width, backend

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        x, weight = self.synapses(x, weight)
        activations = dft_linear(
            x,
            weight,
            self.bias,
            neuron=Neuron(self.psp_persistence, self.derivative_clip, self.surrogate_width),
            backend=self.backend,
        )
        return self.record(activations)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, psp_persistence={self.psp_persistence}"


def check_neuron(
    name: str, psp_persistence: float, derivative_clip: float | None = None, surrogate_width: float = 0.0
) -> None:
    """Raise ValueError, in the name of a layer, unless the neuron's parameters are in range."""
    if not 0 <= psp_persistence <= 1:
        raise ValueError(f"{name}: psp_persistence must be in [0, 1]; got {psp_persistence}.")
    if derivative_clip is not None and not derivative_clip > 0:
        raise ValueError(
            f"{name}: derivative_clip must be positive; got {derivative_clip}. Use None for exact gradients."
        )
    if not 0 <= surrogate_width < math.inf:
        raise ValueError(
            f"{name}: surrogate_width must be finite and at least 0; got {surrogate_width}. Use 0 for exact gradients."
        )
