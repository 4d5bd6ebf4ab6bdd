"""`dft_linear` and `dft_conv2d`: the public functions and the registered operators behind them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttfs_kernels import torch_operators, triton_operators  # noqa: F401  (registers them)
from ttfs_kernels.backends import operators_for
from ttfs_kernels.checks import check_conv2d, check_linear, check_scalars, pair


def dft_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    psp_persistence: float = 1.0,
    derivative_clip: float | None = 11.0,
    surrogate_width: float = 0.0,
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
        surrogate_width: δ. The exact gradient knows spikes that move, none that appear or vanish. With δ > 0 a silent
            neuron whose potential at the window's end, A + W, is within δ below 0 has a derivative, up to
            min(1/(1 + W), 2) at the border; and an input x < δ also gets (1 − x/δ) of its mask's gradient. Unused at
            σ = 0. Default: 0, exact.
        backend: "torch"; "triton", our kernels for every pass; or "auto", the faster for each pass: on a GPU our kernel
            or a stacked library call, elsewhere "torch". See `ttfs_kernels.backend`.
    Returns:
        [..., out_features], dtype of x (under autocast, autocast's dtype).
    Gradient: for x, weight and bias (Eq. 9, 10); zero for saturated and silent neurons and, if σ > 0, at silent
        inputs, which a small change of x leaves silent; but see surrogate_width. Not twice differentiable.
    Precision: the rule is evaluated in float32 or wider; 16-bit potentials are rounded before it.
    Raises:
        ValueError, TypeError: shapes, dtypes, devices or scalars disagree.
        RuntimeError: the backend asked for cannot run here.
    Source: Wei et al., ICCV 2023, Eq. 5 to 7, 9, 10.
    """
    derivative_clip = check_scalars("dft_linear", psp_persistence, derivative_clip, surrogate_width)
    check_linear(x, weight, bias)
    family, *selection = operators_for("dft_linear", backend, x)
    operators = torch.ops.ttfs
    operator = operators.blockwise_linear.default if family == "blockwise" else operators.dft_linear.default
    rows = x.reshape(-1, x.shape[-1])
    with_derivatives = _needs_gradient(x, weight, bias)
    scalars = float(psp_persistence), derivative_clip, float(surrogate_width)
    y = operator(rows, weight, bias, *scalars, with_derivatives, *selection)[0]
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
    surrogate_width: float = 0.0,
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
        psp_persistence, derivative_clip, surrogate_width, backend: as in `dft_linear`.
    Returns:
        [batch, out_channels, rows, columns], dtype of x (under autocast, autocast's dtype), channels-last.
    Gradient, precision, errors, source: as in `dft_linear`.
    """
    derivative_clip = check_scalars("dft_conv2d", psp_persistence, derivative_clip, surrogate_width)
    stride = pair("dft_conv2d", "stride", stride, 1)
    padding = pair("dft_conv2d", "padding", padding, 0)
    dilation = pair("dft_conv2d", "dilation", dilation, 1)
    check_conv2d(x, weight, bias, padding, dilation, groups)
    family, *selection = operators_for("dft_conv2d", backend, x)
    operators = torch.ops.ttfs
    operator = operators.blockwise_conv2d.default if family == "blockwise" else operators.dft_conv2d.default
    return operator(
        x,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        float(psp_persistence),
        derivative_clip,
        float(surrogate_width),
        _needs_gradient(x, weight, bias),
        *selection,
    )[0]


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
