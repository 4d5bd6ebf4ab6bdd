"""A layer in autograd's graph, whichever backend computes it; autocast's dtypes; derivatives that are refused."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ttfs_kernels.contraction import Geometry

Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]  # x, weight, bias, skip, skip_weight
Kept = tuple[Tensor | None, ...]  # for the backward pass


class Layer(Protocol):
    """A backend's two passes of a layer."""

    @property
    def geometry(self) -> Geometry | None:
        """Of a convolution; None if the layer is fully connected."""
        ...

    def forward(self, operands: Operands, with_derivatives: bool) -> tuple[Tensor, Kept]:
        """Activations, and what the backward pass needs, if there will be one."""
        ...

    def backward(self, grad: Tensor, kept: Kept, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Gradients of the operands; None or anything where not needed."""
        ...


def apply_layer(layer: Layer, operands: Operands) -> Tensor:
    """Activations of a layer, differentiable once, in reverse mode."""
    reverse_mode_only(_function(layer), *operands)
    with_derivatives = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    return DFTLayer.apply(*operands, layer, with_derivatives)


class DFTLayer(torch.autograd.Function):
    """Keeps what the layer's forward pass returns, whose dtypes the backward pass has, too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        skip: Tensor | None,
        skip_weight: Tensor | None,
        layer: Layer,
        with_derivatives: bool,
    ) -> Tensor:
        with without_autocast(x):
            y, kept = layer.forward((x, weight, bias, skip, skip_weight), with_derivatives)
        if with_derivatives:
            ctx.save_for_backward(*kept)
        ctx.layer = layer
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if grad is None:
            return (None,) * 7
        first_derivatives_only(_function(ctx.layer), grad)
        with without_autocast(grad):
            found = ctx.layer.backward(grad, ctx.saved_tensors, ctx.needs_input_grad[:5])
        return *found, None, None


def _function(layer: Layer) -> str:
    return "dft_linear" if layer.geometry is None else "dft_conv2d"


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
