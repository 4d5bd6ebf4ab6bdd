"""Layers as autograd functions, for every backend; autocast; errors for derivatives that layers do not have."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]  # x, weight, bias, skip, skip_weight
Kept = tuple[Tensor | None, ...]  # tensors kept for the backward pass


class Layer(Protocol):
    """Interface of a backend: the forward and backward pass of a layer."""

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor, ...], Kept]:
        """Outputs (activations; with batch norm also mean and variance), and the tensors that the backward pass needs.

        `operands` are ordered as in `Operands`; with batch norm they are x, weight, γ, β, skip and skip_weight.
        """
        ...

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Gradients of the operands, in their order; where `needs` is False, any value, which is ignored."""
        ...


def apply_layer(function: str, layer: Layer, operands: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """The outputs of `layer.forward`, recorded in autograd's graph: activations are differentiated once, in reverse."""
    reverse_mode_only(function, *operands)
    with_derivatives = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    return DFTLayer.apply(function, layer, with_derivatives, *operands)


class DFTLayer(torch.autograd.Function):
    """Autograd function of a layer. The backward pass keeps the dtypes of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, function: str, layer: Layer, with_derivatives: bool, *operands: Tensor | None
    ) -> tuple[Tensor, ...]:
        assert operands[0] is not None
        with without_autocast(operands[0]):
            found, kept = layer.forward(operands, with_derivatives)
        if with_derivatives:
            ctx.save_for_backward(*kept)
        ctx.function, ctx.layer = function, layer
        if len(found) > 1:
            ctx.mark_non_differentiable(*found[1:])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, needs = grads[0], ctx.needs_input_grad[3:]
        if grad is None:
            return (None,) * (3 + len(needs))
        first_derivatives_only(ctx.function, grad)
        with without_autocast(grad):
            return None, None, None, *ctx.layer.backward(grad, ctx.saved_tensors, needs)


def autocast(x: Tensor, weight: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast x, weight and skip to autocast's dtype if autocast is on; float64 stays, as in `torch.nn.Linear`.

    Biases and skip weights are not cast, since the firing rule computes in float32 anyway.
    """
    if not autocasts(x):
        return x, weight, skip
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if skip is None else skip.to(dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Context with autocast off: operands are cast already, and a backward pass keeps its forward pass's dtypes."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def autocasts(*operands: Tensor) -> bool:
    """Whether autocast casts these operands: it is on for their device, and none of them is float64."""
    device = operands[0].device.type
    on = device != "meta" and torch.is_autocast_enabled(device)  # PyTorch raises an error for meta
    return on and all(operand.dtype != torch.float64 for operand in operands)


def reverse_mode_only(function: str, *operands: Tensor | None) -> None:
    """Refuse forward mode and transforms of `torch.func`, which need passes made of differentiable operators."""
    if torch.compiler.is_compiling():
        return
    tangents = (forward_ad.unpack_dual(operand).tangent for operand in operands if operand is not None)
    if torch._C._are_functorch_transforms_active() or any(tangent is not None for tangent in tangents):
        raise RuntimeError(
            f"{function}: derivatives must be taken in reverse mode; got forward mode or a transform of torch.func. "
            "Use backward() or torch.autograd.grad."
        )


def first_derivatives_only(function: str, grad: Tensor) -> None:
    """Refuse second derivatives and batched gradients, which the backward pass would compute wrongly."""
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{function}: create_graph must be False; got True. The backward pass cannot be differentiated."
        )
    try:
        grad.untyped_storage()  # batched tensors have no storage
    except NotImplementedError as error:
        raise RuntimeError(
            f"{function}: is_grads_batched must be False; got True. Ask torch.autograd.grad for one gradient at a time."
        ) from error
