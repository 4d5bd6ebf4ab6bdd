"""A layer that computes nothing, as an operator of PyTorch: what dispatcher, autograd and allocations take alone.

It has a layer's tensors and options, one node of autograd with one operator in its forward and one in its backward
pass, and is defined the shortest way: by `torch.library.Library`, with formulas of its own.
"""

from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("host_time", "FRAGMENT")
OPTIONS = "int[] geometry, float[] neuron"
library.define(f"layer(Tensor x, Tensor weight, Tensor bias, {OPTIONS}) -> (Tensor, Tensor)")
KEPT = "Tensor x, Tensor y, Tensor gain, Tensor weight"
library.define(f"layer_backward(Tensor grad, {KEPT}, {OPTIONS}) -> (Tensor, Tensor, Tensor)")
GEOMETRY, NEURON = [1, 1, 1, 1, 1, 1, 1, 1], [1.0, 11.0, 0.0]


def forward(x: Tensor, weight: Tensor, bias: Tensor, geometry: list[int], neuron: list[float]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def backward(
    grad: Tensor, x: Tensor, y: Tensor, gain: Tensor, weight: Tensor, geometry: list[int], neuron: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[0], dtype=torch.float32)


class Layer(torch.autograd.Function):
    """The operator's formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            y, gain = torch.ops.host_time.layer.default(x, weight, bias, *options)
        ctx.mark_non_differentiable(gain)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, gain, weight)
        ctx.options = options
        return y, gain

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            grads = torch.ops.host_time.layer_backward.default(grads[0], *ctx.saved_tensors, *ctx.options)
        return *grads, None, None


def dispatch(x: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and torch._C._any_requires_grad(x, weight, bias):
        return Layer.apply(x, weight, bias, *options)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.host_time.layer.default(x, weight, bias, *options)


library.impl("layer", forward, "CompositeExplicitAutograd")
library.impl("layer_backward", backward, "CompositeExplicitAutograd")
library.impl("layer", dispatch, "Autograd")


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Uninitialised activations, shape of x; its gradients are uninitialised, too."""
    return torch.ops.host_time.layer.default(x, weight, bias, GEOMETRY, NEURON)[0]
