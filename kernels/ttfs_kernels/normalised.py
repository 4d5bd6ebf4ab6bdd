"""Layers with normalised potentials: batch norm for spiking neurons, at any σ.

A channel's mean μ and variance s² are taken of V = A + W, the potential at the window's end, over the batch and all
positions. At σ = 0, W is 0, and this is ordinary batch norm. One factor scales both potentials:

    g = γ / √(s² + ε)        A' = g·(A − μ) + β        W' = g·W        activation = fire(A', W')

So a trained layer is a layer without batch norm, of weights g·w and initial potential β − g·μ. Backward, over the N
neurons of a channel, with the gradients dA' and dW' from the firing rule:

    dβ = Σ dA'        dγ = Σ (dA'·(A − μ) + dW'·W) / √(s² + ε)
    dA = g·(dA' − dβ/N − (V − μ)·dγ/(N·√(s² + ε)))        dW = the same with dW' in place of dA'

Triton kernels compute this on a GPU (`triton/layer.py`), PyTorch elsewhere: the passes over neurons run in
blocks (`normalised_eager`), or as the formulas below, which PyTorch's compiler fuses (see `fused`). At σ = 0, a layer
that is not fused takes PyTorch's own batch norm.

Shapes: potentials [2, images, positions, channels] for A and Σ w·[x > 0], or [1, ...] for A alone at σ = 0. In a fully
connected layer, each row counts as an image of one position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels import fused
from ttfs_kernels.autograd import Kept, Layer, Operands, apply_layer, autocast
from ttfs_kernels.backends import backend_for
from ttfs_kernels.checks import Size, check_conv2d, check_linear, checked_geometry
from ttfs_kernels.contraction import Geometry, contract
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.normalised_eager import Passes
from ttfs_kernels.rule import aten, fire_with_derivatives
from ttfs_kernels.torch_backend import (
    contract_gradients,
    contract_shared_gradient,
    like_rows,
    skip_gradients,
    stack_mask,
    to_rows,
)


class Normalised(NamedTuple):
    """Activations of a layer, and the statistics of its potentials.

    Attributes:
        activations: the output, as of `dft_conv2d` or `dft_linear`.
        mean, variance: [C], float32 or wider, of V = A + W over batch and positions; the variance is unbiased, as
            `torch.nn.BatchNorm2d` keeps it. No gradient.
    """

    activations: Tensor
    mean: Tensor
    variance: Tensor


class Normalisation(NamedTuple):
    """How potentials are normalised.

    Attributes:
        weight: γ [C], standard deviation of the normalised potential A' + W', in threshold heights.
        bias: β [C], its mean.
        estimate: [C], a value near μ. The PyTorch backend sums squares around it, so that no digits are lost; Triton
            kernels do not use it.
        epsilon: ε, added to the variance.
        group: processes that share their statistics; None: each process uses its own.
    """

    weight: Tensor
    bias: Tensor
    estimate: Tensor
    epsilon: float = 1e-5
    group: ProcessGroup | None = None


def normalised_linear(
    x: Tensor,
    weight: Tensor,
    normalisation: Normalisation,
    *,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Normalised:
    """A `dft_linear` whose potentials are normalised over the batch, for training.

    Args:
        x: [N, in_features]; x, weight, neuron and backend as in `dft_linear`.
        normalisation: γ and β [out_features], and ε.
        skip, skip_weight: as in `dft_linear`; added after the normalisation.
    Returns:
        See `Normalised`. Gradients for x, weight, γ, β, skip and skip_weight.
    Raises:
        ValueError, TypeError: shapes, dtypes or devices disagree, or a channel has fewer than two values: their
            normalised potential would be β, whatever the weights.
        RuntimeError: the backend asked for cannot run here.
    """
    operands = x, weight, normalisation.bias, skip, skip_weight
    which = backend_for("normalised_linear", backend, x)
    check_linear("normalised_linear", operands)
    return _apply("normalised_linear", operands, normalisation, None, neuron, which)


def normalised_conv2d(
    x: Tensor,
    weight: Tensor,
    normalisation: Normalisation,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Normalised:
    """A `dft_conv2d` whose potentials are normalised over batch and positions, for training.

    Args:
        normalisation: γ and β [out_channels], and ε.
        skip, skip_weight: as in `dft_conv2d`; added after the normalisation.
        x, weight, stride, padding, dilation, groups, neuron, backend: as in `dft_conv2d`.
    Returns, raises: as `normalised_linear`.
    Example:
        >>> x, weight = torch.rand(8, 3, 32, 32), torch.randn(16, 3, 3, 3)
        >>> normalisation = Normalisation(torch.full((16,), 0.5), torch.zeros(16), torch.zeros(16))
        >>> normalised_conv2d(x, weight, normalisation).activations.shape
        torch.Size([8, 16, 30, 30])
    """
    geometry = checked_geometry("normalised_conv2d", stride, padding, dilation, groups)
    which = backend_for("normalised_conv2d", backend, x)
    operands = x, weight, normalisation.bias, skip, skip_weight
    check_conv2d("normalised_conv2d", operands, geometry)
    return _apply("normalised_conv2d", operands, normalisation, geometry, neuron, which)


def _apply(
    function: str,
    operands: Operands,
    normalisation: Normalisation,
    geometry: Geometry | None,
    neuron: Neuron,
    which: str,
) -> Normalised:
    x, weight, bias, skip, skip_weight = operands
    for name, tensor in (("weight", normalisation.weight), ("estimate", normalisation.estimate)):
        if tensor.shape != weight.shape[:1] or tensor.device != x.device:  # a kernel would read beyond it
            raise ValueError(
                f"{function}: normalisation.{name} must have shape [{len(weight)}], and be on the device of x "
                f"({x.device}); got {list(tensor.shape)} on {tensor.device}."
            )
    size = x.shape[:-1] if geometry is None else (len(x), *geometry.map_size(x.shape[2:], weight.shape[2:]))
    sharing = 1 if normalisation.group is None else torch.distributed.get_world_size(normalisation.group)
    if (values := math.prod(size) * sharing) < 2:
        raise ValueError(
            f"{function}: x must give each channel two values or more to normalise over; got {values}, of x "
            f"{list(x.shape)}. Use more images in a batch, or call eval() on the layer's batch norm."
        )
    x, weight, skip = autocast(x, weight, skip)
    tensors = x, weight, normalisation.weight, bias, skip, skip_weight
    epsilon, group = normalisation.epsilon, normalisation.group
    if which != "torch":
        from ttfs_kernels.triton.layer import TritonLayer

        layer: Layer = TritonLayer(geometry, neuron, epsilon, group)
        run: Any = apply_layer
        if torch.compiler.is_compiling():  # its kernels are no operators that a compiler knows
            run = torch.compiler.disable(apply_layer)  # a decorator would import the compiler, which takes a second
        return Normalised(*run(function, layer, tensors))
    if neuron.has_slope or group is not None or fused.is_formula(x):
        layer = _TorchNormalised(geometry, neuron, epsilon, group, normalisation.estimate.detach())
    else:
        layer = _BatchNorm(geometry, neuron, epsilon)
    return Normalised(*apply_layer(function, layer, tensors))


@dataclass(frozen=True)
class _BatchNorm:
    """A layer at σ = 0 by PyTorch's batch norm and a clamp, eagerly."""

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float

    def forward(self, operands: tuple[Any, ...], with_derivatives: bool) -> tuple[tuple[Tensor, ...], Kept]:
        x, weight, gamma, beta, skip, skip_weight = operands
        inputs = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        maps = contract(inputs, weight, None, self.geometry)
        gamma, beta = (each.to(fused.precise_dtype(maps.dtype)) for each in (gamma, beta))
        y, mean, inverse = torch.native_batch_norm(maps, gamma, beta, None, None, True, 0.0, self.epsilon)
        if skip is not None:
            y.addcmul_(skip, skip_weight.to(skip.dtype).view(-1, *(1,) * (skip.dim() - 2)))
        y.clamp_(0, 1)
        count = maps.numel() / maps.shape[1]
        unbiased = (inverse.pow(-2) - self.epsilon).clamp_min(0) * (count / (count - 1))
        return (y, mean, unbiased), (inputs, weight, maps, y, gamma, mean, inverse, skip, skip_weight)

    def backward(self, grad: Tensor, kept: tuple[Any, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        inputs, weight, maps, y, gamma, mean, inverse, skip, skip_weight = kept
        h = aten.hardtanh_backward(grad, y, 0, 1).add_(y, alpha=0)  # NaN where y is NaN
        by_skip = skip_gradients(h, skip, skip_weight, self.neuron)
        statistics = None, None, mean, inverse, True, self.epsilon, (True, True, True)
        h, grad_gamma, grad_beta = aten.native_batch_norm_backward(h, maps, gamma, *statistics)
        h = h.contiguous(memory_format=torch.channels_last) if h.dim() == 4 else h
        by_operands = contract_gradients(h, inputs, weight, self.neuron, self.geometry, needs)
        return *by_operands, grad_gamma, grad_beta, *by_skip


@dataclass(frozen=True)
class _TorchNormalised:
    """A layer with batch norm in PyTorch. The backward pass evaluates the rule again instead of keeping derivatives."""

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float
    group: ProcessGroup | None
    estimate: Tensor

    def forward(self, operands: tuple[Any, ...], with_derivatives: bool) -> tuple[tuple[Tensor, ...], Kept]:
        x, weight, gamma, beta, skip, skip_weight = operands
        sigma, neuron = fused.persistence(self.neuron, x), fused.of_any_persistence(self.neuron)
        inputs = stack_mask(x, neuron) if neuron.has_slope else x
        maps = contract(inputs, weight, None, self.geometry)
        shape = (len(x), *maps.shape[1:])
        potentials = _positions(maps, len(maps) // len(x))
        formula, estimate = fused.is_formula(potentials), self.estimate
        passes = Passes(potentials.flatten(1, 2), fused.factor(self.neuron, x))
        count = torch.full((1,), float(potentials[0, ..., 0].numel()), device=x.device, dtype=sigma.dtype)
        if torch.compiler.is_compiling():
            # In its backward pass, AOTAutograd would recompute from the running mean, which has been updated by then.
            estimate = torch.zeros_like(estimate)
            if self.group is None:
                estimate = _summing(potentials, sigma, estimate)[0] / count
        if formula:
            sums = torch.stack(fused.run((_summing,), potentials, sigma, estimate))
        else:
            sums = passes.sums(estimate)
        if self.group is not None:
            joined = torch.cat([sums.flatten(), count])
            torch.distributed.all_reduce(joined, group=self.group)
            sums, count = joined[:-1].view_as(sums), joined[-1:]
        offset, square = sums / count
        mean, variance = estimate + offset, (square - offset.square()).clamp_min(0)
        inverse = (variance + self.epsilon).rsqrt()
        delayed = None if skip is None else _positions(skip, 1)[0]
        affine = gamma * inverse, beta - gamma * inverse * mean
        if formula:
            activations = fused.run((_firing, neuron), potentials, sigma, *affine, delayed, skip_weight)
        else:
            rows = None if delayed is None else delayed.flatten(0, 1)
            activations = passes.fire(neuron, *affine, rows, skip_weight)
        unbiased = variance * (count / (count - 1))
        kept = inputs, weight, potentials, gamma, beta, mean, inverse, count, sigma, delayed, skip_weight
        return (like_rows(activations, shape), mean, unbiased), kept

    def backward(self, grad: Tensor, kept: tuple[Any, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        inputs, weight, potentials, gamma, beta, mean, inverse, count, sigma, delayed, skip_weight = kept
        neuron = fused.of_any_persistence(self.neuron)
        affine = gamma * inverse, beta - gamma * inverse * mean
        shared = neuron.has_slope and neuron.split_gradient == 0  # A' and W' have the same gradient
        rows = _positions(grad.to(potentials.dtype), 1)[0]
        formula = fused.is_formula(potentials)
        passes = Passes(potentials.flatten(1, 2), fused.factor(self.neuron, inputs))
        if formula:
            h = fused.run((_deriving, neuron), potentials, rows, sigma, *affine, delayed, skip_weight)
            grad_beta, by_scale = fused.run((_reducing,), potentials, h, sigma, mean)
        else:
            h = torch.empty_like(potentials[:1] if shared else potentials)
            late = None if delayed is None else delayed.flatten(0, 1)
            written = h.flatten(1, 2), mean, *affine, late, skip_weight
            grad_beta, by_scale = passes.derive(neuron, rows.flatten(0, 1), *written)
        grad_gamma = by_scale * inverse
        grad_skip = grad_skip_weight = None
        if delayed is not None:
            by_pair = h.expand_as(potentials)
            grad_skip, grad_skip_weight = fused.run((fused.skipping, neuron), by_pair, delayed, skip_weight, sigma)
            grad_skip = like_rows(grad_skip, grad.shape)
        sums = torch.stack([grad_beta, grad_gamma])
        if self.group is not None:
            torch.distributed.all_reduce(sums, group=self.group)
        by_mean, by_variance = sums / count
        spread = affine[0], mean, by_mean, by_variance * inverse
        if formula:
            h = fused.run((_spreading,), potentials, h, sigma, *spread)
        else:
            passes.spread(h.flatten(1, 2), *spread)
        h = like_rows(h, (len(h) * len(grad), *grad.shape[1:]))
        if shared:
            by_operands = contract_shared_gradient(h, inputs, weight, self.neuron, self.geometry, needs)
        else:  # h includes σ already, hence a neuron with σ = 1
            by_operands = contract_gradients(h, inputs, weight, neuron, self.geometry, needs)
        return *by_operands, grad_gamma, grad_beta, grad_skip, grad_skip_weight


def _positions(maps: Tensor, pairs: int) -> Tensor:
    """[pairs · N, C, P, Q] → [pairs, N, P·Q, C], a view of channels-last maps; [pairs · N, C] → [pairs, N, 1, C]."""
    return to_rows(maps).view(pairs, len(maps) // pairs, -1, maps.shape[1])


def _both(potentials: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
    """(A, W) in at least float32; W is None at σ = 0."""
    precise = fused.precise_dtype(potentials.dtype)
    A = potentials[0].to(precise)
    return A, potentials[1].to(precise) * sigma if len(potentials) == 2 else None


def _summing(potentials: Tensor, sigma: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (V − estimate) and Σ (V − estimate)², [C]."""
    A, W = _both(potentials, sigma)
    offset = (A if W is None else A + W) - estimate
    return fused.sum_rows(offset), fused.sum_rows(offset.square())


def _normalise(
    potentials: Tensor,
    sigma: Tensor,
    scale: Tensor,
    shift: Tensor,
    skip: Tensor | None,
    skip_weight: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """(A', W') plus delayed spikes; `scale` is g and `shift` is β − g·μ."""
    A, W = _both(potentials, sigma)
    return fused.with_delayed(A * scale + shift, None if W is None else W * scale, skip, skip_weight, sigma)


def _firing(neuron: Neuron, potentials: Tensor, *others: Any) -> Tensor:
    """Activations of normalised potentials; `others` are the other operands of `_normalise`."""
    A, W = _normalise(potentials, *others)
    activations = A.clamp(0, 1) if W is None else fire_with_derivatives(A, W, neuron)[0]
    return activations.to(potentials.dtype)


def _deriving(neuron: Neuron, potentials: Tensor, grad: Tensor, *others: Any) -> Tensor:
    """The gradients of A' and W', [2, ...]; [1, ...] if they are the same, or at σ = 0. `others` as in `_firing`."""
    A, W = _normalise(potentials, *others)
    grad = grad.to(A.dtype)
    if W is None:
        return fused.inside(grad, A).to(potentials.dtype).unsqueeze(0)
    _, *derivatives = fire_with_derivatives(A, W, neuron)
    if neuron.split_gradient == 0:
        del derivatives[1]
    return torch.stack([grad * derivative for derivative in derivatives]).to(potentials.dtype)


def _reducing(potentials: Tensor, h: Tensor, sigma: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(dβ, dg), [C] each, from h of `_deriving`; dγ is dg / √(s² + ε)."""
    A, W = _both(potentials, sigma)
    by_A = h[0].to(A.dtype)
    by_scale = by_A * (A - mean)
    if W is not None:
        by_scale = by_scale + h[-1].to(A.dtype) * W
    return fused.sum_rows(by_A), fused.sum_rows(by_scale)


def _spreading(
    potentials: Tensor,
    h: Tensor,
    sigma: Tensor,
    scale: Tensor,
    mean: Tensor,
    by_mean: Tensor,
    by_variance: Tensor,
) -> Tensor:
    """The gradients of A and of Σ w·[x > 0] from those of A' and W', h of `_deriving`.

    These are g·(dA' − shared) and σ·g·(dW' − shared), with shared = by_mean + (V − μ)·by_variance. `by_mean` is dβ/N,
    `by_variance` dγ/(N·√(s² + ε)).
    """
    A, W = _both(potentials, sigma)
    shared = by_mean + ((A if W is None else A + W) - mean) * by_variance
    spread = [scale * (h[0].to(A.dtype) - shared)]
    if len(h) == 2:
        spread.append(sigma * scale * (h[1].to(A.dtype) - shared))
    return torch.stack(spread).to(h.dtype)
