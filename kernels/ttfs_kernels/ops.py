"""`dft_linear` and `dft_conv2d`: the public functions, over `direct` or the registered operators."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_kernels import torch_operators, triton_operators
from ttfs_kernels.backends import operators_for
from ttfs_kernels.checks import check_conv2d, check_linear, check_options, pair
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.direct import Formula, autocast, call, is_plain, needs_gradient
from ttfs_kernels.neuron import Neuron


def dft_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Tensor:
    """Weigh activations, then fire.

    With A = Σ w·x + v·x_skip + b and W = σ·(Σ w·[x > 0] + v·[x_skip > 0]):
    y = 1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0.

    Args:
        x: [..., in_features], activations in [0, 1] (1 = the window's start, 0 = silent); fp16, bf16, fp32 or fp64.
        weight: [out_features, in_features], in threshold heights.
        bias: [out_features] initial membrane potential, in threshold heights. Default: None.
        skip: [..., out_features], activations of an earlier layer whose spikes were delayed until the window in which
            those of x arrive, each of them at one neuron; dtype of x. Default: None.
        skip_weight: [out_features], v, weights of their synapses, in threshold heights. Comes with `skip`.
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
        tensor([[0.6364, 0.0000]], grad_fn=<DFTLayerBackward>)
        >>> y.sum().backward()
    """
    operands: tuple[Any, ...] = x, weight, bias
    if skip is not None or skip_weight is not None:
        operands = x, weight, bias, skip, skip_weight
    if x.dim() != 2:
        check_linear(*operands)
        flat, late = (None if rows is None else rows.reshape(-1, rows.shape[-1]) for rows in (x, skip))
        assert flat is not None
        y = dft_linear(flat, weight, bias, skip=late, skip_weight=skip_weight, neuron=neuron, backend=backend)
        return y.view(*x.shape[:-1], weight.shape[0])
    selection = operators_for("dft_linear", backend, x)
    if is_plain(*operands):
        return call(_linear_formula, operands, neuron, selection)
    check_linear(*operands)
    family, *options = selection
    operators = torch.ops.ttfs
    operator = operators.per_pass_linear.default if family == "per_pass" else operators.dft_linear.default
    operands = x, weight, bias, skip, skip_weight
    return operator(*operands, neuron.pack(), needs_gradient(*operands), *options)[0]


def _linear_formula(
    operands: tuple[Any, ...], differentiable: bool, neuron: Neuron, selection: tuple[str, ...]
) -> Formula:
    check_linear(*operands)
    family, *options = selection
    if family == "dft":
        return torch_operators.linear_formula(neuron, differentiable)
    return triton_operators.linear_formula(autocast(*operands), neuron, differentiable, *options)


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
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Tensor:
    """Convolve activations, then fire, and if asked for pass on the earliest spike of each window alone.

    With A = Σ w·x + v·x_skip + b and W = σ·(Σ w·[x > 0] + v·[x_skip > 0]):
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
        skip: [batch, out_channels, rows, columns] of the output's size, activations of an earlier layer whose spikes
            were delayed until the window in which those of x arrive, each of them at one neuron; dtype of x. Not with a
            pool. Default: None.
        skip_weight: [out_channels], v, weights of their synapses, in threshold heights. Comes with `skip`.
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
    geometry = Geometry(
        pair("dft_conv2d", "stride", stride, 1),
        pair("dft_conv2d", "padding", padding, 0),
        pair("dft_conv2d", "dilation", dilation, 1),
        groups,
    )
    check_options(groups, pool, fuse_pool)
    selection = operators_for("dft_conv2d", backend, x)
    pools = selection[0] == "per_pass"
    if fuse_pool and not pools:
        raise RuntimeError(
            f"dft_conv2d: fuse_pool must be None or False where our kernels do not run; got {fuse_pool} with "
            f'backend={backend!r} on {x.device}. Use backend="triton" on a GPU, or leave it out.'
        )
    operands: tuple[Any, ...] = x, weight, bias
    if skip is not None or skip_weight is not None:
        operands = x, weight, bias, skip, skip_weight
    if is_plain(*operands):
        y = call(_conv2d_formula, operands, geometry, pool, fuse_pool, neuron, selection)
    else:
        check_conv2d(operands, geometry, pool)
        operands = x, weight, bias, skip, skip_weight
        options = neuron.pack(), needs_gradient(*operands), *selection[1:]
        if pools:
            y = torch.ops.ttfs.per_pass_conv2d.default(*operands, *geometry, pool, *options, fuse_pool)[0]
        else:
            y = torch.ops.ttfs.dft_conv2d.default(*operands, *geometry, *options)[0]
    return y if pools or pool == 1 else F.max_pool2d(y, pool)


def _conv2d_formula(
    operands: tuple[Any, ...],
    differentiable: bool,
    geometry: Geometry,
    pool: int,
    fuse_pool: bool | None,
    neuron: Neuron,
    selection: tuple[str, ...],
) -> Formula:
    check_conv2d(operands, geometry, pool)
    family, *options = selection
    if family == "dft":
        return torch_operators.conv2d_formula(geometry, neuron, differentiable)
    operands = autocast(*operands)
    return triton_operators.conv2d_formula(operands, geometry, pool, fuse_pool, neuron, differentiable, *options)
