"""The number of spikes as a target of training, with a surrogate gradient."""

from typing import Any

import torch
from torch import Tensor

from ttfs_triton.nn.statistics import channels_innermost, in_parts, where_fired


def count_spikes(
    activations: Tensor, weight: Tensor | None = None, reached: Tensor | None = None, *, width: float = 1.0
) -> Tensor:
    """How many neurons fired, each weighed by its place: Σ weight·[a > 0], over all samples.

    Args:
        activations: [N, features] or [N, channels, height, width], in [0, 1]; 0 and nan are silent.
        weight: [height, width], the cost of a spike at each place; None: 1.
        reached: ones and zeros that broadcast with the activations, neurons that some input reaches; None: all.
        width: δ of the surrogate, positive.
    Returns:
        float32 scalar.
    Gradient: weight·max(0, 1 − a/δ), as the surrogate of a mask [a > 0] in `ttfs_kernels.Neuron`: of late spikes, which
        could vanish, and of silent neurons, which only their layer's own surrogate moves. More spikes are not asked of
        neurons that no input reaches: all of a channel would fire at once, at the initial potential.
    """
    return _CountSpikes.apply(activations, weight, reached, width)  # pyright: ignore[reportReturnType]


class _CountSpikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activations: Tensor, weight: Tensor | None, reached: Tensor | None, width: float) -> Tensor:
        ctx.save_for_backward(activations, weight, reached)
        ctx.width = width
        fired = [where_fired(part).sum(0, dtype=torch.float32) for part in in_parts(channels_innermost(activations))]
        of_neurons = sum(fired[1:], fired[0])
        if weight is None:
            return of_neurons.sum()
        return of_neurons.view(weight.numel(), -1).sum(1) @ weight.flatten()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        activations, weight, reached = ctx.saved_tensors
        scale = grads[0].to(activations.dtype)
        near = torch.mul(activations, -1 / ctx.width).add_(1).clamp_min_(0).mul_(scale)
        if weight is not None:
            near.mul_(weight)
        if reached is not None:
            near.mul_(torch.where(scale > 0, 1, reached))
        return near, None, None, None
