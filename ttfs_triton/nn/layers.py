"""Layers of neurons with a dynamic firing threshold (DFT): activations in, activations out, no state, no time axis."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_kernels import Neuron, dft_conv2d, dft_linear, normalised_conv2d, normalised_linear
from ttfs_kernels.checks import Geometry, autocasts, check_name
from ttfs_kernels.checks import pair as checked_pair
from ttfs_triton.nn.on_chip import fire_on_grid
from ttfs_triton.nn.weighted import Size, WeightedLayer

# Neurons whose potential has no slope: a clamped ReLU, which fires 1 − A after the window's start.
CLAMPED = Neuron(psp_persistence=0.0)


def check_neuron(name: str, neuron: object, backend: str = "auto") -> None:
    """TypeError unless `neuron` is a `Neuron`; ValueError unless `backend` is a backend. Messages name the layer."""
    if not isinstance(neuron, Neuron):
        raise TypeError(f"{name}: neuron must be a Neuron; got {neuron!r}. Give Neuron(psp_persistence=...).")
    check_name(name, backend)


class FiringLayer(WeightedLayer):
    """Base of layers whose neurons fire: turns inputs into spikes in training, in evaluation and on a chip's grid."""

    if TYPE_CHECKING:
        neuron: Any  # a Neuron; None for an `AnalogEncoder` whose potentials have no slope
        backend: str

    def forward(self, x: Tensor, *, skip: Tensor | None = None) -> Tensor:
        """Activations.

        `skip` [N, skip, ...] are activations of an earlier layer, delayed until the spikes of `x` arrive. Such a spike
        reaches one neuron: it adds v·x_skip to A, and σ·v to W. For larger maps see `WeightedLayer.read_skip`.
        """
        # Under autocast, weights are standardised and cast in one pass; grids and batch norm need them without a cast.
        casts = self.grid is None and self.batch_norm is None and autocasts(x, self.weight)
        weight = self.effective_weight(torch.get_autocast_dtype(x.device.type) if casts else None)
        skip, skip_weight = self.delayed(skip, x)
        if self.average > 1:
            self.output_shape(tuple(x.shape[1:]))  # raises for maps that the windows do not divide
        options = self.geometry | {"skip": skip, "neuron": self.neuron, "backend": self.backend}
        if self.neuron is None:  # one convolution, which PyTorch has
            options |= {"neuron": CLAMPED, "backend": "torch"}
        fire, normalise = (dft_conv2d, normalised_conv2d) if self.geometry else (dft_linear, normalised_linear)
        if self.normalises:
            x, weight = self.synapses(x, weight)
            activations = self.follow(normalise(x, weight, self.normalisation(), skip_weight=skip_weight, **options))
        elif self.grid is not None and not x.is_meta:
            x, scale = self.with_dropout(x)
            activations = fire_on_grid(self, x, weight, skip, partial(fire, **options), scale)
        else:
            weight, bias = self.with_batch_norm(weight)
            x, weight = self.synapses(x, weight)
            activations = fire(x, weight, bias, skip_weight=skip_weight, **options)
        return self.emit(activations)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.neuron is None else f", neuron={self.neuron}")


