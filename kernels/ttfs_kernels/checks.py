"""Checks of the public functions' arguments, before any work starts, and the choice of the backend for a call."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

Size = int | Sequence[int]  # one number for both directions, or (rows, columns)
Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]  # x, weight, bias, skip, skip_weight
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BACKENDS = ("auto", "triton", "torch")
VARIABLE = "TTFS_KERNELS_BACKEND"
MOST_PASSED = 4096  # calls that are remembered; more come from changing sizes only

# Module variables instead of cached functions, since torch.compile traces through `backend_for`.
_HAS_TRITON = find_spec("triton") is not None
_choice = os.environ.get(VARIABLE) or "auto"
if _choice not in BACKENDS:
    raise ValueError(f"environment variable {VARIABLE} must be one of {', '.join(BACKENDS)}; got {_choice!r}.")
_passed: dict[tuple[Any, ...], str] = {}  # backends of calls that passed the checks


class Geometry(NamedTuple):
    """How a convolution's kernel moves over a map; stride, padding and dilation are (rows, columns)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def map_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the output map."""
        stride, padding, dilation, _ = self
        rows = size[0] + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1
        columns = size[1] + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1
        return rows // stride[0] + 1, columns // stride[1] + 1


def check(
    function: str,
    backend: str,
    operands: Operands,
    geometry: Geometry | None,
    parameters: dict[str, Tensor],
    sharing: int,
) -> tuple[str, torch.dtype | None]:
    """Check a call; returns its backend, "torch" or "triton", and the dtype to which autocast casts it, or None.

    `parameters` are batch norm's, {} without; `sharing` processes share its statistics. Only shapes, dtypes and devices
    matter, so a call that comes again is not checked again.
    """
    x, weight, *_ = operands
    cast = torch.get_autocast_dtype(x.device.type) if autocasts(x) else None
    backend = _choice if backend == "auto" else backend
    tensors = *operands, *parameters.values()
    kinds = [None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
    call = function, backend, geometry, sharing, cast, *kinds
    remembered = not torch.compiler.is_compiling()
    try:
        which = _passed.get(call) if remembered else None
    except TypeError:  # symbolic sizes have no hash
        which, remembered = None, False
    if which is None:
        which = backend_for(function, backend, x)
        check_linear(function, operands) if geometry is None else check_conv2d(function, operands, geometry)
        if parameters:
            check_normalisation(function, x, weight, geometry, parameters, sharing)
        if remembered:
            if len(_passed) >= MOST_PASSED:
                _passed.clear()
            _passed[call] = which
    return which, cast


def pair(function: str, name: str, value: Size, smallest: int) -> tuple[int, int]:
    """`value` as (rows, columns); ValueError unless one or two integers of at least `smallest`."""
    values = (value, value) if type(value) is int else tuple(value) if isinstance(value, Sequence) else ()
    if len(values) == 2:
        rows, columns = values
        if type(rows) is type(columns) is int and rows >= smallest and columns >= smallest:
            return rows, columns
    raise ValueError(
        f"{function}: {name} must be an integer or two integers ≥ {smallest}; got {value!r}. "
        f"Give one number for both directions or (rows, columns)."
    )


def check_tensors(function: str, operands: Operands, out_shape: Sequence[int]) -> None:
    """Check the operands' dtypes and devices, and the shapes of `bias`, `skip` and `skip_weight`."""
    x, weight, bias, skip, skip_weight = operands
    named = {"x": x, "weight": weight, "bias": bias, "skip": skip, "skip_weight": skip_weight}
    for name, tensor in named.items():
        if tensor is not None and tensor.dtype not in FLOATING:
            raise TypeError(
                f"{function}: {name} must be float16, bfloat16, float32 or float64; got {tensor.dtype}. "
                f"Convert it with {name}.float()."
            )
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{function}: {name} must be on the device of x ({x.device}); got {tensor.device}. "
                f"Move it with {name}.to(x.device)."
            )
    if 0 in weight.shape[:2]:
        raise ValueError(
            f"{function}: weight must have at least one output and one input; got shape {list(weight.shape)}."
        )
    if x.dtype != weight.dtype and not autocasts(x, weight):
        raise TypeError(
            f"{function}: x and weight must have one dtype; got {x.dtype} and {weight.dtype}. "
            "Convert one of them, or run under torch.autocast."
        )
    for name, tensor, what in (("bias", bias, "initial potential"), ("skip_weight", skip_weight, "weight")):
        if tensor is not None and tensor.shape != weight.shape[:1]:
            raise ValueError(
                f"{function}: {name} must have shape [{weight.shape[0]}], one {what} per output channel; "
                f"got {list(tensor.shape)}."
            )
    if (skip is None) != (skip_weight is None):
        given, missing = ("skip", "skip_weight") if skip_weight is None else ("skip_weight", "skip")
        raise ValueError(f"{function}: {missing} must come with {given}; got none. Give both, or neither.")
    if skip is not None and list(skip.shape) != list(out_shape):
        raise ValueError(
            f"{function}: skip must have the shape of the output, {list(out_shape)}, one delayed spike per neuron; got "
            f"{list(skip.shape)}. Take every second position of larger maps, and pad missing channels with zeros."
        )
    if skip is not None and skip.dtype != x.dtype and not autocasts(x, skip):
        raise TypeError(
            f"{function}: skip must have the dtype of x, {x.dtype}; got {skip.dtype}. Convert it, or run under "
            "torch.autocast."
        )


