"""Traces of modules: a recorder of calls; modules in place of functions of tensors, and remedies for other functions.

A `Recorder` runs a module once, and notes every call of a layer or function, and the calls that made its inputs. On
empty images no value is computed: images and parameters are on PyTorch's device "meta". `network_graph` reads calls of
our layers, `ttfs_triton.convert` those of ANNs.
"""

from __future__ import annotations

import functools
import keyword
import math
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ttfs_triton.command_line import text_of
from ttfs_triton.nn.layers import EarliestSpikePool2d, SpikeUpsample2d, whole_ratio

# Files that are not the user's.
_PACKAGES = re.compile(rf"<|.*site-packages|{re.escape(str(Path(__file__).parents[2]))}.(ttfs_triton|kernels)\b")
SAMPLES = 3  # images in the traced batch; sides of maps are rarely 3


class NetworkError(ValueError):
    """The module is no network of `ttfs_triton.nn` layers; the message says why, and what to use instead."""


def what_was_raised(error: Exception) -> str:
    """An error of the user's code: its type, the last line that ran outside of packages, and its text."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError in line {error.lineno} of {error.filename}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    places = [f" in line {at.lineno} of {at.filename}" for at in frames if not _PACKAGES.match(at.filename)]
    return f"{type(error).__name__}{places[-1] if places else ''}: {text_of(error).rstrip('.')}"


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of `torch.compile` and distributed training."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def float32_products() -> Iterator[None]:
    """Context in which GPUs multiply float32 without rounding to TF32, PyTorch's default for convolutions."""
    switches: Any = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv")  # noqa: B009
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and `float32_products` in the `with` block. After it, all modules get back their modes."""
    modes = [(part, part.training) for part in module.modules()]  # not one mode for all: a batch norm may be frozen
    module.eval()
    try:
        with float32_products():
            yield
    finally:
        for part, training in modes:
            part.training = training


def image_shape_of(model: nn.Module, image_shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """Shape of one image that a network takes: `image_shape`, or by default the network's attribute of this name."""
    shape = getattr(unwrapped(model), "image_shape", None) if image_shape is None else image_shape
    sizes = tuple(shape or ())
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"network_graph: image_shape must be positive sizes, (channels, height, width); got {shape}. Give it, or "
            f"give {type(model).__name__} an attribute image_shape."
        )
    return sizes


REMEDIES = {
    r"avg_?pool|^mean$": "A mean of spike times is no spike: use average=… of the next layer.",
    r"batch_?norm|layer_?norm|group_?norm|instance_?norm": "Use batch_norm=True of the layers, folded after training.",
    r"^r?sub$|^add": "A sum of spike times is no spike time: use layer(x, skip=spikes).",
    r"relu|gelu|silu|elu|sigmoid|tanh|softplus|hardswish|mish": "Leave it out: the neurons are the nonlinearity.",
    r"max_?pool": "Use EarliestSpikePool2d: no dilation.",
    r"interpolate|upsampl": "Use SpikeUpsample2d: nearest neighbour, whole factors.",
    r"conv": "Use DFTConv2d, or AnalogEncoder for the layer that reads pixels.",
    r"linear|matmul|bilinear": "Use DFTLinear, or Readout for the last layer.",
    r"dropout": "Use nn.Dropout, or pass training=self.training, so that evaluation drops nothing.",
    r"^(con)?cat": "Concatenate spikes of layers, along the channels: torch.cat([a, b], 1).",
    r"softmax": "Leave it out: cross entropy and decisions take logits.",
    r"^r?(mul|true_?div|div)": "Spike times cannot be scaled: normalise images before the network.",
}
NO_REMEDY = "No layer of ttfs_triton.nn does this; between layers pool, upsample, flatten, concatenate or drop spikes."


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module:
    return nn.ReLU() if max is None and min == 0 else nn.Hardtanh(-torch.inf if min is None else min, max or 0.0)


def _mean(dim: Any = None, keepdim: bool = False) -> nn.Module | None:
    dims = sorted(place % 4 for place in dim) if isinstance(dim, tuple | list) else None
    pool = nn.AdaptiveAvgPool2d(1)
    return None if dims != [2, 3] else pool if keepdim else nn.Sequential(pool, nn.Flatten())


def _slice(index: Any) -> nn.Module | None:
    """A pool of single neurons, which takes every k-th row and column of all channels; None for other indices."""
    steps: Any = [*(sides.step or 1 for sides in index[2:]), 1, 1][:2]
    plain = index[:2] == (slice(None),) * 2 and all(sides == slice(None, None, sides.step) for sides in index[2:])
    return nn.MaxPool2d(1, steps) if plain else None


