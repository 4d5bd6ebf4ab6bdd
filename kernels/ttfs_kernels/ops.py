"""`dft_linear` and `dft_conv2d`: the public functions and the registered operators behind them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttfs_kernels import torch_backend
from ttfs_kernels.checks import check_conv2d, check_linear, check_scalars, pair
from ttfs_kernels.contraction import Geometry

BACKENDS = ("auto", "triton", "torch")


def available_backends() -> tuple[str, ...]:
    """Backends that can run in this version; "auto" chooses among them."""
    return ("torch",)


def dft_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    psp_persistence: float = 1.0,
    derivative_clip: float | None = 11.0,
    backend: str = "auto",
) -> Tensor:
    """Weigh activations, then fire.

    With A = Σ w·x + b and W = σ·Σ w·[x > 0]:
    y = 1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0.

    Args:
        x: [..., in_features], activations in [0, 1] (1 = the window's start, 0 = silent); fp16, bf16, fp32 or fp64.
        weight: [out_features, in_features], in threshold heights.
        bias: [out_features] initial membrane potential, in threshold heights. Default: None.
        psp_persistence: σ, the share of each postsynaptic potential's slope that persists while this layer fires, in
            [0, 1]. 1 is the paper's ReL-PSP neuron, 0 the two-phase neuron: y = clamp(A, 0, 1), one contraction.
        derivative_clip: bound on both local derivatives, as in the published training code; None = exact.
            Unused at σ = 0, where they are 1. Default: 11.
        backend: "torch", or "auto" for the fastest that can run here.
    Returns:
        [..., out_features], dtype of x (under autocast, autocast's dtype).
    Gradient: for x, weight and bias (Eq. 9, 10); zero for saturated and silent neurons and, if σ > 0, at silent
        inputs, which a small change of x leaves silent. Not twice differentiable.
    Precision: the rule is evaluated in float32 or wider; 16-bit potentials are rounded before it.
    Raises:
        ValueError, TypeError: shapes, dtypes, devices or scalars disagree.
        RuntimeError: the backend asked for cannot run here.
    Source: Wei et al., ICCV 2023, Eq. 5 to 7, 9, 10.
    """
    derivative_clip = check_scalars("dft_linear", psp_persistence, derivative_clip)
    check_linear(x, weight, bias)
    _check_backend("dft_linear", backend)
    rows = x.reshape(-1, x.shape[-1])
    y = torch.ops.ttfs.dft_linear(
        rows, weight, bias, float(psp_persistence), derivative_clip, _needs_gradient(x, weight, bias)
    )[0]
    return y.view(*x.shape[:-1], weight.shape[0])


def dft_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    psp_persistence: float = 1.0,
    derivative_clip: float | None = 11.0,
    backend: str = "auto",
) -> Tensor:
    """Convolve activations, then fire.

    With A = Σ w·x + b and W = σ·Σ w·[x > 0]:
    y = 1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0. Zero padding is silence.

    Args:
        x: [batch, in_channels, height, width], activations in [0, 1] (1 = the window's start, 0 = silent);
            fp16, bf16, fp32 or fp64. Any strides; channels-last is read without a layout copy.
        weight: [out_channels, in_channels / groups, rows, columns], in threshold heights.
        bias: [out_channels] initial membrane potential, in threshold heights. Default: None.
        stride, padding, dilation: one integer, or (rows, columns).
        groups: blocks of channels that are not connected with each other.
        psp_persistence, derivative_clip, backend: as in `dft_linear`.
    Returns:
        [batch, out_channels, rows, columns], dtype of x (under autocast, autocast's dtype), channels-last.
    Gradient, precision, errors, source: as in `dft_linear`.
    """
    derivative_clip = check_scalars("dft_conv2d", psp_persistence, derivative_clip)
    stride = pair("dft_conv2d", "stride", stride, 1)
    padding = pair("dft_conv2d", "padding", padding, 0)
    dilation = pair("dft_conv2d", "dilation", dilation, 1)
    check_conv2d(x, weight, bias, padding, dilation, groups)
    _check_backend("dft_conv2d", backend)
    return torch.ops.ttfs.dft_conv2d(
        x,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        float(psp_persistence),
        derivative_clip,
        _needs_gradient(x, weight, bias),
    )[0]


def _check_backend(function: str, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{function}: backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    if backend == "triton":
        raise RuntimeError(
            f'{function}: backend="triton" must have Triton kernels; this version has none. '
            'Use backend="torch" or "auto".'
        )


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# Operators. Each returns (activations, stacked input, stacked derivatives); the last two feed the backward pass and
# are empty where `with_derivatives` is false or σ = 0.


@torch.library.custom_op("ttfs::dft_linear", mutates_args=())
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    psp_persistence: float,
    derivative_clip: float,
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch_backend.linear_forward(x, weight, bias, psp_persistence, derivative_clip, with_derivatives)


@_linear.register_fake
def _(x, weight, bias, psp_persistence, derivative_clip, with_derivatives):
    rows, outputs = x.shape[0], weight.shape[0]
    y = x.new_empty(rows, outputs)
    if psp_persistence == 0.0 or not with_derivatives:
        return y, x.new_empty(0), x.new_empty(0)
    return y, x.new_empty(2 * rows, x.shape[1]), x.new_empty(2 * rows, outputs)


@torch.library.custom_op("ttfs::dft_linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor, x: Tensor, saved: Tensor, weight: Tensor, psp_persistence: float, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch_backend.linear_backward(grad, x, saved, weight, psp_persistence, needs)


@_linear_backward.register_fake
def _(grad, x, saved, weight, psp_persistence, needs):
    return (
        grad.new_empty(grad.shape[0], weight.shape[1]) if needs[0] else grad.new_empty(0),
        grad.new_empty(weight.shape) if needs[1] else grad.new_empty(0),
        _new_bias_gradient(grad, weight) if needs[2] else grad.new_empty(0),
    )


@torch.library.custom_op("ttfs::dft_conv2d", mutates_args=())
def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    psp_persistence: float,
    derivative_clip: float,
    with_derivatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(stride, padding, dilation, groups)
    return torch_backend.conv2d_forward(x, weight, bias, geometry, psp_persistence, derivative_clip, with_derivatives)


@_conv2d.register_fake
def _(
    x,
    weight,
    bias,
    stride,
    padding,
    dilation,
    groups,
    psp_persistence,
    derivative_clip,
    with_derivatives,
):
    rows, columns = Geometry(stride, padding, dilation, groups).map_size(x.shape[2:], weight.shape[2:])
    batch, channels = x.shape[0], weight.shape[0]
    y = _new_channels_last(x, batch, channels, rows, columns)
    if psp_persistence == 0.0 or not with_derivatives:
        return y, x.new_empty(0), x.new_empty(0)
    stacked = _new_channels_last(x, 2 * batch, *x.shape[1:])
    return y, stacked, _new_channels_last(x, 2 * batch, channels, rows, columns)


@torch.library.custom_op("ttfs::dft_conv2d_backward", mutates_args=())
def _conv2d_backward(
    grad: Tensor,
    x: Tensor,
    saved: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    psp_persistence: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = Geometry(stride, padding, dilation, groups)
    return torch_backend.conv2d_backward(grad, x, saved, weight, geometry, psp_persistence, needs)


@_conv2d_backward.register_fake
def _(grad, x, saved, weight, stride, padding, dilation, groups, psp_persistence, needs):
    return (
        _new_channels_last(grad, grad.shape[0], *x.shape[1:]) if needs[0] else grad.new_empty(0),
        _new_channels_last(grad, *weight.shape) if needs[1] else grad.new_empty(0),
        _new_bias_gradient(grad, weight) if needs[2] else grad.new_empty(0),
    )


def _new_channels_last(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _new_bias_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    return grad.new_empty(weight.shape[0], dtype=torch.promote_types(grad.dtype, torch.float32))


# Autograd. σ = 0 needs its input and its output; σ > 0 the stacked pair that the forward pass made.


def _save(ctx, inputs, output) -> None:
    x, weight, bias, *options, psp_persistence, _, _ = inputs
    y, stacked, derivatives = output
    ctx.mark_non_differentiable(stacked, derivatives)
    ctx.set_materialize_grads(False)
    kept = (x, y) if psp_persistence == 0.0 else (stacked, derivatives)
    ctx.save_for_backward(*kept, weight)
    ctx.options = (*options, psp_persistence)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.other_inputs = len(inputs) - 3


def _differentiate(ctx, backward_operator, grad):
    needs = list(ctx.needs_input_grad[:3])
    if grad is None:
        return (None,) * (3 + ctx.other_inputs)
    grads = backward_operator(grad, *ctx.saved_tensors, *ctx.options, needs)
    grad_x, grad_weight, grad_bias = (g if need else None for g, need in zip(grads, needs, strict=True))
    if grad_bias is not None:
        grad_bias = grad_bias.to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, *(None,) * ctx.other_inputs


_linear.register_autograd(
    lambda ctx, grad, *_: _differentiate(ctx, torch.ops.ttfs.dft_linear_backward, grad), setup_context=_save
)
_conv2d.register_autograd(
    lambda ctx, grad, *_: _differentiate(ctx, torch.ops.ttfs.dft_conv2d_backward, grad), setup_context=_save
)

# Autocast: x and weight in autocast's dtype (the casts are differentiable, so float32 weights get float32 gradients);
# the bias stays as it is, since the rule works in float32 anyway. A backward pass inside an autocast region keeps the
# dtypes of its forward pass. torch.library.register_autocast would fix the dtype at registration, hence by hand.

_library = torch.library.Library("ttfs", "FRAGMENT")


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


for _name in ("dft_linear", "dft_conv2d"):
    for _device_type in ("cpu", "cuda", "mps", "xpu"):
        _register_autocast(_name, _device_type, casts=True)
        _register_autocast(f"{_name}_backward", _device_type, casts=False)
