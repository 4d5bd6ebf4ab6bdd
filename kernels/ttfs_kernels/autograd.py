"""A layer in autograd's graph, whichever backend computes it; autocast's dtypes; derivatives that are refused."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]  # x, weight, bias, skip, skip_weight
Kept = tuple[Tensor | None, ...]  # for the backward pass


class Layer(Protocol):
    """A backend's two passes of a layer."""

    def forward(self, operands: Any, with_derivatives: bool) -> tuple[tuple[Tensor, ...], Kept]:
        """(activations, with batch norm also their statistics), and what the backward pass needs if there will be one.

        Operands are those of `Operands`, with batch norm γ behind the weight, and β in place of the bias.
        """
        ...

    def backward(self, grad: Tensor, kept: Any, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Gradients of the operands; None or anything where not needed."""
        ...


def apply_layer(function: str, layer: Layer, operands: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """What the layer's forward pass returns, activations differentiable once, in reverse mode.

    Raises:
        RuntimeError: another derivative is asked for; in the name of `function`.
    """
    reverse_mode_only(function, *operands)
    with_derivatives = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    return DFTLayer.apply(function, layer, with_derivatives, *operands)


class DFTLayer(torch.autograd.Function):
    """A layer in autograd's graph. The backward pass has the dtypes of the forward pass."""

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
    """Operands in autocast's dtype where it is on; float64 stays, as in `torch.nn.Linear`.

    Biases and skip weights stay as they are, since the firing rule works in float32 anyway.
    """
    if not autocasts(x):
        return x, weight, skip
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if skip is None else skip.to(dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: a pass has chosen its dtypes, and a backward pass keeps those of its forward pass."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def autocasts(*operands: Tensor) -> bool:
    """Whether operands get autocast's dtype: where it is on, and none is float64, which it leaves alone."""
    device = operands[0].device.type
    on = device != "meta" and torch.is_autocast_enabled(device)  # PyTorch refuses to ask for meta
    return on and all(operand.dtype != torch.float64 for operand in operands)


def reverse_mode_only(function: str, *operands: Tensor | None) -> None:
    """Refuse forward mode and the transforms of `torch.func`: passes are no differentiable operators.

    Raises:
        RuntimeError: an operand has a tangent, or such a transform runs.
    """
    if torch.compiler.is_compiling():
        return
    tangents = (forward_ad.unpack_dual(operand).tangent for operand in operands if operand is not None)
    if torch._C._are_functorch_transforms_active() or any(tangent is not None for tangent in tangents):
        raise RuntimeError(
            f"{function}: derivatives must be taken in reverse mode; got forward mode or a transform of torch.func. "
            "Use backward() or torch.autograd.grad."
        )


def first_derivatives_only(function: str, grad: Tensor) -> None:
    """Refuse second derivatives and batches of gradients, which a backward pass would get wrong.

    Raises:
        RuntimeError: one of both is asked for.
    """
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{function}: create_graph must be False; got True. The backward pass has no derivative of its own."
        )
    try:
        grad.untyped_storage()  # which tensors of batches do not have
    except NotImplementedError as error:
        raise RuntimeError(
            f"{function}: is_grads_batched must be False; got True. Ask torch.autograd.grad for one gradient at a time."
        ) from error
