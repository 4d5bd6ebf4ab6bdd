"""Traces a trained ANN by `torch.fx`, and reads its convolutions and fully connected layers for a spiking network.

Batch norm is folded into the weights before it, average pooling into the synapses behind it, and the addition of an
earlier activation becomes a skip. Other operations are refused, by the names of their nodes, before any work.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ttfs_triton.convert.average_pool import fold_average_pool, pooled_size, window_of
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import EarliestSpikePool2d, Wire
from ttfs_triton.nn.sizes import pair

SUPPORTED = (
    "Conv2d, Linear, BatchNorm, ReLU, ReLU6, Hardtanh or clamp from 0, MaxPool2d, AvgPool2d, adaptive pools, flatten, "
    "Dropout, Identity, concatenation of activations along the channels, and the addition of an earlier activation in "
    "front of an activation"
)
_REMEDY = "Replace it by these, and train the ANN again."


@dataclass(eq=False)
class ANNLayer:
    """A convolution or fully connected layer, its batch norm folded, up to its activation function.

    Attributes:
        name: name of the layer's node in the traced graph.
        module: the original layer, for its sizes.
        weight, bias: the layer's parameters, other operations folded in; float64 after folding.
        inputs: sources of its inputs, concatenated: each a layer's name (None: the images), and the pools in between.
        window: number of layers in front of it.
        shape: shape of its output for one image, before pooling.
        potential: node of its output before the activation function.
        skip: source of the activations added to that output; None without a skip.
        bound: upper bound of its activations; None for ReLU.
        average: size of an average pool in front: side of its windows for a convolution, places for a Linear layer.
        folded: names of the operations folded into its weights.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    weight: Tensor
    bias: Tensor | None
    inputs: tuple[Wire, ...]
    window: int
    shape: tuple[int, ...]
    potential: fx.Node
    skip: Wire | None = None
    bound: float | None = None
    average: int = 1
    folded: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TracedANN:
    """A traced ANN, and its layers with weights.

    Attributes:
        module: the traced model, in evaluation mode.
        layers: layers in the order of computation; the last computes the logits.
        image_shape: shape of one image: (channels, height, width), or any other that the model reads.
    """

    module: fx.GraphModule
    layers: tuple[ANNLayer, ...]
    image_shape: tuple[int, ...]

    @torch.no_grad()
    def run(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the activations of each hidden layer before pooling, by layer name."""
        recorder = _Run(self.module, self.layers[:-1])
        return recorder.run(images), recorder.activations


class _Run(fx.Interpreter):
    """Runs a graph, notes each node's shape for one image, and keeps the activations of hidden layers by name."""

    def __init__(self, module: fx.GraphModule, layers: Sequence[ANNLayer] = ()) -> None:
        super().__init__(module)
        self._layers = {layer.potential: layer for layer in layers}
        self.activations: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta |= {"shape": tuple(value.shape[1:])} if isinstance(value, Tensor) else {"value": value}
        if (layer := self._layers.get(n)) is not None:
            self.activations[layer.name] = value.clamp(0, layer.bound)
            return value.clone()  # an activation function may work in place
        return value


@torch.no_grad()
def trace_ann(model: nn.Module, images: Tensor) -> TracedANN:
    """Trace a model in evaluation mode and read its layers.

    Args:
        model: see `convert_ann`; not changed.
        images: [N, ...], as the model reads them; one is enough.
    """
    try:
        training = any(module.training for module in model.modules())
        traced = fx.symbolic_trace(copy.deepcopy(model).eval() if training else model)
        traced.graph.eliminate_dead_code()
        _Run(traced).run(images[:1])
    except Exception as error:  # any error: the model's own code runs here
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"convert_ann: model must be traceable by torch.fx and accept images {list(images.shape)}; got "
            f"{type(model).__name__}, {problem}. Move decisions that depend on tensors' values out of its forward."
        ) from error
    return TracedANN(traced, tuple(_Reader(traced).read()), tuple(images.shape[1:]))