class DFTConv2d(FiringLayer):
    """Convolution of spiking neurons with a dynamic firing threshold.

    Input [N, in_channels, height, width], output [N, out_channels, ...], channels last: activations in [0, 1], where
    0 is silent and 1 fires at the window's start. Padding is silence.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in `torch.nn.Conv2d`.
        neuron: how the neurons fire and how they are differentiated.
        backend: "auto", "torch" or "triton"; see `ttfs_kernels.dft_conv2d`.
        bias: learn an initial membrane potential per channel, starting at 0.
        weight_standardisation: standardise weights over the fan-in, with a learned norm per channel; folds into
            plain weights by `fold_standardisation()`.
        batch_norm: normalise potentials over the batch while training; folds by `fold_batch_norm`. It replaces weight
            standardisation unless weight_standardisation=True is passed as well.
        initial_gain: factor on the Kaiming initialisation; see `reset_parameters`. With batch norm also its initial γ.
        skip: channels of the earlier layer whose delayed spikes reach these neurons too; see `forward`. Default: 0.
        average: side of the windows of inputs that the synapses average, in A and in W. The maps' sides must be
            multiples of `average`; kernel_size, stride and padding count windows. Default: 1.
        device, dtype: as in `torch.nn.Conv2d`.
    Raises:
        ValueError: sizes, groups, skip or average out of range.
    Source: Wei et al., ICCV 2023, Eq. 5-7, 9-10.
    Example:
        >>> layer = DFTConv2d(16, 32, 3, padding=1, neuron=Neuron(psp_persistence=0.25))
        >>> activations = layer(torch.rand(8, 16, 28, 28))  # 1 fires at the window's start, 0 is silent
        >>> from ttfs_triton.nn import activation_to_spike_time
        >>> spike_times = activation_to_spike_time(activations, layer=1)  # in [1, 2], inf where silent
        >>> early, late = DFTConv2d(16, 32, 3, padding=1), DFTConv2d(32, 32, 3, padding=1, skip=16)
        >>> spikes = torch.rand(8, 16, 28, 28)
        >>> late(early(spikes), skip=spikes).shape  # the skip leads past `early`, with a delay of one window
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
        bias: bool = True,
        weight_standardisation: bool | None = None,
        batch_norm: bool = False,
        initial_gain: float = 0.5,
        skip: int = 0,
        average: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        check_neuron(name, neuron, backend)
        kernel_size = checked_pair(name, "kernel_size", kernel_size, 1)
        stride = checked_pair(name, "stride", stride, 1)
        padding = checked_pair(name, "padding", padding, 0)
        dilation = checked_pair(name, "dilation", dilation, 1)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups must divide in_channels (={in_channels}) and out_channels (={out_channels}); "
                f"got {groups}."
            )
        if average > 1 and dilation != (1, 1):
            raise ValueError(f"{name}: dilation must be 1 with average={average}; got {dilation}. Use a stride.")
        super().__init__(
            (out_channels, in_channels // groups, *kernel_size),
            bias=bias,
            weight_standardisation=weight_standardisation,
            batch_norm=batch_norm,
            initial_gain=initial_gain,
            skip=skip,
            average=average,
            device=device,
            dtype=dtype,
        )
        self.neuron, self.backend = neuron, backend
        self.in_channels, self.out_channels, self.groups, self.dilation = in_channels, out_channels, groups, dilation
        in_pixels = ((average * rows, average * columns) for rows, columns in (kernel_size, stride, padding))
        self.kernel_size, self.stride, self.padding = in_pixels

    @property
    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(out_channels, height, width); see `WeightedLayer.output_shape`."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise ValueError(f"inputs must be {self.in_channels} maps; got {shape}. Change one of them.")
        if any(size % self.average for size in shape[1:]):
            raise ValueError(f"maps must divide into windows of average={self.average}; got {shape}.")
        places = Geometry(**self.geometry).map_size(shape[1:], self.kernel_size)
        if min(places) < 1:
            raise ValueError(f"maps must be at least as large as the kernel, {self.kernel_size}; got {shape}.")
        return (self.out_channels, *places)

    def sizes_text(self, unit: int) -> str:
        """Kernel size, stride and padding as text, counted in windows of `unit` pixels."""
        names = ("kernel_size", "stride", "padding")
        return ", ".join(f"{name}={tuple(size // unit for size in getattr(self, name))}" for name in names)

    def size_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, {self.sizes_text(self.average)}"
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        return f"{text}, groups={self.groups}" if self.groups != 1 else text


class WeightedLinear(WeightedLayer):
    """Base of fully connected layers: weight [out_features, in_features / average]; `average` inputs share a weight."""

    def weight_shape(self, in_features: int, out_features: int, average: int) -> tuple[int, int]:
        """Shape of `weight`; ValueError if `average` does not divide the inputs."""
        if average > 1 and in_features % average:
            raise ValueError(f"{type(self).__name__}: average must divide in_features ({in_features}); got {average}.")
        return out_features, in_features // max(1, average)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.weight.shape[1] * self.average

    @property
    def out_features(self) -> int:
        """Number of neurons."""
        return self.weight.shape[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(out_features,); see `WeightedLayer.output_shape`."""
        if shape != (self.in_features,):
            raise ValueError(f"inputs must be {self.in_features} features; got {shape}. Change one of them.")
        return (self.out_features,)

    def size_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class DFTLinear(FiringLayer, WeightedLinear):
    """Fully connected spiking neurons with a dynamic firing threshold.

    Input [N, in_features], output [N, out_features]: activations in [0, 1], where 0 is silent and 1 fires at the
    window's start.

    Args:
        in_features, out_features: as in `torch.nn.Linear`.
        average: number of consecutive inputs among which a weight is divided equally. If it equals the number of
            positions of a flattened channel, synapses read the channel's mean. Default: 1.
        spike_dropout: probability that an input spike is dropped while training; the weights compensate for it.
        neuron, backend, bias, weight_standardisation, batch_norm, initial_gain, skip, device, dtype: see `DFTConv2d`.
    Raises:
        ValueError: sizes, skip, average or spike_dropout out of range.
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
        bias: bool = True,
        weight_standardisation: bool | None = None,
        batch_norm: bool = False,
        initial_gain: float = 0.5,
        skip: int = 0,
        average: int = 1,
        spike_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_neuron(type(self).__name__, neuron, backend)
        super().__init__(
            self.weight_shape(in_features, out_features, average),
            bias=bias,
            weight_standardisation=weight_standardisation,
            batch_norm=batch_norm,
            initial_gain=initial_gain,
            skip=skip,
            average=average,
            spike_dropout=spike_dropout,
            device=device,
            dtype=dtype,
        )
        self.neuron, self.backend = neuron, backend


@torch.no_grad()
def start_as_identity(model: nn.Module) -> None:
    """Make filter k of every spiking convolution pass on input channel k, by weight 1 at its centre; others stay as is.

    Args:
        model: network of `ttfs_triton.nn` layers, changed in place.
    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.3.
    """
    for module in model.modules():
        if isinstance(module, DFTConv2d) and module.kind != "analog" and module.groups == 1:
            nn.init.dirac_(module.weight[: module.weight.shape[1]])


class SpikeUpsample2d(nn.Module):
    """Nearest-neighbour upsampling: a spike is repeated, at its time, by a patch of neurons.

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


