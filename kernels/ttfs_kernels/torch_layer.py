"""The PyTorch backend: the passes of a layer, one stacked contraction each.

A = Σ w·x and W = Σ w·σ[x > 0] share every weight, so activations and mask are stacked along the batch and contracted
in one call: weights are read (and, on a CPU, reordered) once. The passes over neurons between the contractions are
eager and in place (`rule`), or formulas that PyTorch's compiler fuses into one loop each (`fused`).

Operands are x, weight, γ, initial potential or β, skip and skip weight; without batch norm, γ is None.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ttfs_kernels import fused, rule
from ttfs_kernels.checks import Geometry
from ttfs_kernels.contraction import contract, gradient_of_input, gradient_of_weight
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import aten, of_any_persistence, precise_dtype

Tensors = tuple[Tensor | None, ...]
logger = logging.getLogger(__name__)

# Passes over fewer elements are not fused: calling a compiled pass takes as long as it saves. Measured on one core.
SMALLEST = 1 << 15

_fusing = False


def fuse_passes(on: bool = True) -> None:
    """Turn on (or off) fusion of layers' passes over neurons by PyTorch's compiler, on a CPU, in this process.

    Eager PyTorch goes through memory once per operation: a layer on large maps, with few synapses per neuron, spends
    most of its time there. Compiling takes some 20 seconds per process, once for all shapes, and needs a C++ compiler.
    In float32 and float64, results equal the eager passes bit for bit, except that sums have another order. In 16 bits
    they are rounded less often, since intermediate values are never stored.

    The gradient of `standardise_weight` is fused, too. If compiling fails, for example without a C++ compiler, the
    logger "ttfs_kernels.torch_layer" warns once with the reason, and passes run eagerly from then on.

    Args:
        on: True fuses passes; False runs them eagerly.
    """
    global _fusing
    _fusing = on


def is_fused(x: Tensor) -> bool:
    """Whether passes over x are fused: by `fuse_passes`, and by the device and size of x."""
    return _fusing and x.device.type == "cpu" and x.numel() >= SMALLEST


def is_formula(x: Tensor) -> bool:
    """Whether to run a pass over x as a formula: it is fused here, or `torch.compile` is tracing the caller."""
    return torch.compiler.is_compiling() or is_fused(x)


def run(formula: tuple[Any, ...], *operands: Tensor | None) -> Any:
    """Evaluate a formula, (function, *settings); fused if `is_fused` holds for the first operand, the largest one.

    Example: `run((entering, neuron), grad, x, sigma)`.
    """
    function, *settings = formula
    assert operands[0] is not None
    if torch.compiler.is_compiling() or not is_fused(operands[0]):
        return function(*settings, *operands)
    return compiled(function, *settings)(*operands)


@cache
def compiled(formula: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """The pass of a formula, compiled at its first call and cached; if compiling fails, it runs eagerly."""
    from torch._dynamo.exc import TorchDynamoException  # here, since importing it takes a second

    def bound(*operands: Tensor | None) -> Any:
        return formula(*settings, *operands)

    # The compiler limits compiled versions per code object, which closures share: give each pass its own.
    bound.__code__ = bound.__code__.replace(co_name=f"{formula.__name__}_fused")
    fused = torch.compile(bound, dynamic=True)

    def fused_or_eager(*operands: Tensor | None) -> Any:
        # Detached, since the compiler would treat the shapes of parameters as constants.
        operands = tuple([None if operand is None else operand.detach() for operand in operands])
        try:
            return fused(*operands)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            logger.warning("passes are not fused: PyTorch's compiler failed (%s)", reason)
            fuse_passes(False)
            return bound(*operands)

    return fused_or_eager


@dataclass(frozen=True)
class ClampedLayer:
    """A layer at σ = 0: a contraction, PyTorch's own batch norm (with `epsilon`), and a clamp to [0, 1]."""

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
            gamma, bias = (each.to(precise_dtype(maps.dtype)) for each in (gamma, bias))
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
            h, total = run((fused.crossing,), to_rows(grad), to_rows(y))
            h = like_rows(h, y.shape)
        else:
            h = aten.hardtanh_backward(grad, y, 0, 1).add_(y, alpha=0)  # NaN where y is, unlike hardtanh_backward
            if self.epsilon is None:
                total = h.sum((0, 2, 3) if h.dim() == 4 else 0, dtype=precise_dtype(h.dtype))
        by_skip = skip_gradients(h, skip, skip_weight, self.neuron)
        if self.epsilon is not None:
            maps, gamma, mean, inverse = others
            statistics = None, None, mean, inverse, True, self.epsilon, (True, True, True)
            h, grad_gamma, total = aten.native_batch_norm_backward(h, maps, gamma, *statistics)
            h = _channels_last(h)
        by_operands = contract_gradients(h, _channels_last(x), weight, self.neuron, None, self.geometry, needs)
        return *by_operands, grad_gamma, total if needs[3] else None, *by_skip


