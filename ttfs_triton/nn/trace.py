"""Tracing of a module into its graph: it runs once on empty images, and each `ttfs_triton.nn` layer records its call.

No value is computed: images and parameters are on PyTorch's device "meta", and layers return empty outputs of the right
shape. A `TorchFunctionMode` sees the functions between layers, and refuses, by name, any that would change spikes.
"""

from __future__ import annotations

import functools
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ttfs_triton.command_line import text_of
from ttfs_triton.nn.coding import AnalogEncoder, LatencyEncoder, SignedEncoder
from ttfs_triton.nn.graph import NetworkError, NetworkGraph, Stage, Wire
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear, EarliestSpikePool2d, SpikeUpsample2d
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.sizes import whole_ratio
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer

LAYERS = (LatencyEncoder, AnalogEncoder, SignedEncoder, DFTConv2d, DFTLinear, Readout)
# Modules of torch.nn that may stand between our layers; they run in evaluation mode.
BETWEEN = (nn.Identity, nn.Flatten, nn.MaxPool2d, nn.Upsample, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PACKAGES = re.compile(rf"<|.*site-packages|{re.escape(str(Path(__file__).parents[2]))}.(ttfs_triton|kernels)\b")
"""Files that are not the user's."""
SAMPLES = 3  # size of the traced batch, which maps rarely have

# Names of functions that leave spikes as they are, and of functions that only change the layout.
_UNCHANGED = {"contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16", "type", "type_as"}
_LAYOUT = {"flatten", "reshape", "view", "squeeze", "view_as", "reshape_as"}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
_DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}

_REMEDIES = {
    r"avg_?pool|^mean$": "A mean of spike times is no spike: use average=… of the next layer.",
    r"batch_?norm|layer_?norm|group_?norm|instance_?norm": "Use batch_norm=True of the layers, folded after training.",
    r"^_*i?r?(add|sub)_*$|^add": "A sum of spike times is no spike time: use layer(x, skip=spikes).",
    r"relu|gelu|silu|elu|sigmoid|tanh|softplus|hardswish|mish": "Leave it out: the neurons are the nonlinearity.",
    r"max_?pool": "Use EarliestSpikePool2d: no dilation.",
    r"interpolate|upsampl": "Use SpikeUpsample2d: nearest neighbour, whole factors.",
    r"conv": "Use DFTConv2d, or AnalogEncoder for the layer that reads pixels.",
    r"linear|matmul|bilinear": "Use DFTLinear, or Readout for the last layer.",
    r"dropout": "Use nn.Dropout, or pass training=self.training, so that evaluation drops nothing.",
    r"softmax": "Leave it out: cross entropy and decisions take logits.",
    r"^_*r?(mul|truediv|div)_*$": "Spike times cannot be scaled: normalise images before the network.",
}
_OF_IMAGES = "Pass images as they are, and give mean and std to an AnalogEncoder."
_ARITHMETIC = r"^_*i?r?(add|sub|mul|truediv|div)_*$"
_NO_REMEDY = "No layer of ttfs_triton.nn does this; between layers pool, upsample, flatten, concatenate or drop spikes."


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
    trace = _Trace(bare)
    images = torch.empty((SAMPLES, *shape), device="meta")
    trace.remember(images, (Wire(None, (), shape),))
    empty = {name: tensor.to("meta") for name, tensor in (*bare.named_parameters(), *bare.named_buffers())}
    with torch.no_grad(), trace.patched(bare), trace:
        try:
            output = functional_call(bare, empty, (images,))
        except NetworkError:
            raise
        except Exception as error:
            said = str(error).partition("\n")[0]
            if isinstance(error, NotImplementedError | RuntimeError) and "meta" in said:
                _refuse(f"a forward that looks at values ({said})", "Let it depend on shapes only.")
            raise NetworkError(
                f"network_graph: model must run on images {list(shape)}; got {what_was_raised(error)}. Correct it."
            ) from error
    return trace.graph(output, shape)


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
    if shape is None:
        raise ValueError(
            f"network_graph: image_shape must be known; got None, and {type(model).__name__} has no attribute "
            "image_shape. Give (channels, height, width)."
        )
    sizes = tuple(shape)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"network_graph: image_shape must be positive sizes; got {shape}. Give (channels, height, width)."
        )
    return sizes


