"""`dft_linear` and `dft_conv2d`: the public functions and the registered operators behind them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import torch_operators, triton_operators  # noqa: F401  (registers them)
from ttfs_kernels.backends import operators_for
from ttfs_kernels.checks import check_conv2d, check_linear, check_pool, pair
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron


def dft_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Tensor:
    """Weigh activations, then fire.

    With A = Σ w·x + b and W = σ·Σ w·[x > 0]:
    y = 1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0.

    Args:
        x: [..., in_features], activations in [0, 1] (1 = the window's start, 0 = silent); fp16, bf16, fp32 or fp64.
        weight: [out_features, in_features], in threshold heights.
        bias: [out_features] initial membrane potential, in threshold heights. Default: None.
        neuron: how it fires and how it is differentiated; see `Neuron`, also for σ and δ below.
        backend: "torch"; "triton", our kernels for every pass; or "auto", the faster for each pass: on a GPU our kernel
            or a stacked library call, elsewhere "torch". See `ttfs_kernels.backend`.
    Returns:
        [..., out_features], dtype of x (under autocast, autocast's dtype).
    Gradient: for x, weight and bias (Eq. 9, 10); zero for saturated and silent neurons and, if σ > 0, at silent
        inputs, which a small change of x leaves silent; but see δ. Not twice differentiable.
    Precision: the rule is evaluated in float32 or wider; 16-bit potentials are rounded before it.
    Raises:
        ValueError, TypeError: shapes, dtypes or devices disagree.
        RuntimeError: the backend asked for cannot run here.
    Source: Wei et al., ICCV 2023, Eq. 5 to 7, 9, 10.
    Example:
        >>> x = torch.tensor([[0.5, 0.0, 1.0]])  # one input fires half-way, one not at all, one at once
        >>> weight = torch.tensor([[0.5, 2.0, 0.25], [0.5, 2.0, -1.0]], requires_grad=True)
        >>> y = dft_linear(x, weight, neuron=Neuron(psp_persistence=0.5))
        >>> y  # A = 0.5, W = 0.375: (A + W) / (1 + W); the second neuron stays silent
        tensor([[0.6364, 0.0000]], grad_fn=<ViewBackward0>)
        >>> y.sum().backward()
    """
    check_linear(x, weight, bias)
    family, *selection = operators_for("dft_linear", backend, x)
    operators = torch.ops.ttfs
    operator = operators.per_pass_linear.default if family == "per_pass" else operators.dft_linear.default
    rows = x.reshape(-1, x.shape[-1])
    with_derivatives = _needs_gradient(x, weight, bias)
    y = operator(rows, weight, bias, neuron.pack(), with_derivatives, *selection)[0]
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
    pool: int = 1,
    fuse_pool: bool | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Tensor:
    """Convolve activations, then fire, and if asked for pass on the earliest spike of each window alone.

    With A = Σ w·x + b and W = σ·Σ w·[x > 0]:
    y = 1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0. Zero padding is silence.

    Args:
        x: [batch, in_channels, height, width], activations in [0, 1] (1 = the window's start, 0 = silent);
            fp16, bf16, fp32 or fp64. Any strides; channels-last is read without a layout copy.
        weight: [out_channels, in_channels / groups, rows, columns], in threshold heights.
        bias: [out_channels] initial membrane potential, in threshold heights. Default: None.
        stride, padding, dilation: one integer, or (rows, columns).
        groups: blocks of channels that are not connected with each other.
        pool: 1, or 2 for `max_pool2d(y, 2)`: the earliest spikes of windows of 2×2 neurons. Our kernels keep only
            those for the backward pass. Of several NaN in a window, the last alone makes gradients NaN.
        fuse_pool: pool in the kernel of the convolution, or (False) in one of its own. None: in the convolution where
            a table says that this is faster.
        neuron, backend: as in `dft_linear`.
    Returns:
        [batch, out_channels, rows / pool, columns / pool], dtype of x (under autocast, autocast's), channels-last.
    Raises:
        RuntimeError: `fuse_pool=True` where our kernels cannot run.
    Gradient, precision, other errors, source: as in `dft_linear`.
    Example:
        >>> x, weight = torch.rand(8, 3, 32, 32), torch.randn(16, 3, 3, 3) / 5
        >>> y = dft_conv2d(x, weight, stride=2, padding=1, neuron=Neuron(psp_persistence=0.25))
        >>> y.shape, y.is_contiguous(memory_format=torch.channels_last)
        (torch.Size([8, 16, 16, 16]), True)
        >>> spikes = y > 0
    """
    stride = pair("dft_conv2d", "stride", stride, 1)
    padding = pair("dft_conv2d", "padding", padding, 0)
    dilation = pair("dft_conv2d", "dilation", dilation, 1)
    check_conv2d(x, weight, bias, padding, dilation, groups)
    check_pool(x, weight, Geometry(stride, padding, dilation, groups), pool)
    family, *selection = operators_for("dft_conv2d", backend, x)
    geometry = stride, padding, dilation, groups
    options = neuron.pack(), _needs_gradient(x, weight, bias)
    if family == "per_pass":
        operator = torch.ops.ttfs.per_pass_conv2d.default
        return operator(x, weight, bias, *geometry, pool, *options, *selection, fuse_pool)[0]
    if fuse_pool:
        raise RuntimeError(
            f"dft_conv2d: fuse_pool must be None or False where our kernels do not run; got {fuse_pool} with "
            f'backend={backend!r} on {x.device}. Use backend="triton" on a GPU, or leave it out.'
        )
    y = torch.ops.ttfs.dft_conv2d.default(x, weight, bias, *geometry, *options)[0]
    return F.max_pool2d(y, pool) if pool > 1 else y


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
