"""The public functions, which check their arguments and pick a backend; their autograd functions."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup, get_world_size

from ttfs_kernels import checks
from ttfs_kernels.checks import Geometry, Operands, Size, autocasts, checked_geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.rule import is_formula
from ttfs_kernels.torch_layer import ClampedLayer, NormalisedLayer, Tensors, TorchLayer

EPSILON = 1e-12  # added to the squared norm of the centred weights: a filter of zeros gives zeros, not nan


class Normalised(NamedTuple):
    """Activations of a layer, and the statistics of its potentials.

    Attributes:
        activations: the output, as of `dft_conv2d` or `dft_linear`.
        mean, variance: [C], float32 or wider, of V = A + W over batch and positions; the variance is unbiased, as
            `torch.nn.BatchNorm2d` keeps it. No gradient.
    """

    activations: Tensor
    mean: Tensor
    variance: Tensor


class Normalisation(NamedTuple):
    """How potentials are normalised.

    Attributes:
        weight: γ [C], standard deviation of the normalised potential A' + W', in threshold heights.
        bias: β [C], its mean.
        estimate: [C], a value near μ. The PyTorch backend sums squares around it, so that no digits are lost; Triton
            kernels do not use it.
        epsilon: ε, added to the variance.
        group: processes that share their statistics; None: a process takes those of its images alone.
    """

    weight: Tensor
    bias: Tensor
    estimate: Tensor
    epsilon: float = 1e-5
    group: ProcessGroup | None = None


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
    """Fully connected layer of spiking neurons: weighted sums of activations, then the firing rule.

    With A = Σ w·x + v·x_skip + b and W = σ·(Σ w·[x > 0] + v·[x_skip > 0]):
    y = 1 if A ≥ 1; (A + W)/(1 + W) if A < 1 and A + W > 0; else 0.

    Args:
        x: [..., in_features], activations in [0, 1] (1 = the window's start, 0 = silent); fp16, bf16, fp32 or fp64.
        weight: [out_features, in_features], in threshold heights.
        bias: [out_features] initial membrane potential, in threshold heights. Default: None.
        skip: [..., out_features], activations x_skip of an earlier layer, dtype of x. Its spikes were delayed until the
            window in which the spikes of x arrive; a delayed spike reaches one neuron. Default: None.
        skip_weight: [out_features], weights v of the skip's synapses, in threshold heights. Required with `skip`.
        neuron: how it fires and how it is differentiated; see `Neuron`, also for σ and δ below.
        backend: "torch"; "triton" (Triton kernels in every pass); or "auto": Triton kernels on a GPU, elsewhere
            "torch". The environment variable TTFS_KERNELS_BACKEND sets what "auto" means in a process.
    Returns:
        [..., out_features], dtype of x (under autocast, autocast's dtype).
    Gradient: for x, weight, bias, skip and skip_weight (Eq. 9, 10). It is zero for saturated and silent neurons and, if
        σ > 0, at silent inputs, which a small change of x leaves silent; δ > 0 adds gradients for silent neurons and
        inputs. Only first derivatives in reverse mode: all others, and transforms of `torch.func`, raise an error.
    Precision: the rule is evaluated in float32 or wider; PyTorch and libraries round 16-bit potentials before it.
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
    operands = x, weight, bias, skip, skip_weight
    (y,) = _layer("dft_linear", operands, None, neuron, backend)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])


