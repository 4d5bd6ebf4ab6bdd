"""Base classes of convolutions and fully connected layers with synapses, and the keywords that their classes share."""

import inspect
from typing import Any, TypedDict, TypeVar, Unpack, get_args

import torch

from ttfs_kernels import Neuron
from ttfs_kernels.checks import pair as checked_pair
from ttfs_kernels.contraction import Geometry
from ttfs_triton.nn.base import WeightedLayer
from ttfs_triton.nn.sizes import Size

Layer = TypeVar("Layer", bound=WeightedLayer)


def check_neuron(name: str, neuron: object) -> None:
    """Raise TypeError, with the layer's name in the message, unless `neuron` is a `Neuron`."""
    if not isinstance(neuron, Neuron):
        raise TypeError(f"{name}: neuron must be a Neuron; got {neuron!r}. Give Neuron(psp_persistence=...).")


def spelled_out(layer: type[Layer]) -> type[Layer]:
    """Class decorator that writes the keywords of `**options` into the signature, for `help` and editors."""
    parameters = list(inspect.signature(layer.__init__).parameters.values())
    known = {parameter.name: parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    (taken,) = get_args(parameters[-1].annotation)  # Unpack[...Options]
    refused = {"analog": {"skip", "average"}, "readout": {"skip"}}.get(layer.kind, set())
    for kind in layer.__mro__:
        for parameter in inspect.signature(kind.__init__).parameters.values():
            if parameter.name in taken.__annotations__.keys() - refused:
                known.setdefault(parameter.name, parameter)
    layer.__init__.__signature__ = inspect.Signature([*known.values()])  # type: ignore[attr-defined]
    return layer


class LayerOptions(TypedDict, total=False):
    """Keywords of layers with synapses; see `DFTConv2d`, and `WeightedLayer` for which layers take them."""

    bias: bool
    weight_standardisation: bool | None
    batch_norm: bool
    initial_gain: float
    skip: int
    average: int
    device: torch.device | str | None
    dtype: torch.dtype | None


class LinearOptions(LayerOptions, total=False):
    """Keywords of fully connected layers; see `WeightedLinear`."""

    spike_dropout: float


class WeightedConv2d(WeightedLayer):
    """Base of convolutions: weight [out_channels, in_channels / groups, height, width]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        **options: Unpack[LayerOptions],
    ) -> None:
        name = type(self).__name__
        kernel_size = checked_pair(name, "kernel_size", kernel_size, 1)
        stride = checked_pair(name, "stride", stride, 1)
        padding = checked_pair(name, "padding", padding, 0)
        dilation = checked_pair(name, "dilation", dilation, 1)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups must divide in_channels (={in_channels}) and out_channels (={out_channels}); "
                f"got {groups}."
            )
        super().__init__((out_channels, in_channels // groups, *kernel_size), **options)
        if self.average > 1 and dilation != (1, 1):
            raise ValueError(f"{name}: dilation must be 1 with average={self.average}; got {dilation}. Use a stride.")
        self.in_channels, self.out_channels, self.groups, self.dilation = in_channels, out_channels, groups, dilation
        in_pixels = ((self.average * rows, self.average * columns) for rows, columns in (kernel_size, stride, padding))
        self.kernel_size, self.stride, self.padding = in_pixels

    @property
    def geometry(self) -> dict[str, Any]:
        """How the kernel moves, as keywords of `dft_conv2d`."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(out_channels, height, width); see `WeightedLayer.output_shape`."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise ValueError(f"inputs must be {self.in_channels} maps; got {shape}.")
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

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, {self.sizes_text(self.average)}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return f"{text}, {self.synapse_repr()}"


class WeightedLinear(WeightedLayer):
    """Base of fully connected layers: weight [out_features, in_features], optional dropout of input spikes.

    Dropout removes input spikes while training, from A and W alike. The weights, not the activations, are divided by
    1 − spike_dropout: an activation is a spike time, and scaling it would move the spike, even out of its window.
    """

    def __init__(
        self, in_features: int, out_features: int, *, spike_dropout: float = 0.0, **options: Unpack[LayerOptions]
    ) -> None:
        if not 0 <= spike_dropout < 1:
            raise ValueError(f"{type(self).__name__}: spike_dropout must be in [0, 1); got {spike_dropout}.")
        average = options.get("average", 1)
        if average > 1 and in_features % average:
            raise ValueError(f"{type(self).__name__}: average must divide in_features ({in_features}); got {average}.")
        super().__init__((out_features, in_features // max(1, average)), **options)
        self.in_features, self.out_features, self.spike_dropout = in_features, out_features, spike_dropout

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(out_features,); see `WeightedLayer.output_shape`."""
        if shape != (self.in_features,):
            raise ValueError(f"inputs must be {self.in_features} features; got {shape}.")
        return (self.out_features,)

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}, {self.synapse_repr()}"
        return text if self.spike_dropout == 0 else f"{text}, spike_dropout={self.spike_dropout}"