def _pad(pad: Any, mode: str = "constant", value: float | None = None) -> nn.Module | None:
    """A module that adds channels of zeros before and after a map's channels; None for other padding."""
    zeros = len(pad) == 6 and not any(pad[:4]) and min(pad) >= 0 and mode == "constant" and not value
    return nn.ConstantPad3d(tuple(pad), 0.0) if zeros else None


# By the functions' names, without leading and trailing underscores. Shapes later tell whether a view flattens.
FUNCTIONS: dict[str, Callable[..., nn.Module | None]] = {
    "relu": lambda inplace=False: nn.ReLU(),
    "relu6": lambda inplace=False: nn.ReLU6(),
    "hardtanh": lambda min_val=-1.0, max_val=1.0, inplace=False: nn.Hardtanh(min_val, max_val),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "max_pool2d": nn.MaxPool2d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "mean": _mean,
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "view_as", "reshape_as"), lambda *_, **__: nn.Flatten()),
    "interpolate": lambda size=None, scale_factor=None, mode="nearest", *_, **__: nn.Upsample(size, scale_factor, mode),
    "getitem": _slice,
    "pad": _pad,
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "type", "type_as"), nn.Identity),
    **dict.fromkeys(("float", "double", "half", "bfloat16"), nn.Identity),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
        lambda p=0.5, training=True, inplace=False: None if training else nn.Identity(),
    ),
}


def remedy_for(name: str) -> str:
    """What a network of our layers uses in place of the function, or the type of module, with this name."""
    return next((REMEDIES[pattern] for pattern in REMEDIES if re.search(pattern, name.lower())), NO_REMEDY)


@dataclass(frozen=True, eq=False)
class Call:
    """A recorded call of a function, or of a module that is recorded as a whole.

    Attributes:
        name: an identifier that no other call has.
        target: the module, or the function's name without underscores around it.
        label: target and place in the model, in words.
        args, kwargs: the arguments; a tensor that another call made is replaced by that call.
        shape: shape of the output for one image; None unless the output is one tensor of real numbers.
    """

    name: str
    target: nn.Module | str
    label: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...] | None

    @property
    def inputs(self) -> list[Call]:
        """The calls that made the arguments."""
        return [made for made in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(made, Call)]

    @property
    def module(self) -> nn.Module | None:
        """The called module, or a module that does what the function does with its first argument; None without one."""
        if isinstance(self.target, nn.Module):
            return self.target
        try:
            alone = len(self.inputs) == 1 and isinstance(self.args[0], Call)
            return FUNCTIONS[self.target](*self.args[1:], **self.kwargs) if alone else None
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError):
            return None

    @property
    def route(self) -> nn.Module | None:
        """The pool, upsampling, flattening or identity that does to spikes what this call does; None without one."""
        if self.shape is None:
            return None
        before, after = self.inputs[0].shape or (), self.shape
        match module := self.module:
            case nn.Identity() | nn.Dropout() | nn.Dropout1d() | nn.Dropout2d() | nn.Dropout3d():
                return nn.Identity()
            case nn.Flatten():
                return nn.Identity() if before == after else nn.Flatten() if after == (math.prod(before),) else None
            case nn.MaxPool2d(kernel_size=kernel, stride=stride, padding=padding, dilation=1 | (1, 1)):
                pool = EarliestSpikePool2d(kernel, stride, padding, ceil_mode=module.ceil_mode)
                return pool if pool.output_shape(before) == after else None
            case nn.AdaptiveMaxPool2d() if len(after) == 3 and (window := whole_ratio(after[1:], before[1:])):
                return EarliestSpikePool2d(window)
            case nn.Upsample(mode="nearest") if len(after) == 3 and (scale := whole_ratio(before[1:], after[1:])):
                return SpikeUpsample2d(scale)
        return None

    @property
    def concatenated(self) -> list[Call] | None:
        """The calls whose outputs this call concatenates along the channels; None if it does anything else."""
        if self.target not in ("cat", "concat", "concatenate") or self.shape is None:
            return None
        tensors = self.args[0] if self.args else self.kwargs["tensors"]
        dimension = self.args[1] if len(self.args) > 1 else self.kwargs.get("dim", self.kwargs.get("axis", 0))
        along = dimension in (1, -len(self.shape)) and all(isinstance(tensor, Call) for tensor in tensors)
        return list(tensors) if along else None


TURNS = threading.RLock()
"""Held while modules have other hooks, modes or `forward`s for a call: calls of several threads take turns."""


