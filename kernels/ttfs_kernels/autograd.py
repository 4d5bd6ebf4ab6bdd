"""What layers in autograd's graph share: autocast's dtypes, and the derivatives that there are not."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass will follow."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def autocast(x: Tensor, weight: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Operands in autocast's dtype where it is on.

    Biases and skip weights stay as they are, since the firing rule works in float32 anyway.
    """
    if not _autocasts(x):
        return x, weight, skip
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if skip is None else skip.to(dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: a pass has chosen its dtypes, and a backward pass keeps those of its forward pass."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def _autocasts(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)  # PyTorch refuses to ask for meta


def first_derivatives_only(function: str, grad: Tensor) -> None:
    """Refuse what a backward pass that is not made of differentiable operators would get wrong.

    Raises:
        RuntimeError: a second derivative is asked for, or gradients come in batches.
    """
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{function}: create_graph must be False; got True. The backward pass has no derivative of its own."
        )
    try:
        grad.untyped_storage()  # which vmap's tensors do not have
    except NotImplementedError as error:
        raise RuntimeError(
            f"{function}: is_grads_batched must be False; got True. Ask torch.autograd.grad for one gradient at a time."
        ) from error
