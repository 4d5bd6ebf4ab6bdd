"""Traces of modules: a recorder of calls, and the vocabulary in which a network of `ttfs_triton.nn` layers is written.

A `Recorder` runs a module once, and notes each call of a layer or function with the calls that made its inputs. On
empty images no value is computed: images and parameters are on PyTorch's device "meta". `network_graph` reads calls of
our layers, and refuses, by name, what would change spikes between them. `ttfs_triton.convert` reads those of ANNs.
"""

from __future__ import annotations

import functools
import keyword
import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ttfs_triton.command_line import text_of
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.functions import FUNCTIONS, remedy_for
from ttfs_triton.nn.graph import NetworkError, NetworkGraph, Stage, Wire
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d, SpikeUpsample2d, whole_ratio
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer

LAYERS = (LatencyEncoder, AnalogEncoder, SignedEncoder, DFTConv2d, DFTLinear, Readout)
# Modules of torch.nn that may stand between our layers; they run in evaluation mode.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
BETWEEN = (nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, *_DROPOUTS)
# Files that are not the user's.
_PACKAGES = re.compile(rf"<|.*site-packages|{re.escape(str(Path(__file__).parents[2]))}.(ttfs_triton|kernels)\b")
SAMPLES = 3  # size of the traced batch, which maps rarely have
# Remedies and rules for the ends of a network.
_BEGIN = (
    "Put LatencyEncoder() in front of layers that read spikes, or begin with an AnalogEncoder, once.",
    "begin with its only encoder",
)
_END = ("Append a Readout, once, and hand on its output.", "end with its only readout")


def network_graph(model: nn.Module, image_shape: Sequence[int] | None = None) -> NetworkGraph:
    """The graph of a network of `ttfs_triton.nn` layers; the one place where a network is checked.

    Args:
        model: any module that runs one encoder first, then layers of `ttfs_triton.nn`, each once, and returns the
            output of its only readout: `TTFSNetwork`, an `nn.Sequential`, or a class of yours, in any mode, on any
            device, compiled or distributed. Between layers spikes may be pooled (`EarliestSpikePool2d`,
            `nn.MaxPool2d`, `F.max_pool2d`), upsampled (`SpikeUpsample2d`, `nn.Upsample`, `F.interpolate`), flattened,
            dropped out, and concatenated along the channels (`torch.cat`), by modules or in your `forward`.
        image_shape: shape of one image, such as (channels, height, width). Default: the model's own `image_shape`.
    Returns:
        The stages in the order in which they run.
    Raises:
        NetworkError: the module does something else; the message says what, and what to use in its place.
        ValueError: image_shape is not given, and the model has none.
    Example:
        >>> from ttfs_triton.nn import DFTLinear, LatencyEncoder, Readout
        >>> network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(64, 8), Readout(8, 2))
        >>> graph = network_graph(network, (1, 8, 8))
        >>> [(stage.name, stage.window, stage.shape) for stage in graph.stages]
        [('0', 0, (1, 8, 8)), ('2', 1, (8,)), ('3', 2, (2,))]
    """
    bare = unwrapped(model)
    shape = image_shape_of(bare, image_shape)
    recorder = _NetworkRecorder(bare)
    return recorder.graph(recorder.trace(shape), shape)


def what_was_raised(error: Exception) -> str:
    """An error of the user's code: its type, the last line that ran outside of packages, and its text."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError in line {error.lineno} of {error.filename}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    places = [f" in line {each.lineno} of {each.filename}" for each in frames if not _PACKAGES.match(each.filename)]
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
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the `with` block, then restore each module's own mode, also after an error."""
    modes = [(each, each.training) for each in module.modules()]  # not one mode for all: a batch norm may be frozen
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


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


