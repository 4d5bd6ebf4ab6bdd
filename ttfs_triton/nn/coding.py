"""Encoders, which turn images into spikes; whitening of their weights; activations as absolute spike times.

Layer l may fire only in the window [l, l + 1]. A spike at time t has the activation a = (l + 1) − t:
1 fires at the window's start, small values fire late, 0 is silent. Only spike times have `inf`, for "no spike".
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.nn.faults import Faults, spikes_in_training
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.integers import straight_through
from ttfs_triton.nn.layers import CLAMPED, DFTConv2d
from ttfs_triton.nn.weighted import Size

ROUNDING = 1e-2  # how far rounded pixels may lie outside [0, 1] without an error

# Added to the eigenvalues, which are variances of components, so that noise is not whitened (Jordan 2024, 3.2).
SMALLEST_EIGENVALUE = 5e-4


def activation_to_spike_time(activation: Tensor, layer: int) -> Tensor:
    """Absolute spike times of a layer's activations: t = l + 1 − a, inf for silent neurons.

    Args:
        activation: any shape, in [0, 1].
        layer: l, 0 for the encoder, whose window starts at time 0.
    Returns:
        Spike times, shape and dtype of `activation`.
    Raises:
        ValueError: activations outside [0, 1].
    """
    if not bool(((activation >= 0) & (activation <= 1)).all()):
        raise ValueError(
            "activation_to_spike_time: activation must be in [0, 1]; got values from "
            f"{activation.min().item():.6g} to {activation.max().item():.6g}. Membrane potentials are not activations."
        )
    return torch.where(activation > 0, layer + 1 - activation, torch.inf)


class LatencyEncoder(nn.Module):
    """Encoder in which bright pixels fire early: activations are the pixels themselves, and 0 is silent.

    Input: floating point in [0, 1], any shape. Output: activations in [0, 1], same shape and dtype. Activations of
    `ttfs_triton.data.events` pass through unchanged.

    On a CPU, the values of every batch are checked; on a GPU, only those of the first batch in evaluation mode, so that
    no training step waits. All batches are clamped to [0, 1].

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
    grid: Grid | None = None
    faults: Faults | None = None
    _checked = False

    def put_on_grid(self, grid: Grid | None) -> None:
        """Round spike times to a chip's time stamps from now on; with None, do not round them."""
        self.grid = grid

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the spikes for one image: that of the image."""
        return shape

    def unrounded(self, x: Tensor) -> Tensor:
        """Activations of images before rounding to a grid, and without faults."""
        refuse_unscaled(self, x)
        return x.clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        activations = self.unrounded(x)
        if self.grid is not None:
            activations = straight_through(activations, self.grid.clock.stamped(activations.detach()))
        if self.training and self.faults:
            return spikes_in_training(activations, self.faults, self.grid, neurons=False)
        return activations


def refuse_unscaled(encoder: "LatencyEncoder | AnalogEncoder", x: Tensor, *, bounded: bool = True) -> None:
    """Refuse integers and, if `bounded`, pixels outside [0, 1]; a GPU's first batch in evaluation mode is checked."""
    name = type(encoder).__name__
    if not x.is_floating_point():
        raise TypeError(f"{name}: images must be floating point in [0, 1]; got {x.dtype}. Divide 8-bit pixels by 255.")
    if not bounded or x.is_meta or x.numel() == 0 or torch.compiler.is_compiling():
        return
    passed = encoder._checked or encoder.training or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    if x.device.type == "cpu" or not passed:
        low, high = (value.item() for value in x.detach().aminmax())
        if not (-ROUNDING <= low and high <= 1 + ROUNDING):
            got = f"{low:g} to {high:g}"
            raise ValueError(f"{name}: images must be in [0, 1]; got {got}. Scale them, without Normalize.")
        encoder._checked = True


