"""The PyTorch backend: every pass of a layer has one stacked contraction, computed in the fastest of three ways.

A = Σ w·x and W = Σ w·σ[x > 0] have the same weights. So activations x and their mask are stacked along the batch, and
contracted in one call, which reads (and, on a CPU, reorders) weights once. `rule` has the passes over neurons.

Operands are x, weight, γ, initial potential or β, skip and skip weight; without batch norm, γ is None.

The first way is oneDNN's convolution, which computes one row of the output map at a time: short rows make small matrix
products, and weights beyond the second-level cache are streamed for every row. Two other ways are faster on CPUs with
AMX, although they copy operands first (measured on one core, 3×3 kernels). Without AMX (AMD Zen 4), columns pay on 2×2
maps alone, and maps side by side never: a pass over 4×4 maps would take up to twice as long.

- The smallest maps become matrix products: a receptive field is written out as a row ("columns" below, as in im2col).
  All passes, 512 channels: 1.4 times as fast in float32, 3.5 in bfloat16 on 4×4 maps; 3 and 11 times on 2×2 maps.
- Narrow maps in 16 bits are laid side by side: several images form one wide map with columns of zeros between them,
  and outputs at the seams are dropped. Gradient of the weight, 256 channels, 8×8 maps: two thirds of the time.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels import rule
from ttfs_kernels.checks import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import aten, is_formula, precise_dtype, run

Tensors = tuple[Tensor | None, ...]

# A CPU uses columns if an output map has at most LARGEST_MAP neurons, and the layer more than these weights per neuron.
# Columns of larger maps leave the caches; with fewer weights, writing columns costs more than it saves. Measured.
LARGEST_MAP = 16 if (AMX := torch.cpu._is_amx_tile_supported()) else 4
WEIGHTS_PER_NEURON = {torch.float32: 1 << 16, torch.bfloat16: 1 << 13, torch.float16: 1 << 13}

# A CPU lays output maps of at most NARROW_MAP columns side by side, in these dtypes, if the layer has enough weights:
# MANY_WEIGHTS for the gradient of the weight, MANY_WEIGHTS per output neuron for the other passes. Measured.
NARROW_MAP, SIDE_BY_SIDE = 8, (torch.bfloat16, torch.float16) if AMX else ()
MANY_WEIGHTS = 1 << 15
ROW = 64  # largest number of output columns in a row of maps


@dataclass(frozen=True)
class ClampedLayer:
    """A layer at σ = 0: a contraction, PyTorch's batch norm (with `epsilon`), and a clamp to [0, 1]."""

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float | None

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor, ...], Tensors]:
        x, weight, gamma, bias, skip, skip_weight = operands
        if self.epsilon is None:
            y = contract(_channels_last(x), weight, None if bias is None else bias.to(x.dtype), self.geometry)
            statistics, kept = (), ()
        else:
            maps = contract(_channels_last(x), weight, None, self.geometry)
            gamma, bias = (values.to(precise_dtype(maps.dtype)) for values in (gamma, bias))
            y, mean, inverse = torch.native_batch_norm(maps, gamma, bias, None, None, True, 0.0, self.epsilon)
            count = maps.numel() / maps.shape[1]
            unbiased = (inverse.pow(-2) - self.epsilon).clamp_min(0) * (count / (count - 1))
            statistics, kept = (mean, unbiased), (maps, gamma, mean, inverse)
        if skip is not None:
            y.addcmul_(skip, skip_weight.to(skip.dtype).view(-1, *(1,) * (skip.dim() - 2)))
        y.clamp_(0, 1)
        return (y, *statistics), (x, weight, y, skip, skip_weight, *kept)

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        x, weight, y, skip, skip_weight, *others = kept
        grad_gamma = total = None
        if is_formula(y):
            h, total = run((rule.clamp_and_bias_gradients,), to_rows(grad), to_rows(y))
            h = like_rows(h, y.shape)
        else:
            h = rule.clamp_gradient(grad, y)
            if self.epsilon is None:
                total = h.sum((0, 2, 3) if h.dim() == 4 else 0, dtype=precise_dtype(h.dtype))
        by_skip = skip_gradients(neurons_of(h, 1), skip, skip_weight, self.neuron)
        if self.epsilon is not None:
            maps, gamma, mean, inverse = others
            statistics = None, None, mean, inverse, True, self.epsilon, (True, True, True)
            h, grad_gamma, total = aten.native_batch_norm_backward(h, maps, gamma, *statistics)
            h = _channels_last(h)
        by_operands = contract_gradients(h, _channels_last(x), weight, self.neuron, None, self.geometry, needs)
        return *by_operands, grad_gamma, total if needs[3] else None, *by_skip


