"""`dft_linear` and `dft_conv2d`: the public functions, which check their arguments and pick a backend."""

from torch import Tensor

from ttfs_kernels.autograd import Operands, apply_layer, autocast
from ttfs_kernels.backends import backend_for
from ttfs_kernels.checks import Size, check_conv2d, check_linear, checked_geometry
from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.torch_backend import TorchLayer


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
            window in which the spikes of x arrive; each of them reaches one neuron. Default: None.
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
    which = backend_for("dft_linear", backend, x)
    check_linear("dft_linear", operands)
    if x.dim() == 2:
        return _layer("dft_linear", which, operands, None, neuron)
    late = None if skip is None else skip.reshape(-1, skip.shape[-1])
    flat = x.reshape(-1, x.shape[-1]), weight, bias, late, skip_weight
    return _layer("dft_linear", which, flat, None, neuron).view(*x.shape[:-1], weight.shape[0])


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
        groups: blocks of channels that are not connected with each other.
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
    which = backend_for("dft_conv2d", backend, x)
    operands = x, weight, bias, skip, skip_weight
    check_conv2d("dft_conv2d", operands, geometry)
    return _layer("dft_conv2d", which, operands, geometry, neuron)


def _layer(function: str, which: str, operands: Operands, geometry: Geometry | None, neuron: Neuron) -> Tensor:
    x, weight, bias, skip, skip_weight = operands
    x, weight, skip = autocast(x, weight, skip)
    operands = x, weight, bias, skip, skip_weight
    if which == "torch":
        return apply_layer(function, TorchLayer(geometry, neuron), operands)[0]
    from ttfs_kernels.triton.layer import TritonLayer

    return apply_layer(function, TritonLayer(geometry, neuron), operands)[0]