class AnalogEncoder(DFTConv2d):
    """First hidden layer of the published CIFAR networks: a convolution of pixels, whose clamped outputs are spikes.

    The image is normalised, (x − mean) / std, and convolved; padded pixels equal the mean. A = Σ w·x + b, clamped to
    [0, 1], is the activation. With a `neuron`, pixels that are brighter than the mean also add to the slope: see
    `SignedEncoder`. Input [N, in_channels, height, width], output activations [N, out_channels, ...], channels last.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in `torch.nn.Conv2d`.
        mean, std: mean and standard deviation per input channel, in units of the input; None: 0 and 1. They belong to
            the configuration, not to the state dict. If all means are in (0, 1), images must be in [0, 1].
        neuron: neuron model. Default: None, potentials without slope; in a `SignedEncoder`, Neuron().
        backend: as in `DFTConv2d`; used only with a `neuron`.
        batch_norm, bias, initial_gain, weight_standardisation, device, dtype: as in `DFTConv2d`.
    Attributes:
        mean, std: buffers [in_channels, 1, 1].
    Raises:
        ValueError: as `DFTConv2d`; mean or std do not have one entry per input channel, or std is not positive;
            images are outside of [0, 1].
        TypeError: images are integers.
    """

    kind = "analog"
    _checked = False
    _default_neuron: ClassVar[Neuron | None] = None
    if TYPE_CHECKING:  # see `WeightedLayer`
        mean: Tensor
        std: Tensor

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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        neuron: Neuron | None = None,
        backend: str = "auto",
        bias: bool = True,
        weight_standardisation: bool | None = None,
        batch_norm: bool = False,
        initial_gain: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        neuron = self._default_neuron if neuron is None else neuron
        super().__init__(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation, groups),
            neuron=CLAMPED if neuron is None else neuron,
            backend=backend,
            bias=bias,
            weight_standardisation=weight_standardisation,
            batch_norm=batch_norm,
            initial_gain=initial_gain,
            device=device,
            dtype=dtype,
        )
        self.neuron, self._given = neuron, dict[str, list[float]]()
        for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            values = [default] * in_channels if values is None else list(values)
            if len(values) != in_channels or (name == "std" and not min(values) > 0):
                rule = f"have one entry per input channel ({in_channels}){', all positive' * (name == 'std')}"
                raise ValueError(f"{type(self).__name__}: {name} must {rule}; got {values}.")
            where = "cpu" if self.weight.is_meta else self.weight.device  # files of weights do not hold these values
            buffer = torch.tensor(values, device=where, dtype=self.weight.dtype)
            self.register_buffer(name, buffer.view(-1, 1, 1), persistent=False)
            self._given[name] = values

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name, buffer, default in (("mean", self.mean.flatten(), 0), ("std", self.std.flatten(), 1)):
            given = buffer.new_tensor(self._given[name], dtype=torch.float32)
            values = given if torch.equal(given.to(buffer), buffer) else buffer.float()  # `half` rounds the buffer
            if (values != default).any():  # networks are compared by this text: weights fit these values only
                text += f", {name}=[{', '.join(map(str, values.cpu().numpy()))}]"
        return text

    def normalise(self, images: Tensor) -> Tensor:
        """Inputs of the synapses: images [N, in_channels, height, width] in standard deviations from the mean."""
        refuse_unscaled(self, images, bounded=all(0 < mean < 1 for mean in self._given["mean"]))
        return (images - self.mean) / self.std

    def forward(self, x: Tensor, *, skip: Tensor | None = None) -> Tensor:
        return super().forward(self.normalise(x), skip=skip)


class SignedEncoder(AnalogEncoder):
    """First hidden layer of the networks that the paper's training script makes: an `AnalogEncoder` with a neuron.

    A normalised pixel x, of either sign, adds w·x to the potential at the window's start. A pixel brighter than the
    mean also adds σ·w to the slope: A = Σ w·x + b, W = σ·Σ w·[x > 0]. As in `AnalogEncoder`, inputs are real numbers.

    Args and errors are those of `AnalogEncoder`; the default of `neuron` is Neuron().

    Source: Wei et al., ICCV 2023, published code, models/proxy_ann_model.py.
    """

    _default_neuron = Neuron()


@torch.no_grad()
def whiten(encoder: AnalogEncoder, images: Tensor) -> None:
    """Give an encoder weights that whiten patches of images: uncorrelated outputs, of variance 1 before the gain.

    A principal component of the patches takes two channels, one per sign, since neurons pass on only positive values.
    Components are in order of falling eigenvalue. Weights are multiplied by the initial gain; initial potentials are 0.

    Args:
        encoder: an encoder with two channels per value of a patch, without weight standardisation and batch norm.
        images: input of the encoder, [N, C, height, width].
    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.2.
    """
    images, (rows, columns) = encoder.normalise(images), encoder.kernel_size
    patches = images.double().unfold(2, rows, 1).unfold(3, columns, 1)
    patches = rearrange(patches, "n c h w rows columns -> (n h w) (c rows columns)")
    eigenvalues, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    components = (vectors / (eigenvalues + SMALLEST_EIGENVALUE).sqrt()).T.flip(0)
    components = rearrange(components, "k (c rows columns) -> k c rows columns", rows=rows, columns=columns)
    encoder.weight.copy_(encoder.initial_gain * torch.cat([components, -components]).float())
    if encoder.bias is not None:
        encoder.bias.zero_()
