"""Weights, initial potentials and their initialisation: what spiking and analog layers have in common."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, TypeVar, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ttfs_kernels import Neuron
from ttfs_triton.nn.batch_norm import NormalisedLayer
from ttfs_triton.nn.sizes import Padding, Size, checked_padding, checked_pair, pair, skip_step
from ttfs_triton.nn.standardise import standardise_weight
from ttfs_triton.nn.statistics import LayerKind, SpikeCounter

Layer = TypeVar("Layer", bound=nn.Module)

MAX_WEIGHTS = 2**31
"""Weights of a layer: 8 GiB in float32."""


def check_neuron(name: str, neuron: object) -> None:
    """Raise TypeError, in the name of a layer, for what is no `Neuron`."""
    if not isinstance(neuron, Neuron):
        raise TypeError(f"{name}: neuron must be a Neuron; got {neuron!r}. Give Neuron(psp_persistence=...).")


def spelled_out(layer: type[Layer]) -> type[Layer]:
    """The class, with the keywords that its `**options` hand on to its bases in its signature, for `help`."""
    parameters = list(inspect.signature(layer.__init__).parameters.values())
    known = {parameter.name: parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    (taken,) = get_args(parameters[-1].annotation)  # Unpack[...Options]
    for kind in layer.__mro__:
        for parameter in inspect.signature(kind.__init__).parameters.values():
            if parameter.name in taken.__annotations__:
                known.setdefault(parameter.name, parameter)
    layer.__init__.__signature__ = inspect.Signature([*known.values()])  # type: ignore[attr-defined]
    return layer


class WeightOptions(TypedDict, total=False):
    """Keywords of every layer with synapses; `WeightedLayer` says what they mean and their defaults."""

    bias: bool
    weight_standardisation: bool | None
    batch_norm: bool
    initial_gain: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class LinearOptions(WeightOptions, total=False):
    """Keywords of every fully connected layer; see `WeightedLinear`."""

    spike_dropout: float
    average: int


class HiddenOptions(WeightOptions, total=False):
    """Keywords of every hidden convolution but an encoder; see `WeightedLayer`."""

    skip: int
    average: int


class HiddenLinearOptions(LinearOptions, HiddenOptions, total=False):
    """Keywords of every fully connected hidden layer; see `WeightedLinear`."""


class WeightedLayer(NormalisedLayer):
    """Base of every layer with synapses: weights, optional bias, optional weight standardisation, spike counts.

    Args:
        weight_shape: [C_out, ...].
        bias: learn an initial membrane potential per neuron or channel, from 0. Batch norm has its own instead.
        weight_standardisation: standardise weights over the fan-in, with a learned norm per channel; folds into
            plain weights by `fold_weight_standardisation`. Default: unless spiking neurons have batch norm.
        batch_norm: normalise A and W over the batch while training, by the statistics of A + W; in evaluation the
            layer is a plain one, whose weights and initial potentials hold the running statistics. See
            `ttfs_kernels.normalised_conv2d`, and `fold_batch_norm`. Not for readouts.
        initial_gain: factor on the Kaiming initialisation; see `reset_parameters`. With batch norm its initial weight
            γ, the standard deviation of A + W.
        skip: channels, or neurons, of an earlier layer whose delayed spikes `forward` gets as `skip`, each by a synapse
            of its own; see `delayed`. 0 for none. Not for encoders and readouts.
        average: inputs that share a weight, at 1/average of it each: average pooling in front of the layer, at its
            synapses, where a mean is no spike time and has to be none. Of a convolution the side of the windows, in
            pixels; of a fully connected layer the inputs in a row, such as all positions of a flattened channel. The
            layer then is one with more synapses: `kernel_size`, `stride` and `padding` are in pixels, and
            `effective_weight()` is spread.
        device, dtype: of the parameters, as in `torch.nn`.
    Attributes:
        kind: of the layer, in counts of what it does.
        weight: Parameter [C_out, ...]; use `effective_weight()` for what the synapses really are.
        bias: Parameter [C_out], initial membrane potential in threshold heights (starts at 0), or None.
        weight_gain: Parameter [C_out], norm of each neuron's standardised weights, or None without standardisation.
        skip_weight: Parameter [skip], weights v of delayed spikes, one a channel (start at 1), or None. They are not
            standardised with the others.
        batch_norm, statistics_group: see `NormalisedLayer`.
        spike_dropout: probability that an input spike is dropped while training; see `WeightedLinear`.
        statistics: `SpikeCounter` or None (default); see `ttfs_triton.nn.statistics`.
        grid, faults, log2_unit: of the chip that it computes for; see `ChipLayer`.
    """

    kind: ClassVar[LayerKind] = "spiking"
    spike_dropout: float = 0.0
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_gain: nn.Parameter | None
    skip_weight: nn.Parameter | None

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        *,
        bias: bool = True,
        weight_standardisation: bool | None = None,
        batch_norm: bool = False,
        initial_gain: float = 0.5,
        skip: int = 0,
        average: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for size in weight_shape:
            if size < 1:
                raise ValueError(f"{name}: sizes must be positive; got weights of shape {weight_shape}.")
        if math.prod(weight_shape) > MAX_WEIGHTS:
            raise ValueError(
                f"{name}: weights must be at most {MAX_WEIGHTS}; got shape {weight_shape}. Use fewer neurons."
            )
        if not (math.isfinite(initial_gain) and initial_gain > 0):
            raise ValueError(f"{name}: initial_gain must be positive and finite; got {initial_gain}.")
        if batch_norm and self.kind == "readout":
            raise ValueError(f"{name}: batch_norm must be False for a readout; got True. Leave it out.")
        if weight_standardisation is None:
            weight_standardisation = not (batch_norm and self.kind == "spiking")
        if weight_standardisation and math.prod(weight_shape[1:]) < 2:
            raise ValueError(
                f"{name}: weight_standardisation must have a fan-in of at least 2; got 1. "
                "Use weight_standardisation=False."
            )
        if skip and self.kind in ("analog", "readout"):
            raise ValueError(
                f"{name}: skip must be 0, since no earlier spikes are to reach it; got {skip}. Leave it out."
            )
        if not 0 <= skip <= weight_shape[0]:
            raise ValueError(
                f"{name}: skip must be 0 or at most the layer's {weight_shape[0]} channels; got {skip}. "
                "Use more channels."
            )
        if average < 1 or (average > 1 and self.kind == "analog"):
            raise ValueError(
                f"{name}: average must be at least 1, and 1 for an encoder; got {average}. Average images beforehand."
            )
        self.initial_gain, self.skip, self.average = initial_gain, skip, average
        self.statistics: SpikeCounter | None = None
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(weight_shape, **factory))
        bias = bias and not batch_norm
        self.register_parameter("bias", nn.Parameter(torch.empty(weight_shape[0], **factory)) if bias else None)
        gain = nn.Parameter(torch.empty(weight_shape[0], **factory)) if weight_standardisation else None
        self.register_parameter("weight_gain", gain)
        self.register_parameter("skip_weight", nn.Parameter(torch.empty(skip, **factory)) if skip else None)
        kind = nn.BatchNorm2d if len(weight_shape) == 4 else nn.BatchNorm1d
        self.batch_norm = kind(weight_shape[0], **factory) if batch_norm else None
        self.statistics_group: ProcessGroup | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Kaiming-normal weights times `initial_gain`, std = initial_gain·√(2 / fan_in); zero the bias.

        A standardised layer starts at the same norm, initial_gain·√2. At full gain (1.0) most neurons of a dynamic
        firing threshold layer would saturate or stay silent from the start.
        """
        fan_in = self.weight[0].numel()
        nn.init.normal_(self.weight, std=self.initial_gain * math.sqrt(2 / fan_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.weight_gain is not None:
            nn.init.constant_(self.weight_gain, self.initial_gain * math.sqrt(2))
        if self.skip_weight is not None:
            nn.init.ones_(self.skip_weight)
        if self.batch_norm is not None:
            self.batch_norm.reset_parameters()
            nn.init.constant_(self.batch_norm.weight, self.initial_gain)

    def effective_weight(self) -> Tensor:
        """Weights of the synapses: standardised if the layer standardises, spread if it averages.

        Shape and layout of `weight`, but for a layer that averages.
        """
        return self.spread(self._stored_weight())

    def _stored_weight(self) -> Tensor:
        return self.weight if self.weight_gain is None else standardise_weight(self.weight, self.weight_gain)

    def spread(self, weight: Tensor) -> Tensor:
        """Weights of the synapses from those that windows of inputs share, each at its part; see `average`."""
        if self.average == 1:
            return weight
        for dimension in range(2 if weight.dim() == 4 else 1, weight.dim()):
            weight = weight.repeat_interleave(self.average, dimension) / self.average
        return weight

    @torch.no_grad()
    def fold_standardisation(self) -> None:
        """Make the standardised weights this layer's plain weights and drop the gains; see the module function."""
        if self.weight_gain is not None:
            self.weight.copy_(self._stored_weight())
            self.weight_gain = None

    def synapses(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Input activations and weights of this pass: both as they are, or after dropout while training.

        Args:
            x: [N, ...], input activations.
            weight: the effective weight, where it is known already. Default: `effective_weight()`.
        """
        x, weight, scale = self.with_dropout(x, weight)
        weight = self.in_training(weight)
        return x, weight if scale == 1 else weight * scale

    def with_dropout(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
        """As `synapses`, but weights are as they are, and the factor on them is left to the caller."""
        weight = self.effective_weight() if weight is None else weight
        if not self.training or self.spike_dropout == 0:
            return x, weight, 1.0
        kept = torch.rand_like(x, dtype=torch.float32) >= self.spike_dropout
        return x * kept, weight, 1 / (1 - self.spike_dropout)

    def delayed(self, skip: Tensor | None, inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Delayed spikes, one a neuron of this layer, and the weights of their synapses, as `dft_conv2d` takes them.

        Args:
            skip: as in `arriving`.
            inputs: of the layer, whose sizes say what its neurons are.
        Returns:
            spikes [N, C_out, ...] and weights [C_out]; None and None for a layer without a skip.
        Raises:
            ValueError: a skip that the layer has no synapses for, none where it has some, or one that does not fit.
        """
        if self.skip == 0 and skip is None:
            return None, None
        if skip is None or self.skip == 0:
            got = "none" if skip is None else f"spikes {list(skip.shape)}"
            raise ValueError(
                f"{type(self).__name__}: skip must be given if, and only if, the layer was made for it; got {got} and "
                f"skip={self.skip}. Call layer(x, skip=spikes) of a layer made with skip=channels."
            )
        return self.arriving(skip, self.output_shape(tuple(inputs.shape[1:]))), self.skip_weights()

    def arriving(self, skip: Tensor, shape: Sequence[int], *, silent: float = 0.0) -> Tensor:
        """Delayed spikes as they arrive, one a neuron.

        Of larger maps every second position (third, ...) does; channels that the earlier layer lacks are silent.

        Args:
            skip: [N, skip, ...], activations of an earlier layer, whose spikes have waited until the window in which
                those of the layer's input arrive; or what orders them as activations do.
            shape: of this layer's neurons for one image.
            silent: what stands for no spike.
        Returns:
            [N, *shape].
        Raises:
            ValueError: channels or maps do not fit.
        """
        step = skip_step(skip.shape[1:], shape)
        if step is None or skip.shape[1] != self.skip:
            raise ValueError(
                f"{type(self).__name__}: skip must bring {self.skip} channels in maps that every k-th position of "
                f"makes {list(shape[1:])}; got {list(skip.shape[1:])}. Skip from a layer of that size, or change skip."
            )
        if skip.dim() == 4:
            skip = skip[:, :, :: step[0], :: step[1]]
        missing = shape[0] - self.skip
        return F.pad(skip, (0, 0) * (skip.dim() - 2) + (0, missing), value=silent) if missing else skip

    def skip_weights(self) -> Tensor | None:
        """[C_out] weights of delayed spikes, 0 for channels that none reach; None for a layer without a skip."""
        if self.skip_weight is None:
            return None
        missing = len(self.weight) - self.skip
        return F.pad(self.skip_weight, (0, missing)) if missing else self.skip_weight

    def record(self, activations: Tensor) -> Tensor:
        """Count the spikes of `activations` if statistics are being recorded, and hand them on unchanged."""
        if self.statistics is not None and self.statistics.recording:
            self.statistics.update(activations)
        return activations

    def synapse_repr(self) -> str:
        """Options shared by all layers, for `extra_repr`."""
        text = f"bias={self.bias is not None}, weight_standardisation={self.weight_gain is not None}"
        text += f", skip={self.skip}" if self.skip else ""
        return text if self.average == 1 else f"{text}, average={self.average}"

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the layer's neurons for one image.

        Args:
            shape: of its inputs for one image.
        Raises:
            ValueError: it cannot read them.
        """
        raise NotImplementedError


class WeightedConv2d(WeightedLayer):
    """Base of convolutions: weight [out_channels, in_channels / groups, height, width].

    `padding` is a size, "valid" for none, or "same" for maps that keep their size, with stride 1 and as much padding on
    either side.
    """

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
        name = type(self).__name__
        kernel_size, stride, dilation = (
            checked_pair(name, key, size, 1)
            for key, size in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
        )
        padding = checked_padding(name, padding, kernel_size, stride, dilation)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups must divide in_channels (={in_channels}) and out_channels (={out_channels}); "
                f"got {groups}."
            )
        super().__init__((out_channels, in_channels // groups, *pair(kernel_size)), **options)
        if self.average > 1 and pair(dilation) != (1, 1):
            raise ValueError(f"{name}: dilation must be 1 with average={self.average}; got {dilation}. Use a stride.")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.dilation = pair(dilation)
        self.kernel_size, self.stride, self.padding = (self._in_pixels(size) for size in (kernel_size, stride, padding))

    @property
    def geometry(self) -> dict[str, Any]:
        """How the kernel moves, as `dft_conv2d` takes it."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def _in_pixels(self, size: Size) -> tuple[int, int]:
        rows, columns = pair(size)
        return self.average * rows, self.average * columns

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(out_channels, height, width); see `WeightedLayer.output_shape`."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise ValueError(f"inputs must be {self.in_channels} maps; got {shape}.")
        if any(size % self.average for size in shape[1:]):
            raise ValueError(f"maps must divide into windows of average={self.average}; got {shape}.")
        sizes = zip(shape[1:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        places = [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in sizes
        ]
        if min(places) < 1:
            raise ValueError(f"maps must be at least as large as the kernel, {self.kernel_size}; got {shape}.")
        return (self.out_channels, *places)

    def sizes_text(self, unit: int) -> str:
        """Sizes of the kernel in words, counted in windows of `unit` pixels."""
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
        self, in_features: int, out_features: int, *, spike_dropout: float = 0.0, **options: Unpack[HiddenOptions]
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