def dft_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Tensor:
    """Convolutional layer of spiking neurons, which fire as in `dft_linear`.

    Args:
        x: [batch, in_channels, height, width], activations in [0, 1] (1 = the window's start, 0 = silent);
            fp16, bf16, fp32 or fp64. Any strides; channels-last is read without a layout copy.
        weight: [out_channels, in_channels / groups, rows, columns], in threshold heights.
        bias: [out_channels] initial membrane potential, in threshold heights. Default: None.
        stride, padding, dilation: one integer, or (rows, columns). Zero padding is silence.
        groups: number of blocks of channels; a block's outputs read its inputs only.
        skip: [batch, out_channels, rows, columns] of the output's size, as in `dft_linear`.
        skip_weight: [out_channels]; neuron, backend: as in `dft_linear`.
    Returns:
        [batch, out_channels, rows, columns], dtype of x (under autocast, autocast's), channels-last.
    Gradient, precision, errors, source: as in `dft_linear`.
    Example:
        >>> x, weight = torch.rand(8, 3, 32, 32), torch.randn(16, 3, 3, 3) / 5
        >>> y = dft_conv2d(x, weight, stride=2, padding=1, neuron=Neuron(psp_persistence=0.25))
        >>> y.shape, y.is_contiguous(memory_format=torch.channels_last)
        (torch.Size([8, 16, 16, 16]), True)
        >>> spikes = y > 0
    """
    geometry = checked_geometry("dft_conv2d", stride, padding, dilation, groups)
    operands = x, weight, bias, skip, skip_weight
    return _layer("dft_conv2d", operands, geometry, neuron, backend)[0]