class Recorder(TorchFunctionMode):
    """Runs a model, in evaluation mode and without its hooks, and records the calls that depend on its images.

    `calls` has these calls in their order; the first stands for the images. A run leaves the model as it was.
    """

    error: type[ValueError] = NetworkError
    function = "network_graph"  # in errors

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, list[Call]()
        self._makers: Any = WeakTensorKeyDictionary()  # a tensor's call, and the tensor's version when it returned
        self._names, self._inside, self._paused = {"self", "torch"}, [""], False

    @torch.inference_mode(False)  # its tensors have no versions
    def trace(self, image_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Any:
        """Output of the model for empty images, with empty parameters."""
        try:
            with TURNS:
                named = (*self.model.named_parameters(), *self.model.named_buffers())
                empty = {name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in named}
                return self.run(torch.empty((SAMPLES, *image_shape), dtype=dtype, device="meta"), empty)
        except self.error:
            raise
        except Exception as error:  # any error: the model's code runs here
            raise self.error(
                f"{self.function}: model must run on images {list(image_shape)}; got {what_was_raised(error)}. "
                "Correct it; what it does must depend on shapes only, not on values."
            ) from error

    @torch.no_grad()
    def run(self, images: Tensor, parameters: dict[str, Tensor] | None = None) -> Any:
        """Output of the model for images [N, ...], with other parameters and buffers by name."""
        with self._patched():
            self._note("images", "images", "images", (), {}, images)
            with self:
                return functional_call(self.model, parameters or {}, (images,))

    def maker(self, value: Any) -> Any:
        """The call that made a tensor; other values as they are."""
        call, version = self._makers.get(value, (None, 0)) if isinstance(value, Tensor) else (None, 0)
        if call is not None and _version(value) != version:
            return self._note("view", "change", "a change in place through a view", (None, call), {}, value)
        return value if call is None else call

    def leaf(self, module: nn.Module, label: str) -> Callable[..., Any] | None:
        """What runs in place of a module that is recorded as a whole; None for a module whose calls are recorded."""
        whole = type(module).__module__.startswith("torch.nn.modules") and next(module.children(), None) is None
        return module.forward if whole and not isinstance(module, nn.Sequential) else None

    def hear(self, call: Call, output: Any) -> None:
        """Hook for subclasses, called after every call with the call's output."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func)).removesuffix(".default").strip("_")
        inside = f" in {self._inside[-1]}" if self._inside[-1] else ""
        return self._record(func, name, name, f"{name}(){inside}", *args, **(kwargs or {}))

    def _record(
        self, run: Callable[..., Any], path: str, target: nn.Module | str, label: str, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Run a function, or a module of this path in the model, and note the call if it reads tensors of calls."""
        if self._paused:
            return run(*args, **kwargs)
        self._paused = True
        try:
            given, named = pytree.tree_map(self.maker, (args, kwargs))
            output = run(*args, **kwargs)
            if any(isinstance(value, Call) for value in pytree.tree_leaves((given, named))):
                self._note(path, target, label, given, named, output)
            return output
        finally:
            self._paused = False

    def _note(self, path: str, target: nn.Module | str, label: str, args: Any, kwargs: Any, output: Any) -> Call | None:
        """Add a call if it returns tensors."""
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        if not tensors:
            return None
        name = base = re.sub(r"^(?=\d|$)", "_", re.sub(r"\W", "_", path))
        number = 0  # the name may become a key of an nn.ModuleDict
        while name in self._names or keyword.iskeyword(name) or hasattr(nn.ModuleDict, name):
            name, number = f"{base}_{number + 1}", number + 1
        self._names.add(name)
        real = isinstance(output, Tensor) and output.is_floating_point()
        call = Call(name, target, label, args, kwargs, tuple(output.shape[1:]) if real else None)
        self.calls.append(call)
        for tensor in tensors:
            self._makers[tensor] = (call, _version(tensor))
        self.hear(call, output)
        return call

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Inside the `with` block, modules are in evaluation mode, record their calls, and run no hooks."""
        with TURNS:
            named = list(self.model.named_modules())
            before = [dict(vars(module)) for _, module in named]
            try:
                for name, module in named:
                    forward = self._forward(name, module)
                    vars(module).update(forward=forward, training=False, _forward_hooks={}, _forward_pre_hooks={})
                yield
            finally:
                for (_, module), values in zip(named, before, strict=True):
                    vars(module).clear()
                    vars(module).update(values)

    def _forward(self, path: str, module: nn.Module) -> Callable[..., Any]:
        label = label_of(module, path)
        if (run := self.leaf(module, label)) is not None:
            return functools.partial(self._record, run, path, module, label)
        forward = module.forward

        def run_inside(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(label)
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside.pop()

        return run_inside


def _version(tensor: Tensor) -> int:
    """Number of changes of a tensor in place; those of tensors made in inference mode are not counted."""
    return 0 if tensor.is_inference() else tensor._version


def label_of(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__} ({name})" if name else type(module).__name__