@dataclass(frozen=True)
class TorchLayer:
    """A layer at σ > 0. Keeps the stacked input and the derivatives, which overwrite the potentials, for backward."""

    geometry: Geometry | None
    neuron: Neuron

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor], Tensors]:
        x, weight, _, bias, skip, skip_weight = operands
        sigma = rule.factor(self.neuron, x)
        stacked = stack_mask(x, sigma)
        maps = contract(stacked, weight, None, self.geometry)
        potentials = to_rows(maps).view(2, -1, maps.shape[1])
        delayed = None if skip is None else to_rows(skip)
        if is_formula(potentials):
            settings = of_any_persistence(self.neuron), with_derivatives
            tensors = potentials, bias, delayed, skip_weight, rule.scalar(sigma, x)
            activations, derivatives = run((fused.firing, *settings), *tensors)
        else:
            how = self.neuron, with_derivatives, delayed, skip_weight, sigma
            activations, derivatives = rule.fire_(potentials, bias, *how), potentials
        y = like_rows(activations, (len(x), *maps.shape[1:]))
        kept = like_rows(derivatives, maps.shape) if with_derivatives else None
        return (y,), (stacked, kept, weight, skip, skip_weight)

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        stacked, derivatives, weight, skip, skip_weight = kept
        pair = to_rows(derivatives).view(2, -1, derivatives.shape[1])
        h, grad_bias = run((rule.scaling,), pair, to_rows(grad))
        h, sigma = like_rows(h, derivatives.shape), rule.factor(self.neuron, stacked)
        by_operands = contract_gradients(h, stacked, weight, self.neuron, sigma, self.geometry, needs)
        by_skip = skip_gradients(h, skip, skip_weight, self.neuron)
        return *by_operands, None, grad_bias if needs[3] else None, *by_skip


