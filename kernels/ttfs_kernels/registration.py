"""What the registered operators of both backends share: definition, fake outputs, autograd formula, autocast.

Operators are defined by `torch.library.Library`, not by `torch.library.custom_op`, whose wrappers take longer than
all else from the public function to the launch of a kernel (`bench/host_time.py`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("ttfs", "FRAGMENT")

OPERANDS = 5  # of every layer, the first arguments of its operator: x, weight, bias, skip, skip_weight
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # and their gradients
Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def operator(name: str, *, formula: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define `ttfs::name` by a function: schema from its annotations, one implementation for all devices.

    The function changes none of its arguments, and no result shares memory with an argument or another result.

    Args:
        name: without the namespace.
        formula: `register_autograd` follows. Otherwise differentiating the operator raises RuntimeError.
    """

    def define(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        if not formula:
            register_autograd(name, partial(_refuse, name), lambda *_: None)
        return function

    return define


def _refuse(name: str, *_: object) -> None:
    raise RuntimeError(f"Trying to backward through ttfs::{name} but no autograd formula was registered.")


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register how the outputs of an operator look, for tensors without memory."""
    return torch.library.register_fake(f"ttfs::{name}", lib=_library)


def register_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Give an operator a formula: `backward(ctx, *grads)`, and `setup_context(ctx, inputs, output)` for its ctx."""
    overload = getattr(torch.ops.ttfs, name).default
    below = torch._C._AutoDispatchBelowAutograd

    def forward(ctx, *inputs):
        with below():
            output = overload(*inputs)
        setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    apply = type(f"Differentiable_{name}", (torch.autograd.Function,), members).apply

    def dispatch(*inputs):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return apply(*inputs)
        with below():
            return overload(*inputs)

    _library.impl(name, dispatch, "Autograd")


def new_channels_last(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised [N, C, rows, columns], channels-last, dtype and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def all_operands(operands: Sequence[Any]) -> Operands:
    """x, weight, bias, skip and skip_weight, of which the last two may not have been given."""
    all_five: list[Any] = [*operands, None, None]
    x, weight, bias, skip, skip_weight = all_five[:OPERANDS]
    return x, weight, bias, skip, skip_weight


def or_empty(tensor: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns for a tensor that there may not be: it may return neither None nor one tensor twice."""
    return like.new_empty(0, dtype=dtype) if tensor is None else tensor


def fake_gradients(grad: Tensor, needs: Sequence[bool], x_shape: Sequence[int], weight_shape: Sequence[int]) -> Five:
    """Uninitialised gradients of all operands, maps channels-last, those of bias and skip weight in at least float32.

    Empty where not needed.
    """
    precise = torch.promote_types(grad.dtype, torch.float32)
    shapes = (x_shape, weight_shape, weight_shape[:1], grad.shape, weight_shape[:1])
    made = []
    for shape, need in zip(shapes, needs, strict=True):
        layout = torch.channels_last if len(shape) == 4 and need else torch.contiguous_format
        dtype = precise if len(shape) == 1 and need else grad.dtype
        made.append(torch.empty(shape if need else (0,), dtype=dtype, device=grad.device, memory_format=layout))
    return made[0], made[1], made[2], made[3], made[4]


def differentiate(ctx, backward_operator, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    """Call a backward operator with (grad, saved tensors, options, needs, last options) and arrange what it returns."""
    needs = list(ctx.needs_input_grad[:OPERANDS])
    if grad is None:
        return (None,) * (OPERANDS + ctx.other_inputs)
    # Past the autograd key where no second derivatives are asked for: there it would only be called through Python.
    with nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd():
        grads = backward_operator(grad, *ctx.saved_tensors, *ctx.options, needs, *ctx.last_options)
    found = (g.to(dtype) if need else None for g, dtype, need in zip(grads, ctx.operand_dtypes, needs, strict=True))
    return *found, *(None,) * ctx.other_inputs


# Autocast: x, weight and skip in autocast's dtype (the casts are differentiable, so float32 weights get float32
# gradients); bias and skip weights stay as they are, since the rule works in float32 anyway. A backward pass inside an
# autocast region keeps the dtypes of its forward pass. torch.library.register_autocast would fix the dtype at
# registration, hence by hand.


def register_autocast(*names: str) -> None:
    """Give operators (x, weight, bias, skip, ...) and their `NAME_backward` a rule under autocast on every device."""
    for name in names:
        for device_type in ("cpu", "cuda", "mps", "xpu"):
            _register_autocast(name, device_type, casts=True)
            _register_autocast(f"{name}_backward", device_type, casts=False)


def _register_autocast(name: str, device_type: str, casts: bool) -> None:
    key = f"Autocast{device_type.upper()}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    operator = getattr(torch.ops.ttfs, name)

    def with_autocast(x, weight, bias, skip, *others):
        if casts:
            dtype = torch.get_autocast_dtype(device_type)
            x, weight, skip = x.to(dtype), weight.to(dtype), None if skip is None else skip.to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(x, weight, bias, skip, *others)

    _library.impl(name, with_autocast, key)
