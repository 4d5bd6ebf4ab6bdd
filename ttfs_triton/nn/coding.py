"""Encoders that turn images into spikes, and conversion of activations to absolute spike times.

Layer l may fire only in the window [l, l + 1]. A spike at time t has the activation a = (l + 1) − t:
1 fires at the window's start, small values fire late, 0 is silent. `inf`, for "no spike", exists in spike times only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.nn.faults import Faults, spikes_in_training
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.integers import straight_through
from ttfs_triton.nn.layers import DFTConv2d, FiringLayer
from ttfs_triton.nn.sizes import Size
from ttfs_triton.nn.weighted import LayerOptions, WeightedConv2d, spelled_out

TWO_PHASE = Neuron(psp_persistence=0.0)  # a clamped ReLU: fires 1 − A after the window's start

ROUNDING = 1e-2
"""How far rounded pixels may lie outside [0, 1] without an error."""


def activation_to_spike_time(activation: Tensor, layer: int) -> Tensor:
    """Absolute spike times of a layer's activations: t = l + 1 − a, inf for silent neurons.

    Args:
        activation: any shape, in [0, 1].
        layer: l, 0 for the encoder, whose window starts at time 0.
    Returns:
        Spike times, shape and dtype of `activation`.
    Raises:
        ValueError: activations outside [0, 1], or a negative layer.
    """
    if layer < 0:
        raise ValueError(f"activation_to_spike_time: layer must be at least 0; got {layer}.")
    if not bool(((activation >= 0) & (activation <= 1)).all()):
        raise ValueError(
            "activation_to_spike_time: activation must be in [0, 1]; got values from "
            f"{activation.min().item():.6g} to {activation.max().item():.6g}. Membrane potentials are not activations."
        )
    return torch.where(activation > 0, layer + 1 - activation, torch.inf)


class LatencyEncoder(nn.Module):
    """Encoder in which brighter pixels fire earlier: activations are the pixels themselves, and 0 is silent.

    Input: floating point in [0, 1], any shape. Output: activations in [0, 1], same shape and dtype. Activations of
    `ttfs_triton.data.events` pass through unchanged.

    On a CPU, the values of each batch are checked; on a GPU those of the first batch in evaluation mode, so that no
    training step waits. All batches are clamped to [0, 1].

    Raises:
        ValueError: a checked batch has values outside [0, 1], or NaN.
        TypeError: the images are integers.
    Source: Wei et al., ICCV 2023, Eq. 1.
    Example:
        >>> pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
        >>> LatencyEncoder()(pixels / 255)
        tensor([[0.0000, 0.2000, 1.0000]])
    """

    kind = "latency"

    def __init__(self) -> None:
        super().__init__()
        self._checked = False
        self.grid: Grid | None = None
        self.faults: Faults | None = None

    def put_on_grid(self, grid: Grid | None) -> None:
        """Round spike times to a chip's time stamps from now on; None: leave them unrounded."""
        self.grid = grid

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the spikes for one image: the image's own."""
        return shape

    def unrounded(self, x: Tensor) -> Tensor:
        """Activations of images before rounding to a grid, and without faults."""
        if not x.is_floating_point():
            raise TypeError(
                f"LatencyEncoder: images must be floating point in [0, 1]; got {x.dtype}. Divide 8-bit pixels by 255."
            )
        if self._can_check(x):
            low, high = (value.item() for value in x.detach().aminmax())
            if not (-ROUNDING <= low and high <= 1 + ROUNDING):
                raise ValueError(
                    f"LatencyEncoder: images must be in [0, 1]; got {low:g} to {high:g}. Scale them, without Normalize."
                )
            self._checked = True
        return x.clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        activations = self.unrounded(x)
        if self.grid is not None:
            activations = straight_through(activations, self.grid.clock.stamped(activations.detach()))
        if self.training and self.faults:
            return spikes_in_training(activations, self.faults, self.grid, neurons=False)
        return activations

    def _can_check(self, x: Tensor) -> bool:
        """Whether to check this batch: on a GPU only the first, and only where reading values does not stall it."""
        done = self._checked and x.device.type != "cpu"
        if done or x.device.type == "meta" or x.numel() == 0 or torch.compiler.is_compiling():
            return False
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        return x.device.type == "cpu" or not self.training


