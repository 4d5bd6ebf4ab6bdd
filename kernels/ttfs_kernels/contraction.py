"""The contractions of a convolution and of its gradients, on a CPU with the maps of several images side by side.

oneDNN computes a row of the output map at a time. Where rows are short, its matrix products are small, and where a
kernel has more weights than the second-level cache holds, all weights are streamed for every row. So narrow maps are
laid side by side, with columns of zeros between them, and contracted as one wide map; outputs at the seams are dropped.
Measured on one core (AVX-512, AMX), forward and both gradients together, kernel 3, 128 images: in bfloat16 2.3 times as
fast for 512 channels on 7×7 maps, 7 times on 3×3 and 2×2 maps, 1.3 times for 256 channels on 7×7 maps; in float32 1.2
times for 512 channels on 4×4 maps, 2.5 times on 2×2 maps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Side by side if a neuron of the output map has more weights than this. Measured, as are the next two.
WEIGHTS_PER_NEURON = {torch.float32: 1 << 16, torch.bfloat16: 1 << 15, torch.float16: 1 << 15}
# In 16 bits the gradient of the weight gains on all maps of at most so many columns, with at least so many weights.
NARROW, MANY_WEIGHTS = 8, 1 << 15
ROW = 64  # columns of maps side by side, at most


class Geometry(NamedTuple):
    """How a kernel moves over a map; pairs are (rows, columns)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def map_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the output map."""
        rows, columns = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return rows, columns


class Strip(NamedTuple):
    """Maps of several images in one row.

    Attributes:
        images: maps in a row.
        pitch: columns of the input from one map to the next; a multiple of the stride.
        width: columns of the whole input: those of all maps, and zeros that the last outputs need.
        out_pitch, out_width: likewise of the output.
    """

    images: int
    pitch: int
    width: int
    out_pitch: int
    out_width: int


def contract(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """[N, C_out, P, Q] channels-last from x [N, C_in, H, W] and weight [C_out, C_in / groups, R, S].

    Without geometry, here and in both gradients, a fully connected layer: [N, C_out] from [N, C_in] and [C_out, C_in].
    """
    if geometry is None:
        return F.linear(x, weight, bias)
    strip = strip_of(x, weight, geometry)
    if strip is None:
        y = F.conv2d(x, weight, bias, *geometry)
        return y.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(_side_by_side(x, strip.images, strip.pitch, strip.width), weight, bias, *geometry)
    return _apart(y, strip.images, strip.out_pitch, geometry.map_size(x.shape[2:], weight.shape[2:])[1])


def gradient_of_input(h: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    """Shape of x, channels-last, from h [N, C_out, P, Q]; the values of x are not used."""
    if geometry is None:
        return h @ weight
    strip, wanted = strip_of(x, weight, geometry), [True, False, False]
    if strip is None:
        grad_x = _convolution_backward(h, x, weight, geometry, wanted)[0]
        return grad_x.contiguous(memory_format=torch.channels_last)
    h = _side_by_side(h, strip.images, strip.out_pitch, strip.out_width)
    wide = x.new_empty(len(h), *x.shape[1:3], strip.width)
    grad_x = _convolution_backward(h, wide, weight, geometry, wanted)[0]
    return _apart(grad_x, strip.images, strip.pitch, x.shape[3])


def gradient_of_weight(h: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    """Shape of weight, channels-last, from h [N, C_out, P, Q]; the values of weight are not used."""
    if geometry is None:
        return h.t() @ x
    strip = strip_of(x, weight, geometry, of_weight=True)
    if strip is not None:
        h = _side_by_side(h, strip.images, strip.out_pitch, strip.out_width)
        x = _side_by_side(x, strip.images, strip.pitch, strip.width)
    grad_weight = _convolution_backward(h, x, weight, geometry, [False, True, False])[1]
    return grad_weight.contiguous(memory_format=torch.channels_last)


def strip_of(x: Tensor, weight: Tensor, geometry: Geometry, *, of_weight: bool = False) -> Strip | None:
    """How the maps of x are laid side by side; None: they are not. Shapes and dtype alone decide.

    Args:
        of_weight: for the gradient of the weight.
    """
    if x.device.type != "cpu" or geometry.groups != 1 or x.dtype not in WEIGHTS_PER_NEURON:
        return None
    rows, columns = geometry.map_size(x.shape[2:], weight.shape[2:])
    gains = weight.numel() > WEIGHTS_PER_NEURON[x.dtype] * rows * columns
    if of_weight and x.dtype.itemsize == 2:
        gains = gains or (columns <= NARROW and weight.numel() >= MANY_WEIGHTS)
    stride, padding = geometry.stride[1], geometry.padding[1]
    out_pitch = max(-(-(x.shape[3] + padding) // stride), columns)
    images = max((n for n in range(1, ROW // out_pitch + 1) if len(x) % n == 0), default=1)
    if not gains or images == 1 or not len(x):
        return None
    pitch, span = out_pitch * stride, geometry.dilation[1] * (weight.shape[3] - 1) + 1
    width = max(images * pitch, (images * out_pitch - 1) * stride + span - 2 * padding)
    return Strip(images, pitch, width, out_pitch, (width + 2 * padding - span) // stride + 1)


def _side_by_side(maps: Tensor, images: int, pitch: int, width: int) -> Tensor:
    """[N, C, H, W] → [N / images, C, H, width] channels-last, zeros between the maps."""
    wide = maps.new_zeros(len(maps) // images, maps.shape[2], width, maps.shape[1])
    places = wide[:, :, : images * pitch].unflatten(2, (images, pitch))[:, :, :, : maps.shape[3]]
    places.copy_(maps.permute(0, 2, 3, 1).unflatten(0, (-1, images)).transpose(1, 2))
    return wide.permute(0, 3, 1, 2)


def _apart(wide: Tensor, images: int, pitch: int, columns: int) -> Tensor:
    """The inverse of `_side_by_side`: [n, C, H, width] → [n · images, C, H, columns], channels-last."""
    places = wide.permute(0, 2, 3, 1)[:, :, : images * pitch].unflatten(2, (images, pitch))[:, :, :, :columns]
    return places.transpose(1, 2).flatten(0, 1).contiguous().permute(0, 3, 1, 2)


def _convolution_backward(h: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]):
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        h, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