@dataclass(frozen=True, eq=False)
class Call:
    """A recorded call of a function, or of a module that is recorded as a whole.

    Attributes:
        name: its name among all calls, an identifier.
        target: the module, or the function's name without underscores around it.
        label: target and place in the model, in words.
        args, kwargs: its arguments; in place of each tensor that another call made, that call.
        shape: shape of its output for one image; None if that is no tensor of real numbers, or several.
    """

    name: str
    target: nn.Module | str
    label: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...] | None

    @property
    def inputs(self) -> list[Call]:
        """The calls that made its arguments."""
        return [each for each in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(each, Call)]

    @property
    def module(self) -> nn.Module | None:
        """Its module, or one that does the same with its first argument as its function; None without one."""
        if isinstance(self.target, nn.Module):
            return self.target
        try:
            alone = len(self.inputs) == 1 and isinstance(self.args[0], Call)
            return FUNCTIONS[self.target](*self.args[1:], **self.kwargs) if alone else None
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError):
            return None

    @property
    def route(self) -> nn.Module | None:
        """The pool, upsampling, flattening or identity that treats spikes as this call treats its input; None else."""
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
        """The calls whose outputs it concatenates along the channels; None if it does anything else."""
        if self.target not in ("cat", "concat", "concatenate") or self.shape is None:
            return None
        tensors = self.args[0] if self.args else self.kwargs["tensors"]
        dimension = self.args[1] if len(self.args) > 1 else self.kwargs.get("dim", self.kwargs.get("axis", 0))
        along = dimension in (1, -len(self.shape)) and all(isinstance(each, Call) for each in tensors)
        return list(tensors) if along else None