class _NormalisedImages(nn.Module):
    """Base of encoders that normalise images: mean and std are part of the configuration, not of the state dict.

    Attributes:
        mean, std: mean and standard deviation per channel, [in_channels, 1, 1], in units of the images.
    """

    if TYPE_CHECKING:  # see `WeightedLayer`
        mean: Tensor
        std: Tensor

    def take_statistics(self, weight: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Set mean and standard deviation per channel, by default 0 and 1, on the weight's device and in its dtype."""
        kind, in_channels = type(self).__name__, weight.shape[1]
        for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            values = [default] * in_channels if values is None else list(values)
            if len(values) != in_channels:
                raise ValueError(f"{kind}: {name} must have one entry per input channel ({in_channels}); got {values}.")
            buffer = torch.tensor(values, device=weight.device, dtype=weight.dtype)
            self.register_buffer(name, buffer.view(-1, 1, 1), persistent=False)
        if std is not None and not min(std) > 0:
            raise ValueError(f"{kind}: std must be positive; got {list(std)}.")

    def normalise(self, images: Tensor) -> Tensor:
        """Inputs of the synapses: images [N, in_channels, height, width] in standard deviations from the mean."""
        return (images - self.mean) / self.std


@spelled_out
class AnalogEncoder(_NormalisedImages, FiringLayer, WeightedConv2d):
    """First hidden layer of the published CIFAR networks: an analog convolution whose clamped outputs are spikes.

    The image is normalised, (x − mean) / std, convolved (padding is the mean image) and clamped to [0, 1].
    Input [N, in_channels, height, width], output activations [N, out_channels, ...], channels last.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as in `torch.nn.Conv2d`.
        mean, std: mean and standard deviation per input channel, in units of the input; None: 0 and 1. They belong to
            the configuration, not to the state dict.
        batch_norm, bias, initial_gain, weight_standardisation, device, dtype: as in `DFTConv2d`.
    Raises:
        ValueError: mean or std do not have one entry per input channel, or std is not positive.
    """

    kind = "analog"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, **options)
        self.take_statistics(self.weight, mean, std)

    def forward(self, x: Tensor, *, skip: Tensor | None = None) -> Tensor:
        return self.spikes(self.normalise(x), skip, neuron=TWO_PHASE, backend="torch")


@spelled_out
class SignedEncoder(_NormalisedImages, DFTConv2d):
    """First hidden layer of the networks that the paper's training script makes: spiking neurons that read pixels.

    A normalised pixel x, of either sign, adds w·x to the potential at the window's start; if it is brighter than the
    mean, it adds σ·w to the slope: A = Σ w·x + b, W = σ·Σ w·[x > 0]. As in `AnalogEncoder`, inputs are real numbers.
    Input [N, in_channels, height, width], output activations [N, out_channels, ...], channels last.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, neuron, backend: as in `DFTConv2d`.
        mean, std: as in `AnalogEncoder`.
        batch_norm, bias, initial_gain, weight_standardisation, device, dtype: as in `DFTConv2d`.
    Raises:
        ValueError: as `AnalogEncoder`.
    Source: Wei et al., ICCV 2023, published code, models/proxy_ann_model.py.
    """

    kind = "analog"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        neuron: Neuron = Neuron(),
        backend: str = "auto",
        **options: Unpack[LayerOptions],
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding)
        super().__init__(*sizes, neuron=neuron, backend=backend, **options)
        self.take_statistics(self.weight, mean, std)

    def forward(self, x: Tensor, *, skip: Tensor | None = None) -> Tensor:
        return super().forward(self.normalise(x), skip=skip)
