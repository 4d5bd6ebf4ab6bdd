"""The contractions of a convolution and of its gradients, each in the fastest of three ways.

The first way is oneDNN's convolution, which computes one row of the output map at a time. If rows are short, its matrix
products are small; if the weights exceed the second-level cache, they are all streamed for every row. Two other ways
are faster on a CPU, although they have to copy operands first. Measured on one core (AVX-512, AMX), 3×3 kernels:

- The smallest maps, as in the last blocks of a VGG, use matrix products over columns: each receptive field is written
  out as a row. Forward and both gradients, 512 channels, 32 images: 1.4 times as fast in float32 and 3.5 times in
  bfloat16 on 4×4 maps, 3 and 11 times on 2×2 maps.
- Narrow maps in 16 bits are laid side by side: several images form one wide map with columns of zeros between them,
  and outputs at the seams are dropped. Gradient of the weight, 256 channels, 8×8 maps: two thirds of the time.
"""

import operator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels.checks import Geometry

# A CPU uses columns if output maps have at most LARGEST_MAP neurons, and more weights per neuron than given here.
# Columns of larger maps leave the caches; with fewer weights, writing columns costs more than it saves. Measured.
LARGEST_MAP = 16
WEIGHTS_PER_NEURON = {torch.float32: 1 << 16, torch.bfloat16: 1 << 13, torch.float16: 1 << 13}

# Output maps of at most NARROW_MAP columns are laid side by side, in these dtypes, if the layer has enough weights:
# MANY_WEIGHTS for the gradient of the weight, MANY_WEIGHTS per output neuron for the other passes. Measured.
NARROW_MAP, SIDE_BY_SIDE = 8, (torch.bfloat16, torch.float16)
MANY_WEIGHTS = 1 << 15
ROW = 64  # largest number of output columns in a row of maps


class Strip(NamedTuple):
    """Maps of several images side by side.

    Attributes:
        images: number of maps in a row.
        pitch: input columns from one map to the next; a multiple of the stride.
        width: input columns of the whole row: all maps, and zeros that the last outputs read.
        out_pitch, out_width: the same for the output.
    """

    images: int
    pitch: int
    width: int
    out_pitch: int
    out_width: int


