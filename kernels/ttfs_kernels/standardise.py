"""Weight standardisation: zero mean and a given norm over each neuron's fan-in, for all layers of a network at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels.backends import chosen_backend, why_no_triton
from ttfs_kernels.registration import fake, operator

EPSILON = 1e-12  # added to the squared norm of the centred weights: a constant filter gives zeros, not nan


def standardise_weights(
    weights: Sequence[Tensor], gains: Sequence[Tensor], *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Centre the weights of every neuron, scale them to unit norm and multiply by the neuron's gain.

    `ŵ = gain[c] · (w − mean) / ‖w − mean‖`, mean and norm over the fan-in. On a GPU with Triton, one kernel call for
    all layers and one for all their gradients; elsewhere one fused normalisation a layer.

    Args:
        weights: [C_out, ...] each, at least two weights a neuron; contiguous or channels last, which is kept. Other
            strides come out contiguous.
        gains: [C_out] each, norm of the resulting weights, in threshold heights; dtype of the weights.
        dtype: of the results. Default: that of the weights.
    Returns:
        The standardised weights, shapes and memory formats of `weights`. Neurons with constant weights give 0.
    Gradient: for weights and gains, in their dtypes. Not twice differentiable in the kernel.
    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """
    if not weights:
        return []
    dtype = weights[0].dtype if dtype is None else dtype
    if _in_one_call(weights, gains, dtype):
        return torch.ops.ttfs.standardise_weights(list(weights), list(gains), dtype)[0]
    return [_one_layer(*pair).to(dtype) for pair in zip(weights, gains, strict=True)]


def _in_one_call(weights: Sequence[Tensor], gains: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the kernel serves: on a GPU where it can run, or where Triton was asked for by `ttfs_kernels.backend`."""
    kinds = {(tensor.device, tensor.dtype) for tensor in (*weights, *gains)}
    choice = chosen_backend()
    if len(kinds) > 1 or choice == "torch" or not (weights[0].is_cuda or choice == "triton"):
        return False
    return all(why_no_triton(weights[0].device, kind) is None for kind in (weights[0].dtype, dtype))


def _one_layer(weight: Tensor, gain: Tensor) -> Tensor:
    channels_last = weight.dim() == 4 and not weight.is_contiguous()
    flat = (weight.permute(0, 2, 3, 1) if channels_last else weight).flatten(1)
    fan_in = flat.shape[1]
    # Batch normalisation over a "batch" of one computes exactly this, in one kernel: per channel (w − mean) / std,
    # and std = norm / √fan_in.
    flat = F.batch_norm(
        flat[None], None, None, weight=gain * fan_in**-0.5, training=True, eps=EPSILON / fan_in
    ).squeeze(0)
    if channels_last:
        return flat.unflatten(1, (*weight.shape[2:], weight.shape[1])).permute(0, 3, 1, 2)
    return flat.view(weight.shape)


@operator("standardise_weights", formula=True)
def _standardise_weights(
    weights: Sequence[Tensor], gains: Sequence[Tensor], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    from ttfs_kernels.triton_backend.standardisation import forward_launches, new_stats

    weights = [_dense(weight) for weight in weights]
    out, stats = [torch.empty_like(weight, dtype=dtype) for weight in weights], new_stats(weights)
    for launch in forward_launches(weights, [gain.contiguous() for gain in gains], out, stats, EPSILON):
        launch.run()
    return out, stats


@fake("standardise_weights")
def _(weights, gains, dtype):
    from ttfs_kernels.triton_backend.standardisation import new_stats

    return [torch.empty_like(_dense(weight), dtype=dtype) for weight in weights], new_stats(weights)


@operator("standardise_weights_backward", formula=True)
def _standardise_weights_backward(
    grads: Sequence[Tensor], weights: Sequence[Tensor], gains: Sequence[Tensor], stats: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    from ttfs_kernels.triton_backend.standardisation import backward_launches

    weights, gains = [_dense(weight) for weight in weights], [gain.contiguous() for gain in gains]
    grads = [_as_dense(grad, weight) for grad, weight in zip(grads, weights, strict=True)]
    grad_weights, grad_gains = [torch.empty_like(weight) for weight in weights], [torch.empty_like(g) for g in gains]
    for launch in backward_launches(grads, weights, gains, grad_weights, grad_gains, stats):
        launch.run()
    return grad_weights, grad_gains


@fake("standardise_weights_backward")
def _(grads, weights, gains, stats):
    return [torch.empty_like(_dense(weight)) for weight in weights], [torch.empty_like(g.contiguous()) for g in gains]


def _dense(weight: Tensor) -> Tensor:
    """Rows in memory, one a neuron: contiguous or channels last, as it is if it is one of them."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return weight
    return weight.contiguous()


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
