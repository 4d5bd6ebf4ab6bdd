"""Weight standardisation: zero mean and a given norm over each neuron's fan-in, for all layers of a network at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttfs_kernels import fused
from ttfs_kernels.backends import chosen_backend, why_no_triton
from ttfs_kernels.registration import fake, operator, register_autograd

aten = torch.ops.aten

EPSILON = 1e-12  # added to the squared norm of the centred weights: a constant filter gives zeros, not nan

# Weights that a core normalises in float32 before they are cast, so that the float32 ones never leave its cache.
# Measured on one core (AVX2), 29 million weights to bfloat16: 18 ms in blocks, 24 ms layer by layer.
BLOCK_WEIGHTS = 1 << 18


def standardise_weights(
    weights: Sequence[Tensor], gains: Sequence[Tensor], *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Centre the weights of every neuron, scale them to unit norm and multiply by the neuron's gain.

    `ŵ = gain[c] · (w − mean) / ‖w − mean‖`, mean and norm over the fan-in. On a GPU with Triton, one kernel call for
    all layers and one for all their gradients; elsewhere one pass over each layer's weights.

    Args:
        weights: [C_out, ...] each, at least two weights a neuron; contiguous or channels last, which is kept. Other
            strides come out contiguous.
        gains: [C_out] each, norm of the resulting weights, in threshold heights; dtype of the weights.
        dtype: of the results. Default: that of the weights.
    Returns:
        The standardised weights, shapes and memory formats of `weights`. Neurons with constant weights give 0.
    Gradient: for weights and gains, in their dtypes. Not twice differentiable.
    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """
    if not weights:
        return []
    dtype = weights[0].dtype if dtype is None else dtype
    if _in_one_call(weights, gains, dtype):
        return torch.ops.ttfs.standardise_weights(list(weights), list(gains), dtype)[0]
    one_layer = torch.ops.ttfs.standardise_weight.default
    return [one_layer(*pair, dtype)[0] for pair in zip(weights, gains, strict=True)]


