"""`WeightedLayer`, the base class of all layers with synapses: their weights, skips, batch norm and chip grid."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ttfs_kernels import Normalisation, Normalised, standardise_weight
from ttfs_triton.nn.faults import Faults, spikes_in_training, weight_factors
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.integers import SMALLEST_GRID_UNIT, fitting_unit
from ttfs_triton.nn.statistics import LayerKind, SpikeCounter

Size = int | tuple[int, int]
MAX_WEIGHTS = 2**31  # largest number of weights of one layer: 8 GiB in float32


class WeightedLayer(nn.Module):
    """Base of every layer with synapses: weights, initial potentials, skips, batch norm, the chip's grid, spike counts.

    Arguments are those of `DFTConv2d` and `DFTLinear`. Encoders take no skip and no average, readouts neither skip nor
    batch norm. Weights are standardised by default, except those of spiking neurons with batch norm.

    Attributes:
        average: side of the windows that a convolution averages; fully connected: number of consecutive inputs. The
            attributes `kernel_size`, `stride`, `padding` count pixels; `effective_weight()` has a weight per pixel.
        kind: "analog", "spiking" or "readout"; see `LayerKind`.
        weight: Parameter [C_out, ...]; `effective_weight()` gives the weights of the synapses.
        bias: Parameter [C_out], initial membrane potentials in threshold heights, or None.
        weight_gain: Parameter [C_out], norms of neurons' standardised weights, or None without standardisation.
        skip_weight: Parameter [skip], weights v of delayed spikes, one per channel, or None. They start at 1 and are
            never standardised.
        batch_norm: `BatchNorm2d` or `BatchNorm1d`, which holds γ, β and the running statistics, or None. After
            `layer.batch_norm.eval()` the layer uses the running statistics even in training mode.
        statistics_group: processes that share the statistics of a batch; None: a process uses those of its images.
        spike_dropout: probability that an input spike is dropped while training, from A and W alike. The weights make
            up for dropped spikes: scaled activations would be other spike times.
        initial_potential: V₀, added to every neuron's initial potential, in threshold heights; 0 except in readouts.
        threshold: height of the falling threshold at the window's start; 1 for hidden neurons.
        statistics: `SpikeCounter` or None (default); see `ttfs_triton.nn.statistics`.
        grid: the chip's grid on which the layer computes; None (default): real numbers. See `put_on_grid`.
        faults: chip faults, simulated in training mode only; None (default): no faults.
        log2_unit: Parameter [C_out] or [1], log₂ of the weights' units (scales) on the grid, in threshold heights;
            None without a grid, or where weights are not rounded.
    """

    kind: ClassVar[LayerKind] = "spiking"
    initial_potential: float = 0.0
    threshold: float = 1.0
    statistics: SpikeCounter | None = None
    statistics_group: ProcessGroup | None = None
    grid: Grid | None = None
    faults: Faults | None = None
    weight: nn.Parameter
    weight_gain: nn.Parameter | None
    skip_weight: nn.Parameter | None
    log2_unit: nn.Parameter | None
    if TYPE_CHECKING:  # else pages of the API would give these types to arguments of the same names
        bias: nn.Parameter | None
        batch_norm: nn.BatchNorm1d | nn.BatchNorm2d | None

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
        spike_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if min(weight_shape) < 1:
            raise ValueError(f"{name}: sizes must be positive; got weights of shape {weight_shape}.")
        if math.prod(weight_shape) > MAX_WEIGHTS:
            raise ValueError(
                f"{name}: weights must be at most {MAX_WEIGHTS}; got shape {weight_shape}. Use fewer neurons."
            )
        if not 0 <= spike_dropout < 1:
            raise ValueError(f"{name}: spike_dropout must be in [0, 1); got {spike_dropout}.")
        if weight_standardisation is None:
            weight_standardisation = not (batch_norm and self.kind == "spiking")
        if weight_standardisation and math.prod(weight_shape[1:]) < 2:
            raise ValueError(
                f"{name}: weight_standardisation must have a fan-in of at least 2; got 1. "
                "Use weight_standardisation=False."
            )
        if not 0 <= skip <= weight_shape[0]:
            raise ValueError(
                f"{name}: skip must be 0 or at most the layer's {weight_shape[0]} channels; got {skip}. "
                "Use more channels."
            )
        self.initial_gain, self.skip, self.average, self.spike_dropout = initial_gain, skip, average, spike_dropout
        self.register_parameter("log2_unit", None)
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(weight_shape, **factory))
        bias = bias and not batch_norm
        self.register_parameter("bias", nn.Parameter(torch.empty(weight_shape[0], **factory)) if bias else None)
        gain = nn.Parameter(torch.empty(weight_shape[0], **factory)) if weight_standardisation else None
        self.register_parameter("weight_gain", gain)
        self.register_parameter("skip_weight", nn.Parameter(torch.empty(skip, **factory)) if skip else None)
        kind = nn.BatchNorm2d if len(weight_shape) == 4 else nn.BatchNorm1d
        self.batch_norm = kind(weight_shape[0], **factory) if batch_norm else None
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

    def effective_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Weights of the synapses: standardised (in `dtype`) if the layer does so, and spread over averaged windows."""
        weight = self._stored_weight(dtype)
        if self.average == 1:
            return weight
        for dimension in range(2 if weight.dim() == 4 else 1, weight.dim()):
            weight = weight.repeat_interleave(self.average, dimension) / self.average
        return weight

    def _stored_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """`weight`, standardised if the layer does so: with average pooling, one per window of inputs."""
        if self.weight_gain is None:
            return self.weight
        return standardise_weight(self.weight, self.weight_gain, dtype=dtype)

    @torch.no_grad()
    def fold_standardisation(self) -> None:
        """Make the standardised weights plain weights of the same values; outputs stay the same."""
        if self.weight_gain is not None:
            self.weight.copy_(self._stored_weight())
            self.weight_gain = None

    def synapses(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Input activations [N, ...] and weights of this pass; training mode applies dropout and weight noise."""
        x, scale = self.with_dropout(x)
        if (factors := self.factors_in_training(weight)) is not None:
            weight = weight * factors.to(weight.dtype)
        return x, weight if scale == 1 else weight * scale

    def with_dropout(self, x: Tensor) -> tuple[Tensor, float]:
        """Input activations after dropout, and the factor by which weights make up for dropped spikes."""
        if not self.training or self.spike_dropout == 0:
            return x, 1.0
        kept = torch.rand_like(x, dtype=torch.float32) >= self.spike_dropout
        return x * kept, 1 / (1 - self.spike_dropout)

    def delayed(self, skip: Tensor | None, inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Delayed spikes [N, C_out, ...] and their weights [C_out], as `dft_conv2d` takes them; None without a skip."""
        if self.skip == 0 and skip is None:
            return None, None
        if skip is None or self.skip == 0:
            got = "none" if skip is None else f"spikes {list(skip.shape)}"
            raise ValueError(
                f"{type(self).__name__}: skip must be given if, and only if, the layer was made for it; got {got} and "
                f"skip={self.skip}. Call layer(x, skip=spikes) of a layer made with skip=channels."
            )
        weights = self.skip_weights()
        if weights is not None and (factors := self.factors_in_training(weights)) is not None:
            weights = weights * factors
        return self.read_skip(skip, self.output_shape(tuple(inputs.shape[1:]))), weights

    def read_skip(self, skip: Tensor, shape: Sequence[int]) -> Tensor:
        """Delayed spikes as they reach the layer, one per neuron: [N, *shape].

        Of larger maps, every second (third, ...) row and column is read; channels that the earlier layer lacks are
        silent. `skip` [N, skip, ...] are that layer's activations, or other numbers for which 0 means silent.
        """
        step = skip_step(skip.shape[1:], shape)
        if step is None or skip.shape[1] != self.skip:
            raise ValueError(
                f"{type(self).__name__}: skip must have {self.skip} channels, and maps that give {list(shape[1:])} if "
                f"every k-th row and column is taken; got {list(skip.shape[1:])}. Change skip or its source."
            )
        if skip.dim() == 4:
            skip = skip[:, :, :: step[0], :: step[1]]
        missing = shape[0] - self.skip
        return F.pad(skip, (0, 0) * (skip.dim() - 2) + (0, missing)) if missing else skip

    def skip_weights(self) -> Tensor | None:
        """Weights [C_out] of delayed spikes, 0 for channels without them; None for a layer without a skip."""
        if self.skip_weight is None:
            return None
        missing = len(self.weight) - self.skip
        return F.pad(self.skip_weight, (0, missing)) if missing else self.skip_weight

    # ---- batch norm: batch statistics while training, a plain layer in evaluation

    @property
    def normalises(self) -> bool:
        """Whether potentials are normalised by the statistics of the batch: in the training mode of `batch_norm`."""
        return self.batch_norm is not None and self.batch_norm.training

    def with_batch_norm(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias ([C_out] or None) of evaluation mode: batch norm folded in, unchanged without batch norm.

        Both have the wider of the dtypes of `weight` and batch norm.
        """
        norm: Any = self.batch_norm
        if norm is None:
            return weight, self.bias
        dtype = torch.promote_types(weight.dtype, norm.weight.dtype)
        scale = norm.weight.to(dtype) * (norm.running_var.to(dtype) + norm.eps).rsqrt()
        bias = norm.bias.to(dtype) - scale * norm.running_mean.to(dtype)
        return weight.to(dtype) * scale.view(-1, *(1,) * (weight.dim() - 1)), bias

    def normalisation(self) -> Normalisation:
        """The layer's batch norm as the kernels take it in a training step; only for layers that have one."""
        norm: Any = self.batch_norm
        return Normalisation(norm.weight, norm.bias, norm.running_mean, norm.eps, self.statistics_group)

    @torch.no_grad()
    def follow(self, batch: Normalised) -> Tensor:
        """Update the running statistics with a batch's statistics, and return the batch's activations.

        Running statistics are the mean over all batches until the share of one batch falls to batch norm's momentum.
        """
        norm: Any = self.batch_norm
        norm.num_batches_tracked.add_(1)
        share = norm.num_batches_tracked.to(norm.weight.dtype).reciprocal().clamp_min(norm.momentum)
        for running, value in ((norm.running_mean, batch.mean), (norm.running_var, batch.variance)):
            running.lerp_(value.to(running.dtype), share)
        return batch.activations

    @torch.no_grad()
    def fold_batch_norm(self) -> None:
        """Replace batch norm by plain weights and initial potentials; see the function `fold_batch_norm`."""
        if self.batch_norm is None:
            return
        self.fold_standardisation()
        weight, bias = self.with_batch_norm(self.weight.double())
        assert bias is not None
        self.weight.copy_(weight)
        self.bias, self.batch_norm = nn.Parameter(bias.to(self.weight.dtype)), None

    # ---- chips: their grids and faults

    def put_on_grid(self, grid: Grid | None) -> None:
        """Compute on a chip's grid from now on (None: in real numbers); folds batch norm and fits units to weights."""
        if grid is not None:
            self.fold_batch_norm()
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
        """Units [C_out] of the weights, float64, in threshold heights; None if the grid rounds in another way."""
        grid = self.grid
        if self.log2_unit is None or grid is None or (grid.weight_bits, grid.per_channel) != (bits, per_channel):
            return None
        # A register must hold the threshold, which is T / unit integers high.
        smallest = 0.0 if grid.register is None else grid.time_steps * self.threshold_height / grid.register
        unit = self.log2_unit.detach().double().exp2().clamp_min(max(SMALLEST_GRID_UNIT, smallest))
        return unit.expand(len(self.weight))

    @property
    def threshold_height(self) -> float:
        """Height of the highest threshold in use; readouts also use the hidden layers' ramp, whose height is 1."""
        return max(1.0, self.threshold)

    def factors_in_training(self, weight: Tensor | None) -> Tensor | None:
        """Random factors of this pass's weight noise, shape of `weight`; None without weights or weight noise."""
        if weight is None or not self.training or self.faults is None or not self.faults.weight_noise:
            return None
        return weight_factors(weight, self.faults.weight_noise)

    def emit(self, activations: Tensor) -> Tensor:
        """The layer's spikes: disturbed by `faults` in training mode, and counted if statistics are recorded."""
        if self.training and self.faults:
            activations = spikes_in_training(activations, self.faults, self.grid)
        return self.record(activations)

    @property
    def counts_spikes(self) -> bool:
        """Whether statistics are being recorded."""
        return self.statistics is not None and self.statistics.recording

    def record(self, activations: Tensor) -> Tensor:
        """Count the spikes of `activations` if statistics are being recorded; returns `activations`."""
        if self.statistics is not None and self.counts_spikes:
            self.statistics.update(activations)
        return activations

    def size_repr(self) -> str:
        """Numbers of inputs and neurons, and a kernel's sizes, for `extra_repr`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        text = f"{self.size_repr()}, bias={self.bias is not None}"
        text += f", weight_standardisation={self.weight_gain is not None}"
        text += f", skip={self.skip}" if self.skip else ""
        text += f", average={self.average}" if self.average != 1 else ""
        return f"{text}, spike_dropout={self.spike_dropout}" if self.spike_dropout else text

    @property
    def geometry(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups as keywords of `dft_conv2d`; {} for a fully connected layer."""
        return {}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the layer's neurons for one image whose inputs to the layer have this shape."""
        raise NotImplementedError


def skip_step(size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Steps (of rows, of columns) with which a skip reads maps of `size` (channels, rows, columns) for `shape`.

    A step of k takes every k-th. () for fully connected layers (features,); None if channels or maps do not fit.
    """
    if len(size) != len(shape) or size[0] > shape[0]:
        return None
    steps = tuple(-(-before // after) for before, after in zip(size[1:], shape[1:], strict=True))
    fits = all(-(-before // k) == after for before, after, k in zip(size[1:], shape[1:], steps, strict=True))
    return steps if fits else None


def pair(value: Size) -> tuple[int, int]:
    """A size for both image dimensions, (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