@dataclass(frozen=True)
class _Value:
    """Output of a node.

    Attributes:
        layer: the layer that computes it; None for the images and for a concatenation.
        active: the output has passed the activation function, so that spikes can represent it.
        wires: the layers whose activations it concatenates, and pools and flattening behind each.
        window: number of layers in front of a layer that reads it.
        average: an average pool for the next layer to fold, and the size of the maps that it reads.
    """

    layer: ANNLayer | None
    active: bool
    wires: tuple[Wire, ...]
    window: int
    average: tuple[nn.Module, tuple[int, int]] | None = None

    @property
    def names(self) -> str:
        return ", ".join(wire.source or "the images" for wire in self.wires)

    def routed(self, module: nn.Module) -> "_Value":
        """The value behind a pool or a flattening, which treat each channel by itself."""
        return replace(self, wires=tuple(wire.routed(module) for wire in self.wires))


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module:
    return nn.ReLU() if max is None and min == 0 else nn.Hardtanh(-torch.inf if min is None else min, max or 0.0)


def _mean(dim: Any = None, keepdim: bool = False) -> nn.Module | None:
    dims = sorted(place % 4 for place in dim) if isinstance(dim, tuple | list) else None
    pool = nn.AdaptiveAvgPool2d(1)
    return None if dims != [2, 3] else pool if keepdim else nn.Sequential(pool, nn.Flatten())


# Modules that do the same as functions and methods. Whether a view flattens is checked later, by shapes.
_MODULE_OF: dict[Any, Callable[..., nn.Module | None]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), lambda inplace=False: nn.ReLU()),
    F.relu6: lambda inplace=False: nn.ReLU6(),
    F.hardtanh: lambda min_val=-1.0, max_val=1.0, inplace=False: nn.Hardtanh(min_val, max_val),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clamp_", "clip"), _clamp),
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", "squeeze"), lambda *_, **__: nn.Flatten()),
    **dict.fromkeys(("contiguous", "clone"), lambda *_, **__: nn.Identity()),
    **dict.fromkeys((F.dropout, F.dropout2d), lambda p=0.5, training=True, inplace=False: nn.Dropout().train(training)),
}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