def contract(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """Convolve x [N, C_in, H, W] with weight [C_out, C_in / groups, R, S]: [N, C_out, P, Q], channels-last.

    Without geometry, here and in both gradients, the layer is fully connected: x [N, C_in], weight [C_out, C_in].
    """
    if geometry is None:
        return F.linear(x, weight, bias)
    rows, columns = geometry.map_size(x.shape[2:], weight.shape[2:])
    if not columns_are_faster(x, weight, geometry):
        strip = strip_of(x, weight, geometry)
        if strip is not None:
            y = F.conv2d(_side_by_side(x, strip.images, strip.pitch, strip.width), weight, bias, *geometry)
            return _apart(y, strip.images, strip.out_pitch, columns)
        y = F.conv2d(x, weight, bias, *geometry)
        return y.contiguous(memory_format=torch.channels_last)
    y = F.linear(_columns(x, weight, geometry), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return y.view(x.shape[0], rows, columns, weight.shape[0]).permute(0, 3, 1, 2)


def gradient_of_input(h: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    """Gradient of x, channels-last, from the output's gradient h [N, C_out, P, Q]; the values of x are not used."""
    if geometry is None:
        return h @ weight
    if not columns_are_faster(x, weight, geometry):
        strip, wanted = strip_of(x, weight, geometry), [True, False, False]
        if strip is not None:
            h = _side_by_side(h, strip.images, strip.out_pitch, strip.out_width)
            wide = x.new_empty(len(h), *x.shape[1:3], strip.width)
            grad_x = _convolution_backward(h, wide, weight, geometry, wanted)[0]
            return _apart(grad_x, strip.images, strip.pitch, x.shape[3])
        grad_x = _convolution_backward(h, x, weight, geometry, wanted)[0]
        return grad_x.contiguous(memory_format=torch.channels_last)
    padding = [span - 1 - pad for span, pad in zip(_spans(weight, geometry), geometry.padding, strict=True)]
    # Convolve h with the taps in reverse order: the products that meet in one input are summed inside, in float32.
    batch, channels, height, width = x.shape
    rows, columns = (reversed(range(taps)) for taps in weight.shape[2:])
    turned = torch.stack([weight[:, :, r, s] for r, s in product(rows, columns)]).flatten(0, 1)
    grad_x = _columns(h, weight, geometry._replace(padding=padding)) @ turned
    return grad_x.view(batch, height, width, channels).permute(0, 3, 1, 2)


def gradient_of_weight(h: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    """Gradient of weight, channels-last, from the output's gradient h [N, C_out, P, Q]; weight gives its shape only."""
    if geometry is None:
        return h.t() @ x
    if not columns_are_faster(x, weight, geometry):
        strip = strip_of(x, weight, geometry, of_weight=True)
        if strip is not None:
            h = _side_by_side(h, strip.images, strip.out_pitch, strip.out_width)
            x = _side_by_side(x, strip.images, strip.pitch, strip.width)
        grad_weight = _convolution_backward(h, x, weight, geometry, [False, True, False])[1]
        return grad_weight.contiguous(memory_format=torch.channels_last)
    outputs, channels, rows, columns = weight.shape
    grad_weight = h.permute(0, 2, 3, 1).flatten(0, 2).t() @ _columns(x, weight, geometry)
    return grad_weight.view(outputs, rows, columns, channels).permute(0, 3, 1, 2)


def columns_are_faster(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether to use columns: decided by device, shape and dtype alone, so the same in all three passes."""
    if x.device.type != "cpu" or geometry.groups != 1 or x.dtype not in WEIGHTS_PER_NEURON:
        return False
    if max(geometry.stride) > 1 or any(map(operator.ge, geometry.padding, _spans(weight, geometry))):
        return False  # the gradient of x would need columns of h with zeros in between, or of h cropped
    rows, columns = geometry.map_size(x.shape[2:], weight.shape[2:])
    neurons = rows * columns
    return neurons <= LARGEST_MAP and weight.numel() > WEIGHTS_PER_NEURON[x.dtype] * neurons


def strip_of(x: Tensor, weight: Tensor, geometry: Geometry, *, of_weight: bool = False) -> Strip | None:
    """Layout of the maps of x side by side, or None to leave them apart; `of_weight`: for the weight's gradient."""
    rows, columns = geometry.map_size(x.shape[2:], weight.shape[2:])
    if x.device.type != "cpu" or geometry.groups != 1 or x.dtype not in SIDE_BY_SIDE or columns > NARROW_MAP:
        return None
    stride, padding = geometry.stride[1], geometry.padding[1]
    out_pitch = max(-(-(x.shape[3] + padding) // stride), columns)
    images = ROW // out_pitch
    while images > 1 and len(x) % images:
        images -= 1
    if images < 2 or len(x) == 0 or weight.numel() < MANY_WEIGHTS * (1 if of_weight else rows * columns):
        return None
    pitch, span = out_pitch * stride, _spans(weight, geometry)[1]
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


def _columns(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Receptive fields as the rows of a matrix [N·P·Q, R·S·C_in]."""
    (top, left), spans = geometry.padding, _spans(weight, geometry)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
    fields = padded.unfold(1, spans[0], geometry.stride[0]).unfold(2, spans[1], geometry.stride[1])
    fields = fields[..., :: geometry.dilation[0], :: geometry.dilation[1]].permute(0, 1, 2, 4, 5, 3)
    return fields.flatten(3).flatten(0, 2)


def _spans(weight: Tensor, geometry: Geometry) -> list[int]:
    """Rows and columns of a receptive field."""
    return [step * (taps - 1) + 1 for taps, step in zip(weight.shape[2:], geometry.dilation, strict=True)]
