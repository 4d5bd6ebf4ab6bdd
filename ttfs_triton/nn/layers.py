"""Layers of neurons with a dynamic firing threshold (DFT): activations in, activations out, no state, no time axis."""

from functools import partial
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_kernels import Neuron, dft_conv2d, dft_linear, normalised_conv2d, normalised_linear
from ttfs_kernels.checks import autocasts, check_name
from ttfs_kernels.checks import pair as checked_pair
from ttfs_triton.nn.on_chip import fire_on_grid
from ttfs_triton.nn.sizes import Size
from ttfs_triton.nn.weighted import (
    LayerOptions,
    LinearOptions,
    WeightedConv2d,
    WeightedLayer,
    WeightedLinear,
    check_neuron,
    spelled_out,
)


class FiringLayer(WeightedLayer):
    """Base of layers whose neurons fire: from inputs to spikes, in training, in evaluation and on a chip's grid."""

    def spikes(self, x: Tensor, skip: Tensor | None = None, *, neuron: Neuron, backend: str) -> Tensor:
        """Activations of the layer's neurons; arguments as in `DFTConv2d` and its `forward`."""
        # Under autocast, weights are standardised and cast in one pass; grids and batch norm need them uncast.
        casts = self.grid is None and self.batch_norm is None and autocasts(x, self.weight)
        weight = self.effective_weight(torch.get_autocast_dtype(x.device.type) if casts else None)
        skip, skip_weight = self.delayed(skip, x)
        if self.average > 1:
            self.output_shape(tuple(x.shape[1:]))  # raises for maps that the windows do not divide
        options: dict[str, Any] = {"neuron": neuron, "skip": skip, "backend": backend}
        fire, normalise = dft_linear, normalised_linear
        if isinstance(self, WeightedConv2d):
            options |= self.geometry
            fire, normalise = dft_conv2d, normalised_conv2d
        if self.normalises:
            x, weight = self.synapses(x, weight)
            activations = self.follow(normalise(x, weight, self.normalisation(), skip_weight=skip_weight, **options))
        elif self.runs_on_grid(x):
            x, scale = self.with_dropout(x)
            activations = fire_on_grid(self, x, weight, skip, partial(fire, **options), scale)
        else:
            weight, bias = self.with_batch_norm(weight)
            x, weight = self.synapses(x, weight)
            activations = fire(x, weight, bias, skip_weight=skip_weight, **options)
        return self.emit(activations)

    def extra_repr(self) -> str:
        neuron = getattr(self, "neuron", None)  # an `AnalogEncoder` has none
        return super().extra_repr() + ("" if neuron is None else f", neuron={neuron}")


@spelled_out
class DFTConv2d(FiringLayer, WeightedConv2d):
    """Convolution of spiking neurons with a dynamic firing threshold.

    Input [N, in_channels, height, width], output [N, out_channels, ...], channels last: activations in [0, 1], where
    0 is silent and 1 fires at the window's start. Padding is silence.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in `torch.nn.Conv2d`.
        neuron: how its neurons fire and how they are differentiated.
        backend: "auto", "torch" or "triton"; see `ttfs_kernels.dft_conv2d`.
        bias: learn an initial membrane potential per channel, starting at 0.
        weight_standardisation: standardise weights over the fan-in, with a learned norm per channel; folds into
            plain weights by `fold_weight_standardisation`.
        batch_norm: normalise potentials over the batch while training; folds by `fold_batch_norm`. It replaces weight
            standardisation unless weight_standardisation=True is passed as well.
        initial_gain: factor on the Kaiming initialisation; see `reset_parameters`. With batch norm also its initial γ.
        skip: channels of the earlier layer whose delayed spikes reach these neurons too; see `forward`. Default: 0.
        average: side of the windows of inputs that the synapses average, in A and in W; the maps' sides must be
            multiples of it, and kernel_size, stride and padding count windows. Default: 1.
        device, dtype: as in `torch.nn.Conv2d`.
    Raises:
        ValueError: sizes, groups, initial_gain, skip or average out of range.
    Source: Wei et al., ICCV 2023, Eq. 5-7, 9-10.
    Example:
        >>> layer = DFTConv2d(16, 32, 3, padding=1, neuron=Neuron(psp_persistence=0.25))
        >>> activations = layer(torch.rand(8, 16, 28, 28))  # 1 fires at the window's start, 0 is silent
        >>> activations.shape
        torch.Size([8, 32, 28, 28])
        >>> from ttfs_triton.nn import activation_to_spike_time
        >>> spike_times = activation_to_spike_time(activations, layer=1)  # in [1, 2], inf where silent
        >>> early, late = DFTConv2d(16, 32, 3, padding=1), DFTConv2d(32, 32, 3, padding=1, skip=16)
        >>> spikes = torch.rand(8, 16, 28, 28)
        >>> late(early(spikes), skip=spikes).shape  # past `early`, each spike a window later to one neuron of `late`
        torch.Size([8, 32, 28, 28])
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
        neuron: Neuron = Neuron(),
        backend: str = "auto",
        **options: Unpack[LayerOptions],
    ) -> None:
        check_neuron(type(self).__name__, neuron)
        check_name(type(self).__name__, backend)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, **options)
        self.neuron, self.backend = neuron, backend

    def forward(self, x: Tensor, *, skip: Tensor | None = None) -> Tensor:
        """Activations.

        `skip` [N, skip, ...] are activations of an earlier layer, delayed until the spikes of `x` arrive: each adds
        v·x_skip to the potential of one neuron, and σ·v to its slope. Larger maps: see `WeightedLayer.read_skip`.
        """
        return self.spikes(x, skip, neuron=self.neuron, backend=self.backend)


@spelled_out
class DFTLinear(FiringLayer, WeightedLinear):
    """Fully connected spiking neurons with a dynamic firing threshold.

    Input [N, in_features], output [N, out_features]: activations in [0, 1], where 0 is silent and 1 fires at the
    window's start.

    Args:
        in_features, out_features: as in `torch.nn.Linear`.
        average: number of consecutive inputs among which each weight is divided equally; with as many as a flattened
            channel has positions, synapses read the channel's mean. Default: 1.
        spike_dropout: probability that an input spike is dropped while training; the weights compensate for it.
        neuron, backend, bias, weight_standardisation, batch_norm, initial_gain, skip, device, dtype: see `DFTConv2d`.
    Raises:
        ValueError: sizes, initial_gain, skip, average or spike_dropout out of range.
    Source: Wei et al., ICCV 2023, Eq. 5-7, 9-10.
    Example:
        >>> layer = DFTLinear(784, 100, bias=False)
        >>> pixels = torch.rand(8, 784)  # bright ones fire early
        >>> layer(pixels).shape
        torch.Size([8, 100])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        neuron: Neuron = Neuron(),
        backend: str = "auto",
        **options: Unpack[LinearOptions],
    ) -> None:
        check_neuron(type(self).__name__, neuron)
        check_name(type(self).__name__, backend)
        super().__init__(in_features, out_features, **options)
        self.neuron, self.backend = neuron, backend

    def forward(self, x: Tensor, *, skip: Tensor | None = None) -> Tensor:
        """Activations; `skip` [N, skip] are activations of an earlier layer, delayed until the spikes of `x` arrive."""
        return self.spikes(x, skip, neuron=self.neuron, backend=self.backend)