@dataclass(frozen=True)
class NormalisedLayer:
    """A layer with batch norm. The backward pass evaluates the rule again instead of keeping derivatives.

    Attributes:
        geometry, neuron: as of the other layers.
        epsilon, group, estimate: of the `Normalisation`.
    """

    geometry: Geometry | None
    neuron: Neuron
    epsilon: float
    group: ProcessGroup | None
    estimate: Tensor

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor, ...], Tensors]:
        x, weight, gamma, beta, skip, skip_weight = operands
        inputs = stack_mask(x, 1.0) if self.neuron.psp_persistence > 0 else x
        maps = contract(inputs, weight, None, self.geometry)
        potentials, estimate = _positions(maps, len(maps) // len(x)), self.estimate
        formula, sigma = is_formula(potentials), rule.persistence(self.neuron, x)
        passes = rule.Passes(potentials.flatten(1, 2), rule.factor(self.neuron, x))
        count = torch.full((1,), float(potentials[0, ..., 0].numel()), device=x.device, dtype=sigma.dtype)
        if torch.compiler.is_compiling():
            # In its backward pass, AOTAutograd would recompute from the running mean, which has been updated by then.
            estimate = torch.zeros_like(estimate)
            if self.group is None:
                estimate = fused.summing(potentials, sigma, estimate)[0] / count
        if formula:
            sums = torch.stack(run((fused.summing,), potentials, sigma, estimate))
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
            firing = fused.normalised_firing, of_any_persistence(self.neuron)
            activations = run(firing, potentials, sigma, *affine, delayed, skip_weight)
        else:
            activations = passes.fire(self.neuron, *affine, _flat(delayed), skip_weight)
        kept = inputs, weight, potentials, gamma, beta, mean, inverse, count, delayed, skip_weight
        y = like_rows(activations, (len(x), *maps.shape[1:]))
        return (y, mean, variance * (count / (count - 1))), kept

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> Tensors:
        inputs, weight, potentials, gamma, beta, mean, inverse, count, delayed, skip_weight = kept
        affine = gamma * inverse, beta - gamma * inverse * mean
        rows = _positions(grad.to(potentials.dtype), 1)[0]
        shared = len(potentials) == 2 and self.neuron.split_gradient == 0  # A' and W' have the same gradient
        formula, sigma = is_formula(potentials), rule.persistence(self.neuron, inputs)
        passes = rule.Passes(potentials.flatten(1, 2), rule.factor(self.neuron, inputs))
        if formula:
            deriving = fused.deriving, of_any_persistence(self.neuron)
            h = run(deriving, potentials, rows, sigma, *affine, delayed, skip_weight)
            grad_beta, by_scale = run((fused.reducing,), potentials, h, sigma, mean)
        else:
            h = torch.empty_like(potentials[:1] if shared else potentials)
            written = h.flatten(1, 2), mean, *affine, _flat(delayed), skip_weight
            grad_beta, by_scale = passes.derive(self.neuron, rows.flatten(0, 1), *written)
        grad_gamma = by_scale * inverse
        grad_skip = grad_skip_weight = None
        if delayed is not None:
            skipping = rule.skipping, of_any_persistence(self.neuron)
            grad_skip, grad_skip_weight = run(skipping, h.expand_as(potentials), delayed, skip_weight, sigma)
            grad_skip = like_rows(grad_skip, grad.shape)
        sums = torch.stack([grad_beta, grad_gamma])
        if self.group is not None:
            torch.distributed.all_reduce(sums, group=self.group)
        by_mean, by_variance = sums / count
        spread = affine[0], mean, by_mean, by_variance * inverse
        if formula:
            h = run((fused.spreading,), potentials, h, sigma, *spread)
        else:
            passes.spread(h.flatten(1, 2), *spread)
        h = like_rows(h, (len(h) * len(grad), *grad.shape[1:]))
        if not shared:  # h includes σ
            sigma = 1.0 if len(potentials) == 2 else None
        by_operands = contract_gradients(h, inputs, weight, self.neuron, sigma, self.geometry, needs)
        return *by_operands, grad_gamma, grad_beta, grad_skip, grad_skip_weight


def contract_gradients(
    h: Tensor,
    x: Tensor,
    weight: Tensor,
    neuron: Neuron,
    sigma: Any,
    geometry: Geometry | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and the weight, None where not needed.

    With `sigma`, x is stacked, and the mask has `sigma` times the gradient of W; h is [dA ; dW], or what both share.
    """
    grad_x = grad_weight = None
    shared = len(h) < len(x)
    if needs[0]:
        # With a surrogate, one contraction gives both gradients: those of the activations and of the mask.
        both = len(h) if sigma is None or shared or neuron.surrogate_width else len(h) // 2
        grad_x = gradient_of_input(h[:both], x[:both], weight, geometry)
        if sigma is not None:
            grad_x = at_inputs(grad_x, x[: len(x) // 2], neuron, sigma)
    if needs[1]:
        if sigma is not None and shared:
            values, mask = x.tensor_split(2)
            x = torch.addcmul(values, mask, sigma)
        grad_weight = gradient_of_weight(h, x, weight, geometry)
    return grad_x, grad_weight


def skip_gradients(
    h: Tensor, skip: Tensor | None, skip_weight: Tensor | None, neuron: Neuron
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of delayed spikes and of their weights: like those of `x` and `weight`, with one synapse per neuron.

    `h` is [g·∂a/∂A ; g·∂a/∂W], at σ = 0 g·∂a/∂A, where g is the gradient of the activations.
    """
    if skip is None or skip_weight is None:
        return None, None
    rows = to_rows(h).view(2 if neuron.has_slope else 1, -1, h.shape[1])
    formula = rule.skipping, of_any_persistence(neuron)
    grad_skip, grad_weight = run(formula, rows, to_rows(skip), skip_weight, rule.persistence(neuron, h))
    return like_rows(grad_skip, skip.shape), grad_weight


def stack_mask(x: Tensor, sigma: Tensor | float) -> Tensor:
    """x stacked with its mask along the first dimension: [x ; σ·[x > 0]]; maps come out channels-last."""
    if is_formula(x):
        stacked = run((fused.masking,), to_rows(x).flatten(), rule.scalar(sigma, x))
        return like_rows(stacked, (2 * len(x), *x.shape[1:]))
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    stacked = torch.empty(2 * len(x), *x.shape[1:], dtype=x.dtype, device=x.device, memory_format=layout)
    values, mask = stacked.tensor_split(2)
    values.copy_(x)
    torch.gt(x, 0, out=mask)  # into floats: comparisons that write booleans are not vectorised on CPU
    if isinstance(sigma, Tensor) or sigma != 1.0:
        mask.mul_(sigma)
    return stacked


def at_inputs(grad_x: Tensor, x: Tensor, neuron: Neuron, sigma: Tensor | float) -> Tensor:
    """The gradient of a layer's input x from the contraction's result `grad_x`, which it may overwrite.

    It is zero where x is silent: a small change leaves x silent. With a surrogate, the gradient of the mask is added
    where a spike could appear or vanish; it is stacked in `grad_x`, unless x and mask have the same.
    """
    if is_formula(x):
        grad = to_rows(grad_x).flatten()
        if neuron.surrogate_width:
            grad = grad.view(2, -1) if len(grad_x) > len(x) else grad.expand(2, -1)
        formula = rule.entering, of_any_persistence(neuron)
        return like_rows(run(formula, grad, to_rows(x).flatten(), rule.scalar(sigma, x)), x.shape)
    if not neuron.surrogate_width:
        return aten.threshold_backward.grad_input(grad_x, x, 0, grad_input=grad_x)
    by_activation, by_mask = grad_x.tensor_split(2) if len(grad_x) > len(x) else (grad_x, grad_x)
    by_mask = rule.vanishing(x, neuron).mul_(by_mask)
    if isinstance(sigma, Tensor) or sigma != 1.0:
        by_mask.mul_(sigma)
    return aten.threshold_backward(by_activation, x, 0).add_(by_mask)


def _positions(maps: Tensor, pairs: int) -> Tensor:
    """[pairs · N, C, P, Q] → [pairs, N, P·Q, C], a view of channels-last maps; [pairs · N, C] → [pairs, N, 1, C]."""
    return to_rows(maps).view(pairs, len(maps) // pairs, -1, maps.shape[1])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _flat(delayed: Tensor | None) -> Tensor | None:
    return None if delayed is None else delayed.flatten(0, 1)


def to_rows(maps: Tensor) -> Tensor:
    """[N, C, P, Q] → [N·P·Q, C], a view of channels-last maps; [N, C] as it is."""
    return (maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]) if maps.dim() == 4 else maps).contiguous()


def like_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_rows`, for rows in any shape: channels-last maps, or a matrix."""
    if len(shape) == 2:
        return rows.view(*shape)
    batch, channels, height, width = shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
