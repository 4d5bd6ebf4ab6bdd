"""Weights, initial potentials and their initialisation: what spiking and analog layers have in common."""

import math
from collections.abc import Iterable
from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ttfs_kernels import standardise_weights
from ttfs_triton.nn.faults import Faults, spikes_in_training, weight_factors
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.integers import SMALLEST_GRID_UNIT, fitting_unit
from ttfs_triton.nn.standardise import standardise_weight
from ttfs_triton.nn.statistics import LayerKind, SpikeCounter

Size = int | tuple[int, int]

MAX_WEIGHTS = 2**31
"""Weights of a layer: 8 GiB in float32."""


class WeightOptions(TypedDict, total=False):
    """Keywords of every layer with synapses; `WeightedLayer` says what they mean and their defaults."""

    bias: bool
    weight_standardisation: bool
    initial_gain: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class LinearOptions(WeightOptions, total=False):
    """Keywords of every fully connected layer; see `WeightedLinear`."""

    spike_dropout: float


class WeightedLayer(nn.Module):
    """Base of every layer with synapses: weights, optional bias, optional weight standardisation, spike counts.

    Args:
        weight_shape: [C_out, ...].
        bias: learn an initial membrane potential per neuron or channel, from 0.
        weight_standardisation: standardise weights over the fan-in, with a learned norm per channel; folds into
            plain weights by `fold_weight_standardisation`.
        initial_gain: factor on the Kaiming initialisation; see `reset_parameters`.
        device, dtype: of the parameters, as in `torch.nn`.
    Attributes:
        kind: of the layer, in counts of what it does.
        weight: Parameter [C_out, ...]; use `effective_weight()` for what the synapses really are.
        bias: Parameter [C_out], initial membrane potential in threshold heights (starts at 0), or None.
        weight_gain: Parameter [C_out], norm of each neuron's standardised weights, or None without standardisation.
        statistics: `SpikeCounter` or None (default); see `ttfs_triton.nn.statistics`.
        grid: of the chip that the layer computes for, or None (default); see `put_on_grid`.
        faults: of chips that the layer is trained for, or None (default); they happen in training mode alone.
        log2_unit: Parameter [C_out] or [1], logarithm of the weights' units on that grid, in threshold heights; None
            without a grid, or where weights are not rounded.
    """

    kind: ClassVar[LayerKind] = "spiking"
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_gain: nn.Parameter | None
    log2_unit: nn.Parameter | None

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        *,
        bias: bool = True,
        weight_standardisation: bool = True,
        initial_gain: float = 0.5,
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
        if weight_standardisation and math.prod(weight_shape[1:]) < 2:
            raise ValueError(
                f"{name}: weight_standardisation must have a fan-in of at least 2; got 1. "
                "Use weight_standardisation=False."
            )
        self.initial_gain = initial_gain
        self.statistics: SpikeCounter | None = None
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(weight_shape, **factory))
        self.register_parameter("bias", nn.Parameter(torch.empty(weight_shape[0], **factory)) if bias else None)
        gain = nn.Parameter(torch.empty(weight_shape[0], **factory)) if weight_standardisation else None
        self.register_parameter("weight_gain", gain)
        self.grid: Grid | None = None
        self.faults: Faults | None = None
        self.register_parameter("log2_unit", None)
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

    def effective_weight(self) -> Tensor:
        """Weights of the synapses, shape and layout of `weight`: standardised if the layer standardises."""
        if self.weight_gain is None:
            return self.weight
        return standardise_weight(self.weight, self.weight_gain)

    @torch.no_grad()
    def fold_standardisation(self) -> None:
        """Make the standardised weights this layer's plain weights and drop the gains; see the module function."""
        if self.weight_gain is not None:
            self.weight.copy_(self.effective_weight())
            self.weight_gain = None

    def put_on_grid(self, grid: Grid | None) -> None:
        """Compute as a chip does from now on, or no longer; units are chosen that fit the present weights best."""
        self.grid, self.log2_unit = grid, None
        if grid is None or grid.weight_bits is None:
            return
        weight = self.effective_weight().detach()
        unit = weight.new_zeros(len(weight), dtype=torch.float64)
        if not weight.is_meta:
            unit = fitting_unit(weight, grid.weight_bits, per_channel=grid.per_channel)
        logarithm = unit.clamp_min(SMALLEST_GRID_UNIT).log2()
        self.log2_unit = nn.Parameter((logarithm if grid.per_channel else logarithm[:1]).to(self.weight.dtype))

    def unit_on_grid(self, bits: int | None, per_channel: bool) -> Tensor | None:
        """Units [C_out] of weights with so many bits, float64, in threshold heights; None where the layer has none."""
        grid = self.grid
        if self.log2_unit is None or grid is None or (grid.weight_bits, grid.per_channel) != (bits, per_channel):
            return None
        # Registers hold the threshold, T / unit integers high.
        smallest = 0.0 if grid.register is None else grid.time_steps * self.threshold_height / grid.register
        unit = self.log2_unit.detach().double().exp2().clamp_min(max(SMALLEST_GRID_UNIT, smallest))
        return unit.expand(len(self.weight))

    @property
    def common_potential(self) -> float:
        """At which all of its neurons start, besides their own, in threshold heights."""
        return 0.0

    @property
    def threshold_height(self) -> float:
        """Of the firing threshold at the window's start, in threshold heights of hidden neurons."""
        return 1.0

    def factors_in_training(self, weight: Tensor) -> Tensor | None:
        """What the weights of this pass are off by, shape of `weight`; None if they are not."""
        if not self.training or self.faults is None or not self.faults.weight_noise:
            return None
        return weight_factors(weight, self.faults.weight_noise)

    def in_training(self, weight: Tensor) -> Tensor:
        """Weights of this pass: off by what `faults` say while training, or as they are."""
        factors = self.factors_in_training(weight)
        return weight if factors is None else weight * factors.to(weight.dtype)

    def emit(self, activations: Tensor) -> Tensor:
        """Hand on spikes: with `faults`, in training, those that are left of them; counted if they are to be."""
        if self.training and self.faults:
            activations = spikes_in_training(activations, self.faults, self.grid)
        return self.record(activations)

    def record(self, activations: Tensor) -> Tensor:
        """Count the spikes of `activations` if statistics are being recorded, and hand them on unchanged."""
        if self.statistics is not None and self.statistics.recording:
            self.statistics.update(activations)
        return activations

    def synapse_repr(self) -> str:
        """Options shared by all layers, for `extra_repr`."""
        return f"bias={self.bias is not None}, weight_standardisation={self.weight_gain is not None}"


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
        **options: Unpack[WeightOptions],
    ) -> None:
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups must divide in_channels (={in_channels}) and out_channels (={out_channels}); "
                f"got {groups}."
            )
        super().__init__((out_channels, in_channels // groups, *pair(kernel_size)), **options)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, pair(kernel_size)
        self.stride, self.padding, self.dilation, self.groups = pair(stride), pair(padding), pair(dilation), groups

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}"
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
        self, in_features: int, out_features: int, *, spike_dropout: float = 0.0, **options: Unpack[WeightOptions]
    ) -> None:
        if not 0 <= spike_dropout < 1:
            raise ValueError(f"{type(self).__name__}: spike_dropout must be in [0, 1); got {spike_dropout}.")
        super().__init__((out_features, in_features), **options)
        self.in_features, self.out_features, self.spike_dropout = in_features, out_features, spike_dropout

    def synapses(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Input activations and weights of this pass: both as they are, or after dropout while training.

        Args:
            x: [N, in_features].
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

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}, {self.synapse_repr()}"
        return text if self.spike_dropout == 0 else f"{text}, spike_dropout={self.spike_dropout}"


def effective_weights(modules: Iterable[nn.Module]) -> list[Tensor | None]:
    """Standardised weights of layers, in as few kernel calls as `standardise_weights` needs for all of them.

    Under autocast they come in autocast's dtype, in which they are used. Hand each to its layer's `forward`.

    Args:
        modules: layers of a network, on one device, among others.
    Returns:
        For each module its `effective_weight()`; None if it has none, or no weight standardisation.
    """
    modules = list(modules)
    layers = [layer for layer in modules if isinstance(layer, WeightedLayer) and layer.weight_gain is not None]
    if not layers:
        return [None] * len(modules)
    weights, gains = [layer.weight for layer in layers], [layer.weight_gain for layer in layers]
    dtype, device_type = weights[0].dtype, weights[0].device.type
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    if autocast and dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(device_type)
    standardised = iter(standardise_weights(weights, gains, dtype=dtype))  # pyright: ignore[reportArgumentType]
    return [next(standardised) if any(layer is other for other in layers) else None for layer in modules]


def pair(value: Size) -> tuple[int, int]:
    """A size for both image dimensions, (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