@dataclass(frozen=True)
class TorchLayer:
    """A layer at σ > 0 without batch norm. It keeps the stacked input and the derivatives for the backward pass."""

    geometry: Geometry | None
    neuron: Neuron

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor], Tensors]:
        x, weight, _, bias, skip, skip_weight = operands
        sigma = rule.factor(self.neuron, x)
        stacked = stack_mask(x, sigma)
        maps = contract(stacked, weight, None, self.geometry)
        tensors = neurons_of(maps, 2), bias, delayed_of(skip), skip_weight, rule.scalar(sigma, x)
        activations, *derivatives = run((rule.firing, self.neuron, with_derivatives), *tensors)
        kept = like_rows(derivatives[0], maps.shape) if with_derivatives else None
        return (like_rows(activations, (len(x), *maps.shape[1:])),), (stacked, kept, weight, skip, skip_weight)

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        stacked, derivatives, weight, skip, skip_weight = kept
        pair = to_rows(derivatives).view(2, -1, derivatives.shape[1])
        h, grad_bias = run((rule.potential_and_bias_gradients,), pair, to_rows(grad))
        h, sigma = like_rows(h, derivatives.shape), rule.factor(self.neuron, stacked)
        by_operands = contract_gradients(h, stacked, weight, self.neuron, sigma, self.geometry, needs)
        by_skip = skip_gradients(neurons_of(h, 2), skip, skip_weight, self.neuron)
        return *by_operands, None, grad_bias if needs[3] else None, *by_skip