def whole_ratio(size: Sequence[int], larger: Sequence[int]) -> tuple[int, int] | None:
    """The sides (rows, columns) of `larger`, divided by those of `size`; None if a side is no multiple."""
    (rows, columns), (more_rows, more_columns) = size, larger
    return None if more_rows % rows or more_columns % columns else (more_rows // rows, more_columns // columns)


class EarliestSpikePool2d(nn.Module):
    """Pass on the earliest spike of a patch: the maximum over activations.

    Input [N, C, height, width], output [N, C, ...], activations; a patch of silent neurons stays silent. A mean of
    spike times is no spike, so the next layer's synapses do average pooling: see `average` of `DFTConv2d`.

    Args:
        kernel_size: patch size.
        stride: distance between patches; None means kernel_size.
        padding: silent neurons around the map, at most half of the patch size.
        ceil_mode: one more patch at the lower and right borders if a part of the map is left, as in `nn.MaxPool2d`.
    Raises:
        ValueError: a size is neither a positive integer nor a pair of them.
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

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, height, width) after pooling maps of this shape; RuntimeError if they are too small."""
        return tuple(self(torch.empty((1, *shape), device="meta")).shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, ceil_mode=self.ceil_mode)

    def extra_repr(self) -> str:
        padded = f", padding={self.padding}" if any(self.padding) else ""
        return f"kernel_size={self.kernel_size}, stride={self.stride}{padded}{', ceil_mode=True' * self.ceil_mode}"