class Recorder(TorchFunctionMode):
    """Runs a model, in evaluation mode and without its hooks, and records the calls that depend on its images.

    `calls` has them in their order; the first stands for the images. A run leaves the model as it was.
    """

    error: type[ValueError] = NetworkError
    function = "network_graph"  # in errors

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, list[Call]()
        self._makers: Any = WeakTensorKeyDictionary()  # a tensor's call, and the tensor's version when it returned
        self._names, self._inside, self._paused = {"self", "torch"}, [""], False

    def trace(self, image_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Any:
        """Output of the model for empty images, with empty parameters."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        empty = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in named}
        try:
            return self.run(torch.empty((SAMPLES, *image_shape), dtype=dtype, device="meta"), empty)
        except self.error:
            raise
        except Exception as error:  # any error: the model's own code runs here
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
        if call is not None and value._version != version:
            return self._note("view", "change", "a change in place through a view", (None, call), {}, value)
        return value if call is None else call

    def leaf(self, module: nn.Module, label: str) -> Callable[..., Any] | None:
        """How a module runs that is recorded as a whole; None for one whose calls are recorded."""
        whole = type(module).__module__.startswith("torch.nn.modules") and next(module.children(), None) is None
        return module.forward if whole and not isinstance(module, nn.Sequential) else None

    def hear(self, call: Call, output: Any) -> None:
        """Called after each call, with what it returned."""

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
            if any(isinstance(each, Call) for each in pytree.tree_leaves((given, named))):
                self._note(path, target, label, given, named, output)
            return output
        finally:
            self._paused = False

    def _note(self, path: str, target: nn.Module | str, label: str, args: Any, kwargs: Any, output: Any) -> Call | None:
        """Add a call, unless it returns no tensors."""
        tensors = [each for each in pytree.tree_leaves(output) if isinstance(each, Tensor)]
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
        for each in tensors:
            self._makers[each] = (call, each._version)
        self.hear(call, output)
        return call

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Inside the `with` block modules evaluate and record that they run, and hooks are off."""
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
        label = _label(module, path)
        if (run := self.leaf(module, label)) is not None:
            return functools.partial(self._record, run, path, module, label)
        forward = module.forward

        def tells(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(label)
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside.pop()

        return tells


class _NetworkRecorder(Recorder):
    """Reads calls as a network of our layers while the network runs; a layer returns an empty tensor of its shape."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        named = [(name, module) for name, module in model.named_modules() if _is_layer(module)]
        names = short_names([name for name, _ in named])
        self._layers: dict[object, str] = {module: name for (_, module), name in zip(named, names, strict=True)}
        self._stages, self._readouts = dict[str | None, Stage](), list[str | None]()
        self._wires: dict[Call, tuple[Wire, ...]] = {}  # behind each call; several if layers are concatenated

    def leaf(self, module: nn.Module, label: str) -> Callable[..., Any] | None:
        if module in self._layers:
            return functools.partial(self._fire, module)
        run = super().leaf(module, label)
        if run is None or isinstance(module, BETWEEN):
            return run
        return lambda *_, **__: _refuse(label, remedy_for(type(module).__name__))

    def hear(self, call: Call, output: Any) -> None:
        """Read what a call hands on: spikes of a layer, or of others, pooled, upsampled, flattened or concatenated."""
        if call.target == "images" or call.target in self._layers:
            self._wires[call] = (Wire(self._layers.get(call.target), (), call.shape or ()),)
            return
        wires = tuple(wire for each in call.inputs for wire in self._wires[each])
        joined = call.concatenated is not None and all(wire.source is not None for wire in wires)
        route = nn.Identity() if joined else call.route
        if route is None and wires[0].source is None and not wires[0].route:
            _refuse(call.label, "Pass images as they are, and give mean and std to an AnalogEncoder.")
        if not isinstance(route, nn.Identity) and any(wire.source in self._readouts for wire in wires):
            _refuse(call.label, "Hand on the readout's output as it is.")
        if route is None:
            _refuse(call.label, remedy_for(call.target if isinstance(call.target, str) else type(call.target).__name__))
        self._wires[call] = wires if isinstance(route, nn.Identity) else tuple(wire.routed(route) for wire in wires)

    def _fire(self, layer: Any, x: Tensor, *, skip: Any = None) -> Tensor:
        """Run a layer: add its stage, and return an empty tensor of its output's shape."""
        name, kind = self._layers[layer], layer.kind
        label, wires = _label(layer, name), self._wires.get(self.maker(x))
        skips = () if skip is None else self._wires.get(self.maker(skip))
        if name in self._stages:
            _refuse(f"{name}, which runs twice", "Use a layer of its own for each window.")
        if wires is None or skips is None:
            _refuse(f"{label}, which reads neither images nor spikes of a layer", "Hand it a layer's output.")
        reads_images = wires[0].source is None
        if (kind in ("latency", "analog")) != reads_images or (reads_images and self._stages):
            _refuse(f"{label}, which reads {'images' if reads_images else 'spikes'}", *_BEGIN)
        if self._readouts:
            _refuse(f"{label} behind it", *_END)
        window = 1 + max(-1 if wire.source is None else self._stages[wire.source].window for wire in wires)
        try:
            if isinstance(layer, WeightedLayer):
                layer.delayed(skip, x)
            shape = layer.output_shape(tuple(x.shape[1:]))
        except ValueError as error:
            raise NetworkError(f"network_graph: layers must fit each other; got {label}: {error}") from None
        if len(skips) > 1:
            _refuse(f"{label}, whose skip is a concatenation", "Skip from one layer, or concatenate the inputs.")
        if any(wire.source is None or self._stages[wire.source].window >= window for wire in skips):
            _refuse(f"{label}, whose skip is from no earlier layer", "Skip from a layer that fires before its input.")
        self._readouts += [name] if kind == "readout" else []
        self._stages[name] = Stage(name, kind, layer, window, wires, next(iter(skips), None), shape)
        return torch.empty((SAMPLES, *shape), dtype=x.dtype, device="meta")

    def graph(self, output: object, image_shape: tuple[int, ...]) -> NetworkGraph:
        """The traced network. It must begin with an encoder and end with a readout."""
        stages, made = tuple(self._stages.values()), self.maker(output)
        if not stages:
            _refuse("no layers of ttfs_triton.nn", *_BEGIN)
        found, last = ", ".join(type(stage.layer).__name__ for stage in stages), stages[-1]
        if last.kind != "readout":
            _refuse(found, *_END)
        if not isinstance(made, Call) or self._wires[made] != (Wire(last.name, (), last.shape),):
            _refuse(f"{found}, and another output", *_END)
        return NetworkGraph(stages, image_shape)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one of `LAYERS`, or a subclass with the same forward."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in LAYERS)


def _label(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__} ({name})" if name else type(module).__name__


def _refuse(what: str, remedy: str, rule: str = "consist of layers of ttfs_triton.nn that hand on spikes") -> NoReturn:
    raise NetworkError(f"network_graph: model must {rule}; got {what}. {remedy}")