def normalised_linear(
    x: Tensor,
    weight: Tensor,
    normalisation: Normalisation,
    *,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Normalised:
    """A `dft_linear` whose potentials are normalised over the batch, for training.

    Args:
        x: [N, in_features]; x, weight, neuron and backend as in `dft_linear`.
        normalisation: γ and β [out_features], and ε.
        skip, skip_weight: as in `dft_linear`; added after the normalisation.
    Returns:
        See `Normalised`. Gradients for x, weight, γ, β, skip and skip_weight.
    Raises:
        ValueError, TypeError: shapes, dtypes or devices disagree, or a channel has fewer than two values: their
            normalised potential would be β, whatever the weights.
        RuntimeError: the backend asked for cannot run here.
    """
    operands = x, weight, normalisation.bias, skip, skip_weight
    return Normalised(*_layer("normalised_linear", operands, None, neuron, backend, normalisation))


def normalised_conv2d(
    x: Tensor,
    weight: Tensor,
    normalisation: Normalisation,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    neuron: Neuron = Neuron(),
    backend: str = "auto",
) -> Normalised:
    """A `dft_conv2d` whose potentials are normalised over batch and positions, for training.

    Args:
        normalisation: γ and β [out_channels], and ε.
        skip, skip_weight: as in `dft_conv2d`; added after the normalisation.
        x, weight, stride, padding, dilation, groups, neuron, backend: as in `dft_conv2d`.
    Returns, raises: as `normalised_linear`.
    Example:
        >>> x, weight = torch.rand(8, 3, 32, 32), torch.randn(16, 3, 3, 3)
        >>> normalisation = Normalisation(torch.full((16,), 0.5), torch.zeros(16), torch.zeros(16))
        >>> normalised_conv2d(x, weight, normalisation).activations.shape
        torch.Size([8, 16, 30, 30])
    """
    geometry = checked_geometry("normalised_conv2d", stride, padding, dilation, groups)
    operands = x, weight, normalisation.bias, skip, skip_weight
    return Normalised(*_layer("normalised_conv2d", operands, geometry, neuron, backend, normalisation))


def _layer(
    function: str,
    operands: Operands,
    geometry: Geometry | None,
    neuron: Neuron,
    backend: str,
    normalisation: Normalisation | None = None,
) -> tuple[Tensor, ...]:
    """Check the operands, and compute the layer by the backend that serves the call."""
    x, weight, bias, skip, skip_weight = operands
    gamma = epsilon = group = None
    parameters, sharing = {}, 1
    if normalisation is not None:
        gamma, _, estimate, epsilon, group = normalisation
        parameters = {"weight": gamma, "estimate": estimate}
        sharing = 1 if group is None else get_world_size(group)
    which, cast = checks.check(function, backend, operands, geometry, parameters, sharing)
    if normalisation is None and geometry is None and x.dim() != 2:
        x, skip = x.reshape(-1, x.shape[-1]), None if skip is None else skip.reshape(-1, skip.shape[-1])
    if cast is not None:  # biases and skip weights stay, since the firing rule computes in float32 anyway
        x, weight, skip = x.to(cast), weight.to(cast), None if skip is None else skip.to(cast)
    run: Any = apply_layer
    if which == "triton":
        from ttfs_kernels.triton.layer import TritonLayer

        layer: Any = TritonLayer(geometry, neuron, epsilon, group)
        if group is not None and torch.compiler.is_compiling():  # no operator of its kernels takes a group
            run = torch.compiler.disable(apply_layer)  # a decorator would import the compiler, which takes a second
    elif neuron.psp_persistence == 0 and (normalisation is None or (group is None and not is_formula(x))):
        layer = ClampedLayer(geometry, neuron, epsilon)
    elif normalisation is None:
        layer = TorchLayer(geometry, neuron)
    else:
        layer = NormalisedLayer(geometry, neuron, normalisation.epsilon, group, normalisation.estimate.detach())
    return run(function, layer, (x, weight, gamma, bias, skip, skip_weight))


def apply_layer(function: str, layer: Any, operands: Tensors) -> tuple[Tensor, ...]:
    """The outputs of `layer.forward`, recorded in autograd's graph if an operand needs a gradient.

    A backend's layer takes the operands x, weight, γ, initial potential or β, skip and skip weight. It has
    forward(operands, with_derivatives): (outputs, tensors kept for the backward pass), where outputs are activations
    and with batch norm mean and variance; and backward(grad, kept, needs): gradients of the operands, in their order.
    """
    checks.reverse_mode_only(function, *operands)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        return DFTLayer.apply(function, layer, *operands)
    with without_autocast(operands[0]):
        return layer.forward(operands, False)[0]


class DFTLayer(torch.autograd.Function):
    """Autograd function of a layer: activations are differentiated once, in reverse, in the forward pass's dtypes."""

    @staticmethod
    def forward(ctx: Any, function: str, layer: Any, *operands: Tensor | None) -> tuple[Tensor, ...]:
        with without_autocast(operands[0]):
            results, kept = layer.forward(operands, True)
        ctx.save_for_backward(*kept)
        ctx.function, ctx.layer = function, layer
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        grad, needs = grads[0], ctx.needs_input_grad[2:]
        if grad is None:
            return (None,) * (2 + len(needs))
        checks.first_derivatives_only(ctx.function, grad)
        with without_autocast(grad):
            return None, None, *ctx.layer.backward(grad, ctx.saved_tensors, needs)


def without_autocast(x: Tensor | None) -> AbstractContextManager[object]:
    """Context with autocast off: operands are cast already, and a backward pass keeps its forward pass's dtypes."""
    assert x is not None
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def standardise_weight(weight: Tensor, gain: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """A layer's weights: a neuron's are centred, scaled to unit norm and multiplied by the neuron's gain.

    `ŵ = gain[c] · (w − mean) / ‖w − mean‖`, mean and norm over the fan-in.

    Args:
        weight: [C_out, ...], at least two weights per neuron. Contiguous and channels-last layouts are kept; other
            strides come out contiguous.
        gain: [C_out], norms of the resulting weights, in threshold heights; dtype of the weights.
        dtype: dtype of the result. Default: dtype of the weights.
    Returns:
        The standardised weights, shape and memory format of `weight`. Neurons whose weights are all 0 give 0.
    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    dense = weight.permute(0, 2, 3, 1) if channels_last else weight.contiguous()
    rows = dense.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    neurons, fan_in = rows.shape
    scale = gain.to(rows.dtype) * fan_in**-0.5  # since group normalisation gives a norm of √fan_in
    rows = F.group_norm(rows[None], neurons, scale, eps=EPSILON / fan_in)
    result = rows.view(dense.shape).to(weight.dtype if dtype is None else dtype)
    return result.permute(0, 3, 1, 2) if channels_last else result