def check_linear(function: str, operands: Operands) -> None:
    """Check the operands of a fully connected layer."""
    x, weight, *_ = operands
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{function}: x must be [..., in_features] and weight [out_features, in_features]; "
            f"got {list(x.shape)} and {list(weight.shape)}."
        )
    check_tensors(function, operands, (*x.shape[:-1], weight.shape[0]))


def check_conv2d(function: str, operands: Operands, geometry: Geometry) -> None:
    """Check the operands of a convolution."""
    x, weight, *_ = operands
    padding, dilation, groups = geometry[1:]
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(
            f"{function}: x must be [batch, in_channels, height, width] and weight "
            f"[out_channels, in_channels / groups, rows, columns]; got {list(x.shape)} and {list(weight.shape)}."
        )
    if weight.shape[0] % groups:
        raise ValueError(f"{function}: groups must divide out_channels (={weight.shape[0]}); got {groups}.")
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"{function}: x must have {weight.shape[1] * groups} channels, as weight {list(weight.shape)} with "
            f"groups={groups} expects; got {x.shape[1]}."
        )
    rows, columns = geometry.map_size(x.shape[2:], weight.shape[2:])
    if rows < 1 or columns < 1:
        raise ValueError(
            f"{function}: the padded image must be at least as large as the dilated kernel; got image "
            f"{list(x.shape[2:])}, padding {list(padding)}, kernel {list(weight.shape[2:])}, dilation {list(dilation)}."
        )
    check_tensors(function, operands, (x.shape[0], weight.shape[0], rows, columns))


def check_normalisation(
    function: str, x: Tensor, weight: Tensor, geometry: Geometry | None, parameters: dict[str, Tensor], sharing: int
) -> None:
    """Check batch norm's `parameters` (by name), and that a channel has at least two values, in `sharing` processes."""
    for name, tensor in parameters.items():
        if tensor.shape != weight.shape[:1] or tensor.device != x.device:  # a kernel would read beyond it
            raise ValueError(
                f"{function}: normalisation.{name} must have shape [{len(weight)}], and be on the device of x "
                f"({x.device}); got {list(tensor.shape)} on {tensor.device}."
            )
    size = x.shape[:-1] if geometry is None else (len(x), *geometry.map_size(x.shape[2:], weight.shape[2:]))
    if (values := math.prod(size) * sharing) < 2:
        raise ValueError(
            f"{function}: x must give every channel two values or more to normalise over; got {values}, of x "
            f"{list(x.shape)}. Use more images in a batch, or call eval() on the layer's batch norm."
        )


def checked_geometry(function: str, stride: Size, padding: Size, dilation: Size, groups: int) -> Geometry:
    """The `Geometry` of a convolution with these arguments; ValueError if one of them is out of range."""
    if type(groups) is not int or groups < 1:
        raise ValueError(f"{function}: groups must be an integer ≥ 1; got {groups!r}. 1 connects all channels.")
    named = ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)
    strides, paddings, dilations = (pair(function, *size) for size in named)
    return Geometry(strides, paddings, dilations, groups)


def backend_for(function: str, backend: str, x: Tensor) -> str:
    """The backend of a call, "torch" or "triton"; RuntimeError if the caller asks for "triton" and it cannot run."""
    if backend == "auto":
        backend = _choice
    if backend == "torch" or (backend == "auto" and not x.is_cuda):
        return "torch"
    check_name(function, backend)
    reason = why_no_triton(x.device, torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype)
    if reason is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise RuntimeError(
        f'{function}: backend="triton" must be able to run Triton kernels; {reason}. Use backend="torch" or "auto".'
    )


def why_no_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on a device with a dtype, or None if they can."""
    if not _HAS_TRITON:
        return "Triton is not installed (pip install triton; Linux only)"
    from ttfs_kernels.triton.common import unavailable

    return unavailable(device, dtype)


def check_name(function: str, name: str) -> None:
    """ValueError unless `name` is a backend; the message starts with `function`."""
    if name not in BACKENDS:
        raise ValueError(f"{function}: backend must be one of {', '.join(BACKENDS)}; got {name!r}.")


def autocasts(*operands: Tensor) -> bool:
    """Whether autocast casts these operands: autocast is on for their device, and none of them is float64."""
    device = operands[0].device.type
    on = device != "meta" and torch.is_autocast_enabled(device)  # PyTorch raises an error for meta
    return on and all(operand.dtype != torch.float64 for operand in operands)


def reverse_mode_only(function: str, *operands: Tensor | None) -> None:
    """RuntimeError in forward mode and in transforms of `torch.func`, which would need differentiable operators."""
    if torch.compiler.is_compiling():
        return
    tangents = (forward_ad.unpack_dual(operand).tangent for operand in operands if operand is not None)
    if torch._C._are_functorch_transforms_active() or any(tangent is not None for tangent in tangents):
        raise RuntimeError(
            f"{function}: derivatives must be taken in reverse mode; got forward mode or a transform of torch.func. "
            "Use backward() or torch.autograd.grad."
        )


def first_derivatives_only(function: str, grad: Tensor) -> None:
    """RuntimeError for second derivatives and batched gradients, which the backward pass would compute wrongly."""
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{function}: create_graph must be False; got True. The backward pass cannot be differentiated."
        )
    try:
        grad.untyped_storage()  # batched tensors have no storage
    except NotImplementedError as error:
        raise RuntimeError(
            f"{function}: is_grads_batched must be False; got True. Ask torch.autograd.grad for one gradient at a time."
        ) from error