class _Trace(TorchFunctionMode):
    """Records which layer each tensor comes from while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = [(name, module) for name, module in model.named_modules() if _is_layer(module)]
        self._names = dict(zip([module for _, module in named], short_names([name for name, _ in named]), strict=True))
        self._stages: dict[str | None, Stage] = {}
        self._known: dict[int, tuple[Tensor, tuple[Wire, ...]]] = {}  # tensors are kept, so that ids stay unique
        self._inside: list[str] = []  # running modules, outermost first

    def remember(self, tensor: Tensor, wires: tuple[Wire, ...]) -> Tensor:
        self._known[id(tensor)] = (tensor, wires)
        return tensor

    def _wires(self, value: object) -> tuple[Wire, ...] | None:
        """The wires that a tensor comes from; several if it is a concatenation. None: unknown."""
        found = self._known.get(id(value))
        return None if found is None else found[1]

    # ---- what happens between layers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [wires for value in pytree.tree_leaves((args, kwargs)) if (wires := self._wires(value)) is not None]
        result = func(*args, **kwargs)
        tensors = [value for value in pytree.tree_leaves(result) if isinstance(value, Tensor)]
        if not known or not tensors:
            return result
        name = getattr(func, "__name__", str(func))
        if name in _CONCATENATIONS:
            return self.remember(result, self._concatenated(name, args, kwargs))
        if len(known) > 1 or len(tensors) > 1 or not isinstance(result, Tensor) or self._wires(args[0]) is None:
            self._refuse_function(name)
        if known[0][0].source is None and not known[0][0].route and re.search(_ARITHMETIC, name):
            self._refuse_function(name, _OF_IMAGES)
        module = self._between(name, args[0], result, args, kwargs)
        return self.remember(result, known[0] if module is None else tuple(wire.routed(module) for wire in known[0]))

    def _concatenated(self, name: str, args: Any, kwargs: Any) -> tuple[Wire, ...]:
        tensors = args[0] if args else kwargs["tensors"]
        found = [self._wires(value) for value in tensors]
        wires = tuple(wire for each in found for wire in each or ())
        dimension = _argument(args, kwargs, 1, "dim", kwargs.get("axis", 0)) % tensors[0].dim()
        if None in found or dimension != 1 or any(wire.source is None for wire in wires):
            self._refuse_function(name, "Concatenate spikes of layers, along the channels: torch.cat([a, b], 1).")
        return wires

    def _between(self, name: str, before: Tensor, after: Tensor, args: Any, kwargs: Any) -> nn.Module | None:
        """A module that does the same as a function; None if the function leaves spikes unchanged."""
        same = before.shape == after.shape
        if same and (name in _UNCHANGED or name in _LAYOUT):
            return None
        if same and name in _DROPOUT and not _argument(args, kwargs, 2, "training", True):
            return None
        sources = [self._stages.get(wire.source) for wire in self._wires(before) or ()]
        if any(stage is not None and stage.kind == "readout" for stage in sources):
            self._refuse_function(name, "Hand on the readout's output as it is.")
        if name in _LAYOUT and after.shape == (before.shape[0], before[0].numel()):
            return nn.Flatten()
        if name in ("max_pool2d", "_max_pool2d", "boolean_dispatch"):
            kernel, stride, padding, dilation, ceil = (
                _argument(args, kwargs, place, key, default)
                for place, (key, default) in enumerate(
                    (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False)), 1
                )
            )
            if dilation in (1, (1, 1)):
                return EarliestSpikePool2d(kernel, stride or None, padding, ceil_mode=ceil)
        nearest = name == "interpolate" and _argument(args, kwargs, 3, "mode", "nearest") == "nearest"
        if nearest and before.dim() == 4 and (scale := whole_ratio(before.shape[2:], after.shape[2:])):
            return SpikeUpsample2d(scale)
        self._refuse_function(name)

    def _refuse_function(self, name: str, remedy: str | None = None) -> NoReturn:
        plain = name.removesuffix(".default").strip("_")
        where = f" in {self._inside[-1]}" if self._inside and self._inside[-1] else ""
        _refuse(f"{plain}(){where}", remedy or _remedy(name))

    # ---- layers and other modules

    @contextmanager
    def patched(self, model: nn.Module) -> Iterator[None]:
        """Inside the `with` block modules evaluate and record that they run, layers give shapes, hooks are off."""
        named = list(model.named_modules())
        before = [dict(vars(module)) for _, module in named]
        try:
            for name, module in named:
                hooks = {key: OrderedDict() for key in ("_forward_hooks", "_forward_pre_hooks")}
                vars(module).update(forward=self._tells(name, module), training=False, **hooks)
            yield
        finally:
            for (_, module), values in zip(named, before, strict=True):
                vars(module).clear()
                vars(module).update(values)

    def _tells(self, name: str, module: nn.Module) -> Callable[..., Any]:
        if _is_layer(module):
            return functools.partial(self._fire, module)
        label = _label(module, name)
        may_stand = isinstance(module, (*BETWEEN, nn.Sequential)) or next(module.children(), None) is not None
        if type(module).__module__.startswith("torch.nn.modules") and not may_stand:
            return lambda *args, **kwargs: _refuse(label, _remedy(type(module).__name__))
        forward = module.forward

        def tells(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(label)
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside.pop()

        return tells

    def _fire(self, layer: Any, x: Tensor, *, skip: Any = None) -> Tensor:
        """Run a layer: add its stage, and return an empty tensor of its output's shape."""
        name, kind = self._names[layer], layer.kind
        label, wires, skips = _label(layer, name), self._wires(x), () if skip is None else self._wires(skip)
        if name in self._stages:
            _refuse(f"{name}, which runs twice", "Use a layer of its own for each window.")
        if wires is None or skips is None:
            _refuse(f"{label}, which reads neither images nor spikes of a layer", "Hand it a layer's output.")
        reads_images = wires[0].source is None
        if (kind in ("latency", "analog")) != reads_images or (reads_images and self._stages):
            self._refuse_start(f"{label}, which reads {'images' if reads_images else 'spikes'}")
        if any(stage.kind == "readout" for stage in self._stages.values()):
            self._refuse_end(f"{label} behind it")
        window = 1 + max(-1 if wire.source is None else self._stages[wire.source].window for wire in wires)
        shape = _output_shape(layer, label, x, skip)
        if len(skips) > 1:
            _refuse(f"{label}, whose skip is a concatenation", "Skip from one layer, or concatenate the inputs.")
        if any(wire.source is None or self._stages[wire.source].window >= window for wire in skips):
            _refuse(f"{label}, whose skip is from no earlier layer", "Skip from a layer that fires before its input.")
        self._stages[name] = Stage(name, kind, layer, window, wires, next(iter(skips), None), shape)
        output = torch.empty((SAMPLES, *shape), dtype=x.dtype, device="meta")
        return self.remember(output, (Wire(name, (), shape),))

    def _refuse_start(self, found: str) -> NoReturn:
        _refuse_structure(
            f"begin with its only encoder; got {found}",
            "Put LatencyEncoder() in front of layers that read spikes, or begin with an AnalogEncoder, once.",
        )

    def _refuse_end(self, found: str) -> NoReturn:
        _refuse_structure(
            f"end with its only readout; got {found}",
            "Append a Readout, once, and hand on its output.",
        )

    def graph(self, output: object, image_shape: tuple[int, ...]) -> NetworkGraph:
        """The traced network. It must begin with an encoder and end with a readout."""
        stages, wires = tuple(self._stages.values()), self._wires(output)
        if not stages:
            self._refuse_start("no layers of ttfs_triton.nn")
        found, last = ", ".join(type(stage.layer).__name__ for stage in stages), stages[-1]
        if last.kind != "readout":
            self._refuse_end(found)
        if wires != (Wire(last.name, (), last.shape),):
            self._refuse_end(f"{found}, and another output")
        return NetworkGraph(stages, image_shape)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one of `LAYERS`, or a subclass with the same forward."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in LAYERS)


def _label(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__} ({name})" if name else type(module).__name__


def _output_shape(layer: Any, label: str, x: Tensor, skip: Tensor | None) -> tuple[int, ...]:
    try:
        if isinstance(layer, WeightedLayer):  # an empty copy: the trace must not record these operations
            layer.delayed(None if skip is None else torch.empty(tuple(skip.shape), device="meta"), x)
        return layer.output_shape(tuple(x.shape[1:]))
    except ValueError as error:
        raise NetworkError(f"network_graph: layers must fit each other; got {label}: {error}") from None


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
    return kwargs.get(name, args[place] if len(args) > place else default)


def _remedy(name: str) -> str:
    return next((_REMEDIES[pattern] for pattern in _REMEDIES if re.search(pattern, name.lower())), _NO_REMEDY)


def _refuse(what: str, remedy: str) -> NoReturn:
    _refuse_structure(f"consist of layers of ttfs_triton.nn that hand on spikes; got {what}", remedy)


def _refuse_structure(rule: str, remedy: str) -> NoReturn:
    raise NetworkError(f"network_graph: model must {rule}. {remedy}")