class SpikeUpsample2d(nn.Module):
    """Repeat each spike at its time in a patch of neurons: nearest-neighbour upsampling.

    Input [N, C, height, width], output [N, C, rows·height, columns·width], activations.

    Args:
        scale_factor: rows and columns of a patch, whole numbers.
    Raises:
        ValueError: scale_factor is neither a positive integer nor a pair of them.
    Example:
        >>> SpikeUpsample2d(2)(torch.tensor([[[[0.2, 0.9]]]]))
        tensor([[[[0.2000, 0.2000, 0.9000, 0.9000],
                  [0.2000, 0.2000, 0.9000, 0.9000]]]])
    """

    def __init__(self, scale_factor: Size) -> None:
        super().__init__()
        self.scale_factor = checked_pair("SpikeUpsample2d", "scale_factor", scale_factor, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.scale_factor
        return F.interpolate(x, (rows * x.shape[2], columns * x.shape[3]))

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}"


class EarliestSpikePool2d(nn.Module):
    """Pass on the earliest spike of each patch: the maximum over activations.

    Input [N, C, height, width], output [N, C, ...], activations; a patch of silent neurons stays silent. A mean of
    spike times is no spike, so the next layer's synapses do average pooling: see `average` of `DFTConv2d`.

    Args:
        kernel_size: patch size.
        stride: distance between patches; None means kernel_size.
        padding: silent neurons around the map, at most half of the patch size.
        ceil_mode: one more patch at the lower and right borders if a part of the map is left, as in `nn.MaxPool2d`.
    Raises:
        ValueError: a size is neither a positive integer nor a pair of them, or the padding is too large.
    Example:
        >>> spikes = torch.tensor([[[[0.2, 0.9], [0.0, 0.5]]]])  # 0 is silent, larger is earlier
        >>> EarliestSpikePool2d(2)(spikes)
        tensor([[[[0.9000]]]])
    """

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.ceil_mode = ceil_mode
        self.kernel_size = checked_pair("EarliestSpikePool2d", "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else checked_pair("EarliestSpikePool2d", "stride", stride, 1)
        self.padding = checked_pair("EarliestSpikePool2d", "padding", padding, 0)
        if any(2 * around > size for around, size in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"EarliestSpikePool2d: padding must be at most half of kernel_size, {self.kernel_size}; got {padding}."
            )

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, height, width) after pooling maps (channels, height, width); ValueError if they are too small."""
        try:
            return tuple(self(torch.empty((1, *shape), device="meta")).shape[1:])
        except RuntimeError:
            raise ValueError(
                f"maps must be at least as large as the patches, {self.kernel_size}; got {shape}."
            ) from None

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, ceil_mode=self.ceil_mode)

    def extra_repr(self) -> str:
        padded = f", padding={self.padding}" if any(self.padding) else ""
        return f"kernel_size={self.kernel_size}, stride={self.stride}{padded}{', ceil_mode=True' * self.ceil_mode}"