@dataclass(frozen=True)
class NormalisedLayer:
    """A layer with batch norm; its backward pass evaluates the rule again. Last three fields: see `Normalisation`."""

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float
    group: ProcessGroup | None
    estimate: Tensor

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor, ...], Tensors]:
        x, weight, gamma, beta, skip, skip_weight = operands
        inputs = stack_mask(x, 1.0) if self.neuron.psp_persistence > 0 else x
        maps = contract(inputs, weight, None, self.geometry)
        potentials, estimate = neurons_of(maps, len(maps) // len(x)), self.estimate
        sigma = rule.persistence(self.neuron, x)
        count = torch.full((1,), float(potentials[0, ..., 0].numel()), device=x.device, dtype=sigma.dtype)
        if torch.compiler.is_compiling():
            # AOTAutograd's backward pass would recompute from the running mean, which has been updated by then.
            estimate = torch.zeros_like(estimate)
            if self.group is None:
                estimate = rule.end_sums(potentials, sigma, estimate)[0] / count
        sums = torch.stack(run((rule.end_sums,), potentials, sigma, estimate))
        if self.group is not None:
            joined = torch.cat([sums.flatten(), count])
            torch.distributed.all_reduce(joined, group=self.group)
            sums, count = joined[:-1].view_as(sums), joined[-1:]
        offset, square = sums / count
        mean, variance = estimate + offset, (square - offset.square()).clamp_min(0)
        inverse = (variance + self.epsilon).rsqrt()
        affine = gamma * inverse, beta - gamma * inverse * mean
        activations = run((rule.normalised_firing,), potentials, sigma, *affine, delayed_of(skip), skip_weight)
        kept = inputs, weight, potentials, gamma, beta, mean, inverse, count, skip, skip_weight
        y = like_rows(activations, (len(x), *maps.shape[1:]))
        return (y, mean, variance * (count / (count - 1))), kept

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        inputs, weight, potentials, gamma, beta, mean, inverse, count, skip, skip_weight = kept
        affine = gamma * inverse, beta - gamma * inverse * mean
        sigma = rule.persistence(self.neuron, inputs)
        others = mean, sigma, *affine, delayed_of(skip), skip_weight
        rows = neurons_of(grad.to(potentials.dtype), 1)[0]
        h, grad_beta, by_scale = run((rule.normalised_gradients, self.neuron), potentials, rows, *others)
        grad_gamma = by_scale * inverse
        by_skip = skip_gradients(h.expand_as(potentials), skip, skip_weight, self.neuron)
        sums = torch.stack([grad_beta, grad_gamma])
        if self.group is not None:
            torch.distributed.all_reduce(sums, group=self.group)
        by_mean, by_variance = sums / count
        shared = len(h) < len(potentials)  # A' and W' have the same gradient
        h = run((rule.unnormalised_gradients,), h, potentials, sigma, affine[0], mean, by_mean, by_variance * inverse)
        h = like_rows(h, (len(h) * len(grad), *grad.shape[1:]))
        if not shared:  # h includes σ
            sigma = 1.0 if len(potentials) == 2 else None
        by_operands = contract_gradients(h, inputs, weight, self.neuron, sigma, self.geometry, needs)
        return *by_operands, grad_gamma, grad_beta, *by_skip


def contract_gradients(
    h: Tensor, x: Tensor, weight: Tensor, neuron: Neuron, sigma: Any, geometry: Geometry | None, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and the weight; None if not needed.

    With `sigma`, x is stacked with its mask, which has `sigma` times the gradient of W; h is [dA ; dW], or dA if equal.
    """
    grad_x = grad_weight = None
    shared = len(h) < len(x)
    if needs[0]:
        # With a surrogate, one contraction gives both gradients: those of the activations and of the mask.
        rows = len(h) if sigma is None or shared or neuron.surrogate_width else len(h) // 2
        grad_x = gradient_of_input(h[:rows], x[:rows], weight, geometry)
        if sigma is not None:
            grad_x = input_gradient(grad_x, x[: len(x) // 2], neuron, sigma)
    if needs[1]:
        if sigma is not None and shared:
            values, mask = x.tensor_split(2)
            x = torch.addcmul(values, mask, sigma)
        grad_weight = gradient_of_weight(h, x, weight, geometry)
    return grad_x, grad_weight


def skip_gradients(
    h: Tensor, skip: Tensor | None, skip_weight: Tensor | None, neuron: Neuron
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the skip's delayed spikes and of their weights, of which a neuron has one.

    `h` has the gradients of A and W, [2, N, positions, C]; at σ = 0 that of A alone, [1, N, positions, C].
    """
    if skip is None or skip_weight is None:
        return None, None
    formula = rule.skip_gradient, neuron
    grad_skip, grad_weight = run(formula, h, delayed_of(skip), skip_weight, rule.persistence(neuron, h))
    return like_rows(grad_skip, skip.shape), grad_weight


def stack_mask(x: Tensor, sigma: Tensor | float) -> Tensor:
    """x and its mask, stacked along the first dimension: [x ; σ·[x > 0]]; maps are returned channels-last."""
    if is_formula(x):
        stacked = run((rule.with_mask,), to_rows(x).flatten(), rule.scalar(sigma, x))
        return like_rows(stacked, (2 * len(x), *x.shape[1:]))
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    stacked = torch.empty(2 * len(x), *x.shape[1:], dtype=x.dtype, device=x.device, memory_format=layout)
    values, mask = stacked.tensor_split(2)
    values.copy_(x)
    torch.gt(x, 0, out=mask)  # floats, since comparisons that write booleans are not vectorised on a CPU
    if isinstance(sigma, Tensor) or sigma != 1.0:
        mask.mul_(sigma)
    return stacked


def input_gradient(grad_x: Tensor, x: Tensor, neuron: Neuron, sigma: Tensor | float) -> Tensor:
    """The gradient of a layer's input x, from the contraction's result `grad_x`: zero where x is silent.

    With a surrogate, the mask's gradient is added: the second half of `grad_x`, or `grad_x` itself, as long as x.
    """
    by_activation, by_mask = grad_x.tensor_split(2) if len(grad_x) > len(x) else (grad_x, grad_x)
    operands = (neurons_of(tensor, 1) for tensor in (by_activation, by_mask, x))
    return like_rows(run((rule.input_gradient, neuron), *operands, rule.scalar(sigma, x)), x.shape)


def neurons_of(maps: Tensor, pairs: int) -> Tensor:
    """[pairs · N, C, P, Q] → [pairs, N, P·Q, C], a view of channels-last maps; [pairs · N, C] → [pairs, N, 1, C]."""
    positions = maps.shape[2] * maps.shape[3] if maps.dim() == 4 else 1
    return to_rows(maps).view(pairs, len(maps) // pairs, positions, maps.shape[1])


def delayed_of(skip: Tensor | None) -> Tensor | None:
    """Delayed spikes [N, C, P, Q] or [N, C] → [N, P·Q, C] or [N, 1, C]."""
    return None if skip is None else neurons_of(skip, 1)[0]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def to_rows(maps: Tensor) -> Tensor:
    """[N, C, P, Q] → [N·P·Q, C], a view of channels-last maps; [N, C] as it is."""
    return (maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]) if maps.dim() == 4 else maps).contiguous()


def like_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_rows`: channels-last maps, or a matrix, of this shape; `rows` may have any shape."""
    if len(shape) == 2:
        return rows.view(*shape)
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Strip(NamedTuple):
    """How the maps of several images lie side by side in one wide map."""

    images: int  # maps side by side
    pitch: int  # input columns from the start of a map to the start of the next; a multiple of the stride
    width: int  # input columns of the wide map: all maps, and zeros that the last outputs read
    out_pitch: int  # pitch and width in output columns
    out_width: int


def contract(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """Contraction of x [N, C_in, H, W] with weight [C_out, C_in / groups, R, S]: [N, C_out, P, Q], channels-last.

    If `geometry` is None, here and in both gradients, the layer is fully connected: x [N, C_in], weight [C_out, C_in].
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
    # Convolve h with the reversed kernel: so the matrix product sums all products of one input, in float32.
    batch, channels, height, width = x.shape
    rows, columns = (reversed(range(taps)) for taps in weight.shape[2:])
    turned = torch.stack([weight[:, :, r, s] for r, s in product(rows, columns)]).flatten(0, 1)
    grad_x = _columns(h, weight, geometry._replace(padding=padding)) @ turned
    return grad_x.view(batch, height, width, channels).permute(0, 3, 1, 2)


def gradient_of_weight(h: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    """Gradient of weight, channels-last, from the output's gradient h [N, C_out, P, Q]; only its shape is used."""
    if geometry is None:
        return h.t() @ x
    if weight.shape[2:] == (1, 1) and max(geometry.stride) > 1:
        # With a stride and fewer than 8 channels-last channels, oneDNN (PyTorch 2.13, AVX2) writes beyond its memory.
        x = F.pad(x, [geometry.padding[i] for i in (1, 1, 0, 0)])[:, :, :: geometry.stride[0], :: geometry.stride[1]]
        geometry = geometry._replace(stride=(1, 1), padding=(0, 0))
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
    """Whether to use columns. Only device, shapes and dtype decide, so all three passes of a layer decide alike."""
    if x.device.type != "cpu" or geometry.groups != 1 or x.dtype not in WEIGHTS_PER_NEURON:
        return False
    if max(geometry.stride) > 1 or any(map(operator.ge, geometry.padding, _spans(weight, geometry))):
        return False  # the gradient of x would need columns of an h that is spread with zeros, or cropped
    rows, columns = geometry.map_size(x.shape[2:], weight.shape[2:])
    neurons = rows * columns
    return neurons <= LARGEST_MAP and weight.numel() > WEIGHTS_PER_NEURON[x.dtype] * neurons


def strip_of(x: Tensor, weight: Tensor, geometry: Geometry, *, of_weight: bool = False) -> Strip | None:
    """How to lay the maps of x side by side, or None if that does not pay; `of_weight`: for the weight's gradient."""
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
    """[N, C, H, W] → [N / images, C, H, width], channels-last, with zeros between the maps."""
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