def _in_one_call(weights: Sequence[Tensor], gains: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the kernel serves: on a GPU where it can run, or where Triton was asked for by `ttfs_kernels.backend`."""
    kinds = {(tensor.device, tensor.dtype) for tensor in (*weights, *gains)}
    choice = chosen_backend()
    if len(kinds) > 1 or choice == "torch" or not (weights[0].is_cuda or choice == "triton"):
        return False
    return all(why_no_triton(weights[0].device, kind) is None for kind in (weights[0].dtype, dtype))


@operator("standardise_weight", formula=True)
def _standardise_weight(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A layer without Triton: weights in `dtype`; for the gradient, mean and 1/std of each neuron's, [2, C_out].

    Group normalisation with a neuron a group computes exactly this: (w − mean)/std, and std = norm/√fan_in.
    """
    weight = _dense(weight)
    out = torch.empty_like(weight, dtype=dtype)
    rows, out_rows = _rows(weight), _rows(out)
    neurons, fan_in = rows.shape
    scale, epsilon = _scale(gain, fan_in), EPSILON / fan_in
    stats = scale.new_empty(2, neurons)
    in_cache = weight.device.type == "cpu" and dtype != scale.dtype
    block = max(1, BLOCK_WEIGHTS * torch.get_num_threads() // fan_in) if in_cache else neurons
    for start in range(0, neurons, block):
        here = slice(start, start + block)
        some = rows[here].to(scale.dtype)
        groups = len(some)
        values, stats[:1, here], stats[1:, here] = aten.native_group_norm(
            some[None], scale[here], None, 1, groups, fan_in, groups, epsilon
        )
        out_rows[here] = values[0]
    return out, stats


@fake("standardise_weight")
def _(weight, gain, dtype):
    return torch.empty_like(_dense(weight), dtype=dtype), gain.new_empty(2, len(weight), dtype=_precise(gain))


@operator("standardise_weight_backward")
def _standardise_weight_backward(grad: Tensor, weight: Tensor, gain: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
    weight = _dense(weight)
    rows, grad_rows = _rows(weight), _rows(_as_dense(grad, weight))
    neurons, fan_in = rows.shape
    scale = _scale(gain, fan_in)
    if fused.is_fused(rows):
        grad_weight, grad_scale = fused.compiled(_gradients)(grad_rows, rows, scale, stats)
    else:
        grad_rows, rows, sizes = grad_rows.to(stats.dtype), rows.to(stats.dtype), (1, neurons, fan_in, neurons)
        grad_weight, grad_scale, _ = aten.native_group_norm_backward(
            grad_rows[None], rows[None], stats[:1], stats[1:], scale, *sizes, [True, True, False]
        )
    grad_weight = grad_weight.as_strided(weight.shape, weight.stride())
    return grad_weight.to(weight.dtype), grad_scale.mul_(fan_in**-0.5).to(gain.dtype)


def _gradients() -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What group normalisation's backward pass computes, to be compiled: half its time, measured on one core.

    (gradient [C_out, fan_in], weights, scale, stats) → gradients of weights and scale.
    """

    def gradients(grad: Tensor, weights: Tensor, scale: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
        means, inverse_stds = stats.unsqueeze(-1)
        grad, normalised = grad.to(stats.dtype), (weights.to(stats.dtype) - means) * inverse_stds
        grad_scale = (grad * normalised).sum(1)
        centred = grad - grad.mean(1, keepdim=True) - normalised * (grad_scale / weights.shape[1]).unsqueeze(-1)
        return centred * (inverse_stds * scale.unsqueeze(-1)), grad_scale

    return gradients


@fake("standardise_weight_backward")
def _(grad, weight, gain, stats):
    return torch.empty_like(_dense(weight)), torch.empty_like(gain.contiguous())


def _save_one(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:2], output[1])


def _backward_one(ctx, grad, _):
    if grad is None:
        return None, None, None
    return *torch.ops.ttfs.standardise_weight_backward(grad, *ctx.saved_tensors), None


register_autograd("standardise_weight", _backward_one, _save_one)


def _scale(gain: Tensor, fan_in: int) -> Tensor:
    """What multiplies (w − mean)/std, in at least float32."""
    return gain.to(_precise(gain)) * fan_in**-0.5


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@operator("standardise_weights", formula=True)
def _standardise_weights(
    weights: Sequence[Tensor], gains: Sequence[Tensor], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    from ttfs_kernels.triton_backend.standardisation import forward

    weights, gains = [_dense(weight) for weight in weights], [gain.contiguous() for gain in gains]
    return forward(weights, gains, dtype, EPSILON)


@fake("standardise_weights")
def _(weights, gains, dtype):
    from ttfs_kernels.triton_backend.standardisation import new_stats

    return [torch.empty_like(_dense(weight), dtype=dtype) for weight in weights], new_stats(weights)


@operator("standardise_weights_backward", formula=True)
def _standardise_weights_backward(
    grads: Sequence[Tensor], weights: Sequence[Tensor], gains: Sequence[Tensor], stats: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    from ttfs_kernels.triton_backend.standardisation import backward

    weights, gains = [_dense(weight) for weight in weights], [gain.contiguous() for gain in gains]
    grads = [_as_dense(grad, weight) for grad, weight in zip(grads, weights, strict=True)]
    return backward(grads, weights, gains, stats)


@fake("standardise_weights_backward")
def _(grads, weights, gains, stats):
    return [torch.empty_like(_dense(weight)) for weight in weights], [torch.empty_like(g.contiguous()) for g in gains]


def _dense(weight: Tensor) -> Tensor:
    """Rows in memory, one a neuron: contiguous or channels last, as it is if it is one of them."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return weight
    return weight.contiguous()


def _rows(weight: Tensor) -> Tensor:
    """[C_out, fan_in], a view of dense weights in the order of their memory."""
    return (weight if weight.is_contiguous() else weight.permute(0, 2, 3, 1)).flatten(1)


def _as_dense(grad: Tensor, weight: Tensor) -> Tensor:
    """`grad` in the order in which the memory of `weight` is."""
    return grad.contiguous(memory_format=torch.contiguous_format if weight.is_contiguous() else torch.channels_last)


def _save(ctx, inputs, output) -> None:
    weights, gains, _ = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(*weights, *gains, *output[1])
    ctx.dtypes = [tensor.dtype for tensor in output[0]]


def _backward(ctx, grads, _):
    weights, gains = ctx.saved_tensors[: ctx.layers], ctx.saved_tensors[ctx.layers : 2 * ctx.layers]
    grads = [
        torch.zeros_like(weight, dtype=dtype) if grad is None else grad
        for grad, weight, dtype in zip(grads, weights, ctx.dtypes, strict=True)
    ]
    stats = ctx.saved_tensors[2 * ctx.layers :]
    return *torch.ops.ttfs.standardise_weights_backward(grads, list(weights), list(gains), list(stats)), None


def _refuse(ctx, *_):
    raise RuntimeError(
        "Trying to backward through ttfs::standardise_weights_backward but no autograd formula was registered."
    )


torch.library.register_autograd("ttfs::standardise_weights", _backward, setup_context=_save)
torch.library.register_autograd("ttfs::standardise_weights_backward", _refuse)
