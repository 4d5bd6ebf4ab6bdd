"""Layers called past PyTorch's dispatcher, where nobody but autograd and autocast would see an operator pass by.

The dispatcher enters Python once for autograd and once for the operator, turns all arguments into its own kinds and
back each time, and forgets what was found out about them: more than half of a layer's time on the host. What depends
on shapes, dtypes, devices and options alone, checks among it, is found once here, and both passes are kept with it.
`bench/host_time.py` measures it. For everybody else (`is_plain`), layers are the registered operators.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import reduce, wraps
from operator import or_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.overrides import has_torch_function

from ttfs_kernels.backends import float32_precisions
from ttfs_kernels.registration import OPERANDS

LIMIT = 1024  # remembered layers, so that ever new shapes do not fill the memory
TYPES = (Tensor, torch.nn.Parameter)
# Dispatch keys above the kernels of a device: what operators do not see, and formulas that call PyTorch should not.
_KEYS = [DispatchKey.ADInplaceOrView]
_KEYS += [getattr(DispatchKey, f"{kind}{device}") for kind in ("Autograd", "Autocast") for device in ("CPU", "CUDA")]
_ABOVE = reduce(or_, map(DispatchKeySet, _KEYS))


def below(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` without autograd and autocast, as inside an operator."""

    @wraps(function)
    def run(*inputs):
        with torch._C._ExcludeDispatchKeyGuard(_ABOVE):
            return function(*inputs)

    return run


class Formula(NamedTuple):
    """What a layer's operators do, and as they would: no autograd, no autocast, no views returned to it.

    Attributes:
        forward: from (x, weight, bias), and skip and skip weight if there are, to the activations and what the
            backward pass takes.
        backward: from (needs, grad, *kept) to the gradients of x, weight, bias, skip and skip weight, anything where
            not needed.
        backward_operator: the same by the registered operator, which wants to know the needs of all five.
    """

    forward: Callable[..., tuple[Tensor, Sequence[Tensor | None]]]
    backward: Callable[..., Sequence[Tensor | None]]
    backward_operator: Callable[..., Sequence[Tensor | None]]


class Layer(NamedTuple):
    """A layer for operands of one shape, dtype and device.

    Attributes:
        formula: of its operators.
        differentiable: whether there will be a backward pass.
        dtype: of x, weight and skip under autocast; None: as they are.
        bias_dtype, skip_weight_dtype: of them and their gradients, None without one.
    """

    formula: Formula
    differentiable: bool
    dtype: torch.dtype | None
    bias_dtype: torch.dtype | None
    skip_weight_dtype: torch.dtype | None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, *skip: Tensor) -> Tensor:
        """The activations; operands are plain."""
        operands = x, weight, bias, *skip
        if self.dtype is not None:
            operands = in_dtype(self.dtype, *operands)
        return _apply(self, *operands) if self.differentiable else self.formula.forward(*operands)[0]


class DFTLayer(torch.autograd.Function):
    """A layer in autograd's graph."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, *operands: Tensor | None) -> Tensor:
        y, kept = layer.formula.forward(*operands)
        ctx.layer = layer
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        operands = len(ctx.needs_input_grad) - 1
        if grad is None:
            return (None,) * (operands + 1)
        layer, kept = ctx.layer, ctx.saved_tensors
        needs = needs_x, needs_weight, needs_bias, *needs_skip = (*ctx.needs_input_grad[1:], False, False)[:OPERANDS]
        # Operators where second derivatives are asked for, for batches of gradients, in profiles.
        by_operator = torch.is_grad_enabled() or not is_plain(grad)
        run = layer.formula.backward_operator if by_operator else layer.formula.backward
        grad_x, grad_weight, grad_bias, *grads_skip = run(needs, grad, *kept)
        grad_bias = grad_bias.to(layer.bias_dtype) if needs_bias else None
        found = None, grad_x if needs_x else None, grad_weight if needs_weight else None, grad_bias
        if operands < OPERANDS:
            return found
        grad_skip, grad_skip_weight = (one if need else None for one, need in zip(grads_skip, needs_skip, strict=True))
        return *found, grad_skip, None if grad_skip_weight is None else grad_skip_weight.to(layer.skip_weight_dtype)


# What `Function.apply` calls where no transform of `torch.func` is active: finding that out takes as long as a node.
_apply = super(torch.autograd.Function, DFTLayer).apply  # pyright: ignore[reportAttributeAccessIssue]


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass will follow."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """To which autocast turns x and weight; None where it is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None, *skip: Tensor) -> tuple[Any, ...]:
    """Operands as autocast wants them."""
    dtype = autocast_dtype(x)
    return (x, weight, bias, *skip) if dtype is None else in_dtype(dtype, x, weight, bias, *skip)


def in_dtype(dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, *skip: Tensor) -> tuple[Any, ...]:
    """Operands with x, weight and skip in a dtype; bias and skip weights as they are, since the rule is precise."""
    return x.to(dtype), weight.to(dtype), bias, *((skip[0].to(dtype), skip[1]) if skip else ())


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd and autocast would see an operator with these operands.

    A compiler, a tracer, a mode, a transform of `torch.func`, a profiler or a subclass of Tensor would; and so would
    what resolves lazy negation and zeros, or computes on a device that is neither CPU nor GPU.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or has_torch_function(tensors):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
        return False
    return all([tensor is None or _has_plain_memory(tensor) for tensor in tensors])


def _has_plain_memory(tensor: Tensor) -> bool:
    # Dispatch keys would tell at once, but asking for them takes as long as a launch.
    if type(tensor) not in TYPES or not torch._C._has_storage(tensor) or not (tensor.is_cuda or tensor.is_cpu):
        return False
    return not (tensor.is_neg() or tensor._is_zerotensor())


_layers: dict[Hashable, Layer] = {}


def call(find: Callable[..., Formula], operands: tuple[Any, ...], *options: Hashable) -> Tensor:
    """Activations of the layer with the formula `find(operands, differentiable, *options)`.

    Operands are plain: x, weight, bias or None, and where there is a skip, that and its weights.

    It is found once for all operands that agree in what the key below says, and checks them: equal options must be
    alike.
    """
    x, weight, bias, *skip = operands
    dtype = autocast_dtype(x)
    differentiable = torch.is_grad_enabled() and torch._C._any_requires_grad(*operands)
    about_bias = None if bias is None else (bias.shape, bias.dtype, bias.device)
    # Products in float32 depend on a switch of PyTorch's, which takes long to ask.
    precisions = float32_precisions() if x.dtype == torch.float32 and dtype is None else None
    about_x, about_weight = (x.shape, x.dtype, x.device), (weight.shape, weight.dtype, weight.device)
    about_skip = None
    if skip:
        about_skip = tuple([tensor is not None and (tensor.shape, tensor.dtype, tensor.device) for tensor in skip])
    key = (find, about_x, about_weight, about_bias, about_skip, dtype, precisions, differentiable, options)
    layer = _layers.get(key)
    if layer is None:
        formula = find(operands, differentiable, *options)
        dtypes = None if bias is None else bias.dtype, skip[1].dtype if skip else None
        layer = Layer(formula, differentiable, dtype, *dtypes)
        if len(_layers) >= LIMIT:
            _layers.clear()
        _layers[key] = layer
    return layer(*operands)


def forget() -> None:
    """Find every layer anew."""
    _layers.clear()
