"""Checks of the public functions' arguments, before any work starts."""

from collections.abc import Sequence

import torch

from ttfs_kernels.autograd import Operands, autocasts
from ttfs_kernels.contraction import Geometry

Size = int | Sequence[int]  # one number for both directions, or (rows, columns)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pair(function: str, name: str, value: Size, smallest: int) -> tuple[int, int]:
    """`value` as (rows, columns); ValueError unless one or two integers of at least `smallest`."""
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(values) == 2:
        rows, columns = values
        if type(rows) is type(columns) is int and rows >= smallest and columns >= smallest:
            return rows, columns
    raise ValueError(
        f"{function}: {name} must be an integer or two integers ≥ {smallest}; got {value!r}. "
        f"Give one number for both directions or (rows, columns)."
    )


def check_tensors(function: str, operands: Operands, out_shape: Sequence[int]) -> None:
    """Check dtypes, devices, and the shapes of operands with one value per output channel or neuron."""
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
    if x.shape[1] % groups or weight.shape[0] % groups:
        raise ValueError(
            f"{function}: groups must divide in_channels (={x.shape[1]}) and out_channels (={weight.shape[0]}); "
            f"got {groups}."
        )
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"{function}: x must have {weight.shape[1] * groups} channels, as weight {list(weight.shape)} with "
            f"groups={groups} expects; got {x.shape[1]}."
        )
    for size, taps, pad, step in zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True):
        if size + 2 * pad < step * (taps - 1) + 1:
            raise ValueError(
                f"{function}: the padded image must be at least as large as the dilated kernel; got image "
                f"{list(x.shape[2:])}, padding {list(padding)}, kernel {list(weight.shape[2:])}, "
                f"dilation {list(dilation)}."
            )
    size = geometry.map_size(x.shape[2:], weight.shape[2:])
    check_tensors(function, operands, (x.shape[0], weight.shape[0], *size))


def checked_geometry(function: str, stride: Size, padding: Size, dilation: Size, groups: int) -> Geometry:
    """The `Geometry` that arguments of a convolution describe; ValueError if one of them is out of range."""
    if type(groups) is not int or groups < 1:
        raise ValueError(f"{function}: groups must be an integer ≥ 1; got {groups!r}. 1 connects all channels.")
    named = ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)
    strides, paddings, dilations = (pair(function, *size) for size in named)
    return Geometry(strides, paddings, dilations, groups)