class _Reader:
    """Reads a graph, node by node, into layers."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced, self._modules = traced, dict(traced.named_modules())
        self._values: dict[fx.Node, _Value] = {}
        self._layers: list[ANNLayer] = []

    def read(self) -> list[ANNLayer]:
        for node in self._traced.graph.nodes:
            if node.op == "placeholder" and not self._values:
                self._values[node] = _Value(None, True, (Wire(None, (), _shape(node)),), 0)
            elif node.op == "output":
                self._check_output(node)
            elif node.op != "get_attr" and "shape" in node.meta:  # nodes without a shape are sizes
                self._values[node] = self._read(node)
        return self._layers

    def _read(self, node: fx.Node) -> _Value:
        if node.target in _ADDITIONS:
            return self._add(node)
        if node.target in _CONCATENATIONS:
            return self._concatenate(node)
        module = self._module(node)
        inputs = [each for each in node.all_input_nodes if each in self._values]
        if module is None or len(inputs) != 1:
            self._refuse(node)
        value = self._values[inputs[0]]
        if not value.active and len(inputs[0].users) > 1:
            self._refuse(inputs[0], "whose output is read more than once in front of its activation function")
        return self._apply(node, module, value, _shape(inputs[0]))

    def _apply(self, node: fx.Node, module: nn.Module, value: _Value, shape: tuple[int, ...]) -> _Value:
        match module:
            case nn.Conv2d() | nn.Linear():
                return self._synapses(node, module, value, shape)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                return self._normalise(node, module, value)
            case nn.ReLU() | nn.Hardtanh():
                return self._activate(node, module, value)
            case nn.MaxPool2d() | nn.AdaptiveMaxPool2d():
                return self._max_pool(node, module, value, shape)
            case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
                return self._average_pool(node, module, value, shape)
            case nn.Flatten():
                return self._flatten(node, value, shape)
            case nn.Sequential():  # made by _mean
                pooled = self._average_pool(node, module[0], value, shape)
                return pooled.routed(nn.Flatten())
            case nn.Dropout(training=True):
                self._refuse(node, "which drops out in evaluation too: pass training=self.training")
            case nn.Identity() | nn.Dropout() | nn.Dropout1d() | nn.Dropout2d():
                return value
        self._refuse(node)

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or one that computes the same; None if no module does."""
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            return module if type(module).__module__.startswith("torch.nn.modules") else None
        given: Any = map_arg((node.args[1:], node.kwargs), lambda each: each.meta.get("value", each))
        try:
            return _MODULE_OF[node.target](*given[0], **given[1])
        except (AssertionError, KeyError, TypeError):
            return None

    def _synapses(self, node: fx.Node, module: nn.Conv2d | nn.Linear, value: _Value, shape: tuple[int, ...]) -> _Value:
        if not value.active:
            self._refuse(node, f"{type(module).__name__} behind {value.names} without an activation function")
        if isinstance(module, nn.Linear) != (len(shape) == 1):
            self._refuse(node, f"{type(module).__name__} of inputs {list(shape)}")
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            self._refuse(node, f"Conv2d with padding_mode={module.padding_mode!r}")
        bias = None if module.bias is None else module.bias.detach()
        shape = _shape(node)
        layer = ANNLayer(node.name, module, module.weight.detach(), bias, value.wires, value.window, shape, node)
        if value.average is not None:
            self._take_average(node, layer, *value.average)
        self._layers.append(layer)
        return _Value(layer, False, (Wire(layer.name, (), shape),), value.window + 1)

    def _take_average(self, node: fx.Node, layer: ANNLayer, pool: nn.Module, maps: tuple[int, int]) -> None:
        """Fold an average pool in front of a layer into the layer's synapses."""
        layer.folded.append("average pool")
        if isinstance(layer.module, nn.Linear):
            if window_of(pool, maps) == maps:
                layer.average = maps[0] * maps[1]
            else:
                layer.weight = fold_average_pool(layer.weight, pool, maps)
            return
        window = window_of(pool, maps)
        if window is None or window[0] != window[1] or layer.module.dilation != (1, 1):
            self._refuse(
                node, "behind an average pool whose square windows do not divide the maps, or behind one and dilated"
            )
        layer.average = window[0]

    def _normalise(self, node: fx.Node, norm: nn.BatchNorm1d | nn.BatchNorm2d, value: _Value) -> _Value:
        layer = value.layer
        if layer is None or value.active or value.wires[0].route or layer.skip is not None:
            self._refuse(node, f"{type(norm).__name__} that is not right behind a Conv2d or Linear")
        if norm.running_mean is None or norm.running_var is None:
            self._refuse(node, f"{type(norm).__name__} without running statistics")
        if not (least := float(norm.running_var.min()) + norm.eps) > 0:
            raise ConversionError(f"convert: {node.target}.running_var + epsilon must be positive; got {least:.6g}.")
        bias = None if layer.bias is None else layer.bias.double()
        mean, var, norm = norm.running_mean.double(), norm.running_var.double(), copy.deepcopy(norm).double()
        fused = fuse_conv_bn_weights(layer.weight.double(), bias, mean, var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = (each.detach() for each in fused)  # also for Linear
        layer.potential = node
        layer.folded.append("batch norm")
        return value

    def _activate(self, node: fx.Node, module: nn.ReLU | nn.Hardtanh, value: _Value) -> _Value:
        bound = module.max_val if isinstance(module, nn.Hardtanh) else None
        if value.active and bound is None and value.window:
            return value  # ReLU of activations, which are not negative
        if value.active or value.layer is None or (isinstance(module, nn.Hardtanh) and module.min_val != 0):
            self._refuse(node, f"{module} behind {value.names}")
        if bound is not None and not bound > 0:
            self._refuse(node, f"{module}, whose upper bound is not positive")
        value.layer.bound = bound
        return replace(value, active=True)

    def _max_pool(self, node: fx.Node, pool: Any, value: _Value, shape: tuple[int, ...]) -> _Value:
        if value.average is not None:
            self._refuse(node, "a max pool behind an average pool")
        if isinstance(pool, nn.AdaptiveMaxPool2d):
            kernel = stride = window_of(pool, cast("tuple[int, int]", shape[1:]))
        else:
            plain = pair(pool.dilation) == (1, 1) and not pool.ceil_mode
            kernel, stride = (pool.kernel_size, pool.stride) if plain else (None, None)
        if kernel is None:
            self._refuse(node, f"{pool} of maps {list(shape[1:])}: no dilation, whole windows only")
        return value.routed(EarliestSpikePool2d(kernel, stride, getattr(pool, "padding", 0)))

    def _average_pool(self, node: fx.Node, pool: nn.Module, value: _Value, shape: tuple[int, ...]) -> _Value:
        maps = (shape[1], shape[2])
        if isinstance(pool, nn.AdaptiveAvgPool2d) and pooled_size(pool, maps) == maps:
            return value
        if not value.active or value.average is not None:
            self._refuse(node, f"{type(pool).__name__} in front of an activation function, or behind another")
        return replace(value, average=(pool, maps))

    def _flatten(self, node: fx.Node, value: _Value, shape: tuple[int, ...]) -> _Value:
        if _shape(node) == shape:
            return value
        if len(_shape(node)) != 1:
            self._refuse(node, f"{node.target} from {list(shape)} to {list(_shape(node))}")
        return value.routed(nn.Flatten())

    def _concatenate(self, node: fx.Node) -> _Value:
        nodes: Any = node.args[0] if node.args else node.kwargs["tensors"]
        dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        values = [self._values[each] for each in nodes if each in self._values]
        along = dimension in (1, -len(_shape(node)))
        if len(values) < len(nodes) or not along or not all(v.active and v.window and not v.average for v in values):
            self._refuse(node, "a concatenation that is not of layers' activations, along their channels")
        wires = tuple(wire for value in values for wire in value.wires)
        return _Value(None, True, wires, max(value.window for value in values))

    def _add(self, node: fx.Node) -> _Value:
        nodes = [each for each in node.args if isinstance(each, fx.Node) and each in self._values]
        values = [self._values[each] for each in nodes]
        plain = len(node.args) == len(values) == 2 and not node.kwargs and _shape(nodes[0]) == _shape(nodes[1])
        sums, skips = [v for v in values if not v.active], [v for v in values if v.active]
        mixed = plain and len(sums) == 1 and not sums[0].wires[0].route
        if not mixed or skips[0].layer is None or skips[0].average is not None:
            self._refuse(node, "an addition that is not of a layer's output and an earlier layer's activations")
        layer = sums[0].layer
        assert layer is not None
        if layer.skip is not None:
            self._refuse(node, f"a second addition to {layer.name}")
        if skips[0].layer.window >= layer.window:
            self._refuse(
                node, f"activations of {skips[0].layer.name}, which are not earlier than {layer.name}'s inputs"
            )
        layer.skip, layer.potential = skips[0].wires[0], node
        return sums[0]

    def _check_output(self, node: fx.Node) -> None:
        last = self._layers[-1] if self._layers else None
        source = node.args[0]
        value = self._values.get(source) if isinstance(source, fx.Node) else None
        computed = value is not None and value.layer is last and not (value.active or value.wires[0].route)
        if last is None or not computed or last.skip is not None:
            self._refuse(node, "an output that its last layer does not compute")
        if not isinstance(last.module, nn.Linear):
            self._refuse(node, "an output that no Linear layer computes")

    def _refuse(self, node: fx.Node, what: str = "") -> NoReturn:
        if node.op == "call_module":
            found = f"{type(self._modules[str(node.target)]).__name__} ({node.target})"
        else:
            found = f"{getattr(node.target, '__name__', node.target)} ({node.name})"
        raise ConversionError(
            f"convert_ann: model must consist of {SUPPORTED}; got {found}{f', {what}' if what else ''}. {_REMEDY}"
        )


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's output for one image."""
    return node.meta["shape"]
