"""What the registered operators of both backends share: fake outputs, the autograd formula's frame, autocast."""

import torch
from torch import Tensor


def new_channels_last(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised [N, C, rows, columns], channels-last, dtype and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def new_bias_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Uninitialised gradient of the bias, in at least float32."""
    return grad.new_empty(weight.shape[0], dtype=torch.promote_types(grad.dtype, torch.float32))


def differentiate(ctx, backward_operator, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    """Call a backward operator with (grad, saved tensors, options, needs, last options) and arrange what it returns."""
    needs = list(ctx.needs_input_grad[:3])
    if grad is None:
        return (None,) * (3 + ctx.other_inputs)
    grads = backward_operator(grad, *ctx.saved_tensors, *ctx.options, needs, *ctx.last_options)
    grad_x, grad_weight, grad_bias = (g if need else None for g, need in zip(grads, needs, strict=True))
    if grad_bias is not None:
        grad_bias = grad_bias.to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, *(None,) * ctx.other_inputs


# Autocast: x and weight in autocast's dtype (the casts are differentiable, so float32 weights get float32 gradients);
# the bias stays as it is, since the rule works in float32 anyway. A backward pass inside an autocast region keeps the
# dtypes of its forward pass. torch.library.register_autocast would fix the dtype at registration, hence by hand.

_library = torch.library.Library("ttfs", "FRAGMENT")


def register_autocast(*names: str) -> None:
    """Give operators (x, weight, ...) and their `NAME_backward` a rule under autocast on every device."""
    for name in names:
        for device_type in ("cpu", "cuda", "mps", "xpu"):
            _register_autocast(name, device_type, casts=True)
            _register_autocast(f"{name}_backward", device_type, casts=False)


def _register_autocast(name: str, device_type: str, casts: bool) -> None:
    key = f"Autocast{device_type.upper()}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    operator = getattr(torch.ops.ttfs, name)

    def with_autocast(x, weight, *others):
        if casts:
            dtype = torch.get_autocast_dtype(device_type)
            x, weight = x.to(dtype), weight.to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(x, weight, *others)

    _library.impl(name, with_autocast, key)
