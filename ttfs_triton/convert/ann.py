"""Traces a trained ANN by `torch.fx`, and reads its convolutions and fully connected layers for a spiking network.

Batch norm is folded into the weights before it, average pooling into the synapses behind it, a linear layer into the
next one. The addition of an earlier activation becomes a skip; a shortcut with weights becomes more inputs of the layer
that it is added to. Other operations are refused, by the names of their nodes, before any work.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ttfs_triton.convert.average_pool import fold_average_pool, pooled_size, window_of
from ttfs_triton.convert.layer import ANNLayer, Value, added, behind
from ttfs_triton.convert.operations import ADDITIONS, CONCATENATIONS, IN_PLACE, MODULE_OF
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import EarliestSpikePool2d, SpikeUpsample2d, Wire
from ttfs_triton.nn.sizes import pair, skip_step, whole_ratio

_REMEDY = (
    "Use in its place Conv2d, Linear, BatchNorm, ReLU, ReLU6, Hardtanh or clamp from 0, MaxPool2d, AvgPool2d, adaptive "
    "pools, nearest upsampling by whole factors, flatten, Dropout, Identity, slices with a step, padding of channels, "
    "additions, and concatenation of activations along the channels, and train the ANN again."
)


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
            activations = value.clamp(0, layer.bound)
            self.activations[layer.name] = activations if layer.order is None else activations[:, layer.order]
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


class _Reader:
    """Reads a graph, node by node, into layers."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced, self._modules = traced, dict(traced.named_modules())
        self._values: dict[fx.Node, Value] = {}
        self._layers: dict[str | None, ANNLayer] = {}

    def read(self) -> list[ANNLayer]:
        for node in self._traced.graph.nodes:
            if node.op == "placeholder" and not self._values:
                self._values[node] = Value(None, True, (Wire(None, (), _shape(node)),), 0)
            elif node.op == "output":
                self._read_output(node)
            elif node.op != "get_attr" and "shape" in node.meta:  # nodes without a shape are sizes
                self._values[node] = self._read(node)
        return list(self._layers.values())

    def _read(self, node: fx.Node) -> Value:
        if node.target in ADDITIONS:
            return self._add(node)
        if node.target in CONCATENATIONS:
            return self._concatenate(node)
        module = self._module(node)
        inputs = [each for each in node.all_input_nodes if each in self._values]
        if module is None or len(inputs) != 1:
            self._refuse(node)
        self._check_in_place(node, module)
        return self._apply(node, module, self._values[inputs[0]], _shape(inputs[0]))

    def _apply(self, node: fx.Node, module: nn.Module, value: Value, shape: tuple[int, ...]) -> Value:
        if value.front is not None and not isinstance(module, nn.Identity):
            self._refuse(node, "behind channels of zeros, which only an addition can read")
        match module:
            case nn.Conv2d() | nn.Linear():
                return self._synapses(node, module, value, shape)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                return self._normalise(node, module, value)
            case nn.ReLU() | nn.Hardtanh():
                return self._activate(node, module, value)
            case nn.MaxPool2d() | nn.AdaptiveMaxPool2d():
                return self._max_pool(node, module, value, shape)
            case nn.Upsample(mode="nearest") if value.average is None and len(shape) == 3:
                if scale := whole_ratio(shape[1:], _shape(node)[1:]):
                    return value.routed(SpikeUpsample2d(scale))
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
            case nn.ConstantPad3d() if value.active and value.window and value.average is None and len(shape) == 3:
                return replace(value, front=cast("tuple[int, ...]", module.padding)[4])
        self._refuse(node)

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or one that computes the same; None if no module does."""
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            return module if type(module).__module__.startswith("torch.nn.modules") else None
        given: Any = map_arg((node.args[1:], node.kwargs), lambda each: each.meta.get("value", each))
        try:
            return MODULE_OF[node.target](*given[0], **given[1])
        except (AssertionError, AttributeError, KeyError, TypeError):
            return None

    def _check_in_place(self, node: fx.Node, module: nn.Module | None = None) -> None:
        """Refuse an operation that changes values which later nodes still read."""
        in_place = node.target in IN_PLACE or node.kwargs.get("inplace") or getattr(module, "inplace", False)
        source: Any = node.args[0]
        later = [user for user in source.users if user not in self._values and "shape" in user.meta]
        if in_place and later != [node]:
            self._refuse(node, f"which changes {source.name} in place, and others read that afterwards")

    def _synapses(self, node: fx.Node, module: nn.Conv2d | nn.Linear, value: Value, shape: tuple[int, ...]) -> Value:
        if isinstance(module, nn.Linear) != (len(shape) == 1):
            self._refuse(node, f"{type(module).__name__} of inputs {list(shape)}")
        if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
            self._refuse(node, f"Conv2d with padding_mode={module.padding_mode!r}, padding={module.padding!r}")
        bias = None if module.bias is None else module.bias.detach()
        shape = _shape(node)
        layer = ANNLayer(node.name, module, module.weight.detach(), bias, value.wires, value.window, shape, node)
        if not value.active:
            return self._behind(node, value, layer)
        if value.average is not None:
            layer = self._take_average(node, layer, *value.average)
        columns = self._order(value.wires, layer.average if isinstance(module, nn.Linear) else 1)
        return Value.of(layer.reordered(columns=columns))

    def _behind(self, node: fx.Node, value: Value, layer: ANNLayer) -> Value:
        """A layer behind another without an activation function: both as one."""
        found = None if value.wires[0].route else behind(self._settled(value), layer)
        if found is None:
            what = f"{type(layer.module).__name__} behind {value.names} without an activation function"
            self._refuse(node, f"{what}, whose pool or padding keeps both from becoming one")
        return Value.of(found)

    def _take_average(self, node: fx.Node, layer: ANNLayer, pool: nn.Module, maps: tuple[int, int]) -> ANNLayer:
        """Fold an average pool in front of a layer into the layer's synapses."""
        window, folded = window_of(pool, maps), (*layer.folded, "average pool")
        if isinstance(layer.module, nn.Linear):
            if window == maps:
                return replace(layer, average=maps[0] * maps[1], folded=folded)
            return replace(layer, weight=fold_average_pool(layer.weight, pool, maps), folded=folded)
        if window is None or window[0] != window[1] or layer.module.dilation != (1, 1):
            self._refuse(
                node, "behind an average pool whose square windows do not divide the maps, or behind one and dilated"
            )
        return replace(layer, average=window[0], folded=folded)

    def _order(self, wires: Sequence[Wire], average: int = 1) -> Tensor:
        """The ANN's channel, or feature, that each one on these wires is."""
        found, start = [], 0
        for wire in wires:
            source, inputs = self._layers.get(wire.source), wire.shape[0] // average
            order = torch.arange(inputs) if source is None or source.order is None else source.order
            places = inputs // len(order)  # of a flattened map
            found.append(start + (order.view(-1, 1) * places + torch.arange(places)).flatten())
            start += inputs
        return torch.cat(found)

    def _normalise(self, node: fx.Node, norm: nn.BatchNorm1d | nn.BatchNorm2d, value: Value) -> Value:
        if value.layer is None or value.active or value.wires[0].route:
            self._refuse(node, f"{type(norm).__name__} that is not right behind a Conv2d or Linear")
        if norm.running_mean is None or norm.running_var is None:
            self._refuse(node, f"{type(norm).__name__} without running statistics")
        if not (least := float(norm.running_var.min()) + norm.eps) > 0:
            raise ConversionError(f"convert: {node.target}.running_var + epsilon must be positive; got {least:.6g}.")
        layer = self._settled(value)
        bias = None if layer.bias is None else layer.bias.double()
        mean, var, norm = norm.running_mean.double(), norm.running_var.double(), copy.deepcopy(norm).double()
        fused = fuse_conv_bn_weights(layer.weight.double(), bias, mean, var, norm.eps, norm.weight, norm.bias)
        weight, bias = (each.detach() for each in fused)  # also for Linear
        folded = (*layer.folded, "batch norm")
        return Value.of(replace(layer, weight=weight, bias=bias, potential=node, folded=folded))

    def _activate(self, node: fx.Node, module: nn.ReLU | nn.Hardtanh, value: Value) -> Value:
        bound = module.max_val if isinstance(module, nn.Hardtanh) else None
        if value.active and bound is None and value.window:
            return value  # ReLU of activations, which are not negative
        if value.active or value.layer is None or (isinstance(module, nn.Hardtanh) and module.min_val != 0):
            self._refuse(node, f"{module} behind {value.names}")
        if bound is not None and not bound > 0:
            self._refuse(node, f"{module}, whose upper bound is not positive")
        layer = self._fires(value, bound)
        wires = tuple(replace(wire, source=layer.name) for wire in value.wires)
        return Value(layer, True, wires, layer.window + 1)

    def _fires(self, value: Value, bound: float | None = None) -> ANNLayer:
        """Add a layer to the network; activations that are added to its output become its skip, or its inputs."""
        layer = value.layer
        assert layer is not None
        if any(each.potential is layer.potential for each in self._layers.values()):
            self._refuse(layer.potential, "whose output is read more than once in front of its activation function")
        skip = self._skip(layer, value.carried[0]) if value.carried else None
        layer = layer if skip else self._settled(value)
        if skip is not None and value.carried:
            # A skip's channels are the layer's first ones: zeros in front of them go to the end.
            first = self._order((skip,)) + (value.carried[0].front or 0)
            others = sorted({*range(layer.shape[0])} - {*first.tolist()})
            layer = layer.reordered(rows=torch.cat([first, torch.tensor(others, dtype=torch.long)]))
        name = layer.potential.name if layer.name in self._layers else layer.name
        layer = self._layers[name] = replace(layer, name=name, bound=bound, skip=skip)
        return layer

    def _skip(self, layer: ANNLayer, value: Value) -> Wire | None:
        """The connection of delayed spikes, one to one; None if these activations need synapses with weights."""
        source = value.layer
        if source is None or value.average is not None or source.window >= layer.window:
            return None
        wire, bare = value.wires[0], Wire(source.name, (), source.shape)
        if len(wire.route) == 1 and isinstance(pool := wire.route[0], EarliestSpikePool2d):
            if pool.kernel_size == (1, 1) and skip_step(bare.shape, layer.shape) == pool.stride:
                return bare  # a skip reads every k-th row and column by itself
        return wire

    def _settled(self, value: Value) -> ANNLayer:
        """The layer of an output in front of its activation function, with added activations among its inputs."""
        layer = value.layer
        assert layer is not None
        return self._sum(layer.potential, layer, self._identity(*value.carried)) if value.carried else layer

    def _sum(self, node: fx.Node, one: ANNLayer, other: ANNLayer) -> ANNLayer:
        found = added(one, other, node)
        if found is None:
            self._refuse(node, f"an addition of {one.name} and {other.name}, whose kernels cannot become one")
        return found

    def _identity(self, value: Value, node: fx.Node) -> ANNLayer:
        """Synapses that hand on activations, with their channels of zeros; `node` is the activations' node."""
        (outputs, *size), front = _shape(node), value.front or 0
        inputs = outputs if value.front is None else sum(wire.shape[0] for wire in value.wires)
        module = nn.Conv2d(inputs, outputs, 1, bias=False) if size else nn.Linear(inputs, outputs, bias=False)
        eye = torch.eye(outputs, device=next(self._traced.parameters()).device)[:, front : front + inputs]
        module.weight = nn.Parameter(eye.view(module.weight.shape))
        return self._settled(self._synapses(node, module, replace(value, front=None), _shape(node)))

    def _max_pool(self, node: fx.Node, pool: Any, value: Value, shape: tuple[int, ...]) -> Value:
        if value.average is not None:
            self._refuse(node, "a max pool behind an average pool")
        if isinstance(pool, nn.AdaptiveMaxPool2d):
            kernel = stride = window_of(pool, cast("tuple[int, int]", shape[1:]))
        else:
            kernel, stride = (pool.kernel_size, pool.stride) if pair(pool.dilation) == (1, 1) else (None, None)
        if kernel is None:
            self._refuse(node, f"{pool} of maps {list(shape[1:])}: no dilation, whole windows only")
        ours = partial(EarliestSpikePool2d, kernel, stride, getattr(pool, "padding", 0))
        return value.routed(ours() if ours().output_shape(shape) == _shape(node) else ours(ceil_mode=True))

    def _average_pool(self, node: fx.Node, pool: nn.Module, value: Value, shape: tuple[int, ...]) -> Value:
        maps = (shape[1], shape[2])
        if isinstance(pool, nn.AdaptiveAvgPool2d) and pooled_size(pool, maps) == maps:
            return value
        if not value.active or value.average is not None:
            self._refuse(node, f"{type(pool).__name__} in front of an activation function, or behind another")
        return replace(value, average=(pool, maps))

    def _flatten(self, node: fx.Node, value: Value, shape: tuple[int, ...]) -> Value:
        if _shape(node) == shape:
            return value
        if len(_shape(node)) != 1:
            self._refuse(node, f"{node.target} from {list(shape)} to {list(_shape(node))}")
        return value.routed(nn.Flatten())

    def _concatenate(self, node: fx.Node) -> Value:
        nodes: Any = node.args[0] if node.args else node.kwargs["tensors"]
        dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        values = [self._values[each] for each in nodes if each in self._values]
        along = dimension in (1, -len(_shape(node)))
        plain = all(v.active and v.window and v.average is None and v.front is None for v in values)
        if len(values) < len(nodes) or not along or not plain:
            self._refuse(node, "a concatenation that is not of layers' activations, along their channels")
        wires = tuple(wire for value in values for wire in value.wires)
        return Value(None, True, wires, max(value.window for value in values))

    def _add(self, node: fx.Node) -> Value:
        nodes = [each for each in node.args if isinstance(each, fx.Node) and each in self._values]
        if not len(node.args) == len(nodes) == 2 or node.kwargs or _shape(nodes[0]) != _shape(nodes[1]):
            self._refuse(node, "an addition that is not of two outputs of one shape")
        self._check_in_place(node)
        pairs = [(self._values[each], each) for each in nodes]
        if any(not value.active and value.wires[0].route for value, _ in pairs):
            self._refuse(node, "an addition behind a pool, in front of an activation function")
        (one, source), other = sorted(pairs, key=lambda each: (each[0].active, -each[0].window))
        layer = self._identity(one, source) if one.active else self._settled(one)
        if other[0].active:  # becomes a skip, if it can
            return Value.of(replace(layer, potential=node), other)
        return Value.of(self._sum(node, layer, self._settled(other[0])))

    def _read_output(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        value = self._values.get(source) if isinstance(source, fx.Node) else None
        if value is not None and value.active and value.window and len(_shape(source)) == 1:
            value = Value.of(self._identity(value, source))  # logits are activations, or means of them
        linear = value and isinstance(getattr(value.layer, "module", None), nn.Linear)
        if value is None or not linear or value.active or value.wires[0].route:
            self._refuse(node, "an output that no Linear layer computes")
        self._fires(replace(value, layer=self._settled(value), carried=None))

    def _refuse(self, node: fx.Node, what: str = "") -> NoReturn:
        if node.op == "call_module":
            found = f"{type(self._modules[str(node.target)]).__name__} ({node.target})"
        else:
            found = f"{getattr(node.target, '__name__', node.target)} ({node.name})"
        raise ConversionError(f"convert_ann: model must do without {found}{f', {what}' if what else ''}. {_REMEDY}")


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's output for one image."""
    return node.meta["shape"]
