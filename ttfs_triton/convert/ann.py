"""Traces a trained ANN, and reads its convolutions and fully connected layers for a spiking network.

Batch norm is folded into the weights before it, average pooling into the synapses behind it, and a layer without an
activation function into the next one. The addition of an earlier activation becomes a skip; a shortcut with weights
becomes more inputs of the layer that it is added to. Other calls are refused by name, before any work.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from ttfs_triton.convert.layer import (
    ANNLayer,
    Value,
    added,
    behind,
    fold_average_pool,
    fold_norm,
    pooled_size,
    window_of,
)
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import EarliestSpikePool2d, Wire
from ttfs_triton.nn.trace import Call, Recorder, evaluating
from ttfs_triton.nn.weighted import skip_step

_REMEDY = (
    "Use in its place Conv2d, Linear, BatchNorm, ReLU, ReLU6, Hardtanh or clamp from 0, MaxPool2d, AvgPool2d, adaptive "
    "pools, nearest upsampling by whole factors, flatten, Dropout, Identity, slices with a step, padding of channels, "
    "additions, and concatenation of activations along the channels, and train the ANN again. No training is needed to "
    "leave out a softmax at the end, or to give convert_ann the mean and std of images in the ANN's place."
)


class _ANNRecorder(Recorder):
    """Records an ANN, and keeps the activations of layers by name."""

    error, function = ConversionError, "convert_ann"

    def __init__(self, model: nn.Module, layers: Sequence[ANNLayer] = ()) -> None:
        super().__init__(model)
        self._layers = {layer.potential.name: layer for layer in layers}
        self.activations: dict[str, Tensor] = {}

    def hear(self, call: Call, output: Any) -> None:
        if (layer := self._layers.get(call.name)) is not None:
            activations = output.clamp(0, layer.bound)
            self.activations[layer.name] = activations if layer.order is None else activations[:, layer.order]


def run_ann(model: nn.Module, layers: Sequence[ANNLayer], images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a traced model, and activations of its hidden layers before pooling, by layer name."""
    recorder = _ANNRecorder(model, layers[:-1])
    return recorder.run(images), recorder.activations


@torch.no_grad()
def trace_ann(model: nn.Module, images: Tensor) -> list[ANNLayer]:
    """A model's layers with weights, in the order of computation; the last one computes the logits.

    Of the images, [N, ...], only shape, dtype and device matter.
    """
    recorder = _ANNRecorder(model)
    output = recorder.maker(recorder.trace(tuple(images.shape[1:]), images.dtype))
    with evaluating(model):
        model(images[:1])  # hooks, such as those of weight norm, give layers their weights
    return _Reader(recorder.calls, images.device).read(output)


class _Reader:
    """Reads calls, one by one, into layers."""

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self._calls, self._device = calls, device
        self._values: dict[Call, Value] = {}
        self._layers: dict[str | None, ANNLayer] = {}

    def read(self, output: Any) -> list[ANNLayer]:
        needed = {output} if isinstance(output, Call) else set[Call]()
        for call in reversed(self._calls):
            needed.update(call.inputs if call in needed else ())
        for call in self._calls:
            if call in needed:
                self._values[call] = self._read(call)
        self._read_output(output)
        return list(self._layers.values())

    def _read(self, call: Call) -> Value:
        if call.target == "images":
            return Value(None, True, (Wire(None, (), _shape(call)),), 0)
        if call.shape is None:
            self._refuse(call, "which does not return one tensor of real numbers")
        if call.target in ("add", "iadd"):
            return self._add(call)
        if call.target in ("cat", "concat", "concatenate"):
            return self._concatenate(call)
        if call.module is None:
            dropped = "dropout" in str(call.target)
            self._refuse(call, "which drops out in evaluation too: pass training=self.training" if dropped else "")
        return self._apply(call, call.module, self._values[call.inputs[0]], _shape(call.inputs[0]))

    def _apply(self, call: Call, module: nn.Module, value: Value, shape: tuple[int, ...]) -> Value:
        route = call.route
        if isinstance(route, nn.Identity):
            return value
        if value.front is not None:
            self._refuse(call, "behind channels of zeros, which only an addition can read")
        if route is not None:
            return self._routed(call, route, value)
        match module:
            case nn.Conv2d() | nn.Linear():
                return self._synapses(call, module, value, shape)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                return self._normalise(call, module, value)
            case nn.ReLU() | nn.Hardtanh():
                return self._activate(call, module, value)
            case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
                return self._average_pool(call, module, value, shape)
            case nn.Sequential():  # a mean
                return self._average_pool(call, module[0], value, shape).routed(nn.Flatten())
            case nn.ConstantPad3d() if value.active and value.window and value.average is None and len(shape) == 3:
                return replace(value, front=cast("tuple[int, ...]", module.padding)[4])
            case nn.MaxPool2d() | nn.AdaptiveMaxPool2d() | nn.Upsample() | nn.Flatten():
                said = "" if isinstance(module, nn.Flatten) else f"{module} "
                self._refuse(call, f"{said}from {list(shape)} to {list(_shape(call))}")
        self._refuse(call)

    def _routed(self, call: Call, route: nn.Module, value: Value) -> Value:
        """The value behind a pool, upsampling or flattening."""
        if value.average is not None and not isinstance(route, nn.Flatten):
            self._refuse(call, "behind an average pool")
        if isinstance(route, EarliestSpikePool2d) and route.ceil_mode:
            floor = EarliestSpikePool2d(route.kernel_size, route.stride, route.padding)
            route = floor if floor.output_shape(_shape(call.inputs[0])) == call.shape else route
        return value.routed(route)

    def _synapses(self, call: Call, module: nn.Conv2d | nn.Linear, value: Value, shape: tuple[int, ...]) -> Value:
        if isinstance(module, nn.Linear) != (len(shape) == 1):
            self._refuse(call, f"{type(module).__name__} of inputs {list(shape)}")
        bias = None if module.bias is None else module.bias.detach()
        if isinstance(module, nn.Linear):
            return self._connected(call, module.weight.detach(), bias, value)
        around = [spread * (taps - 1) for spread, taps in zip(module.dilation, module.kernel_size, strict=True)]
        if module.padding_mode != "zeros" or (module.padding == "same" and any(length % 2 for length in around)):
            self._refuse(call, f"Conv2d with padding_mode={module.padding_mode!r}, padding={module.padding!r}")
        words = {"same": tuple(length // 2 for length in around), "valid": (0, 0)}
        sizes: Any = (module.stride, words.get(str(module.padding), module.padding), module.dilation)
        return self._connected(call, module.weight.detach(), bias, value, geometry=sizes, groups=module.groups)

    def _connected(self, call: Call, weight: Tensor, bias: Tensor | None, value: Value, **sizes: Any) -> Value:
        """The output of a layer with these weights, which reads `value`."""
        layer = ANNLayer(call.name, weight, bias, value.wires, value.window, _shape(call), call, **sizes)
        if not value.active:  # behind a layer without an activation function: both become one
            merged = None if value.wires[0].route else behind(self._settled(value), layer)
            if merged is None:
                rule = "without an activation function, and a pool or padding keeps both from becoming one layer"
                self._refuse(call, f"behind {value.names} {rule}")
            return Value.of(merged)
        if value.average is not None:
            layer = self._take_average(call, layer, *value.average)
        return Value.of(layer.reordered(columns=self._order(value.wires, layer.average if layer.linear else 1)))

    def _take_average(self, call: Call, layer: ANNLayer, pool: nn.Module, maps: tuple[int, int]) -> ANNLayer:
        """Fold an average pool in front of a layer into the layer's synapses."""
        window, folded = window_of(pool, maps), (*layer.folded, "average pool")
        if layer.linear:
            if window == maps:
                return replace(layer, average=maps[0] * maps[1], folded=folded)
            return replace(layer, weight=fold_average_pool(layer.weight, pool, maps), folded=folded)
        if window is None or window[0] != window[1] or layer.geometry[2] != (1, 1):
            self._refuse(call, "behind an average pool, unless square windows divide the maps and nothing is dilated")
        return replace(layer, average=window[0], folded=folded)

    def _order(self, wires: Sequence[Wire], average: int = 1) -> Tensor:
        """The ANN's numbers of the channels or features on these wires."""
        orders, start = [], 0
        for wire in wires:
            source, inputs = self._layers.get(wire.source), wire.shape[0] // average
            order = torch.arange(inputs) if source is None or source.order is None else source.order
            places = inputs // len(order)  # of a flattened map
            orders.append(start + (order.view(-1, 1) * places + torch.arange(places)).flatten())
            start += inputs
        return torch.cat(orders)

    def _normalise(self, call: Call, norm: nn.BatchNorm1d | nn.BatchNorm2d, value: Value) -> Value:
        if value.layer is None or value.active or value.wires[0].route:
            self._refuse(call, f"{type(norm).__name__} that is not right behind a Conv2d or Linear")
        if norm.running_mean is None or norm.running_var is None:
            self._refuse(call, f"{type(norm).__name__} without running statistics")
        layer = self._settled(value)
        weight, bias = fold_norm(call.label, layer.weight, layer.bias, norm.state_dict(), norm.eps)
        folded = (*layer.folded, "batch norm")
        return Value.of(replace(layer, weight=weight, bias=bias, potential=call, folded=folded))

    def _activate(self, call: Call, module: nn.ReLU | nn.Hardtanh, value: Value) -> Value:
        bound = module.max_val if isinstance(module, nn.Hardtanh) else None
        if value.active and bound is None and value.window:
            return value  # ReLU of activations, which are not negative
        if value.active or value.layer is None or (isinstance(module, nn.Hardtanh) and module.min_val != 0):
            self._refuse(call, f"{module} behind {value.names}")
        if bound is not None and not bound > 0:
            self._refuse(call, f"{module}, whose upper bound is not positive")
        layer = self._fires(value, bound)
        wires = tuple(replace(wire, source=layer.name) for wire in value.wires)
        return Value(layer, True, wires, layer.window + 1)

    def _fires(self, value: Value, bound: float | None = None) -> ANNLayer:
        """Add a layer to the network; activations that the ANN adds to its output become its skip, or its inputs."""
        layer = value.layer
        assert layer is not None
        if any(other.potential is layer.potential for other in self._layers.values()):
            self._refuse(layer.potential, "whose output is read more than once in front of its activation function")
        skip = self._skip(layer, value.carried[0]) if value.carried else None
        layer = layer if skip else self._settled(value)
        if skip is not None and value.carried:
            # A skip leads to the layer's first channels, so zeros in front of its channels go to the end.
            first = self._order((skip,)) + (value.carried[0].front or 0)
            others = sorted({*range(layer.shape[0])} - {*first.tolist()})
            layer = layer.reordered(rows=torch.cat([first, torch.tensor(others, dtype=torch.long)]))
        name = layer.potential.name if layer.name in self._layers else layer.name
        layer = self._layers[name] = replace(layer, name=name, bound=bound, skip=skip)
        return layer

    def _skip(self, layer: ANNLayer, value: Value) -> Wire | None:
        """The skip that carries these activations one to one; None if they need synapses with weights."""
        source = value.layer
        if source is None or value.average is not None or source.window >= layer.window:
            return None
        wire, bare = value.wires[0], Wire(source.name, (), source.shape)
        if len(wire.route) == 1 and isinstance(pool := wire.route[0], EarliestSpikePool2d):
            if pool.kernel_size == (1, 1) and skip_step(bare.shape, layer.shape) == pool.stride:
                return bare  # a skip reads every k-th row and column by itself
        return wire

    def _settled(self, value: Value) -> ANNLayer:
        """The layer that computes a value without its activation function, with added activations as more inputs."""
        layer = value.layer
        assert layer is not None
        return self._sum(layer.potential, layer, self._identity(*value.carried)) if value.carried else layer

    def _sum(self, call: Call, one: ANNLayer, other: ANNLayer) -> ANNLayer:
        total = added(one, other, call)
        if total is None:
            self._refuse(call, f"an addition of {one.name} and {other.name}, whose kernels cannot become one")
        return total

    def _identity(self, value: Value, call: Call) -> ANNLayer:
        """Layer that passes activations on, with their channels of zeros; `call` made the activations."""
        (outputs, *size), front = _shape(call), value.front or 0
        inputs = outputs if value.front is None else sum(wire.shape[0] for wire in value.wires)
        weight = torch.eye(outputs, device=self._device)[:, front : front + inputs]
        weight = weight[:, :, None, None] if size else weight
        return self._settled(self._connected(call, weight, None, replace(value, front=None)))

    def _average_pool(self, call: Call, pool: nn.Module, value: Value, shape: tuple[int, ...]) -> Value:
        maps = (shape[1], shape[2])
        if isinstance(pool, nn.AdaptiveAvgPool2d) and pooled_size(pool, maps) == maps:
            return value
        if not value.active or value.average is not None:
            self._refuse(call, f"{type(pool).__name__} in front of an activation function, or behind another")
        return replace(value, average=(pool, maps))

    def _concatenate(self, call: Call) -> Value:
        values = [self._values[part] for part in call.concatenated or ()]
        plain = all(v.active and v.window and v.average is None and v.front is None for v in values)
        if not values or not plain:
            self._refuse(call, "a concatenation that is not of layers' activations, along their channels")
        wires = tuple(wire for value in values for wire in value.wires)
        return Value(None, True, wires, max(value.window for value in values))

    def _add(self, call: Call) -> Value:
        if not len(call.args) == len(call.inputs) == 2 or call.kwargs or len({term.shape for term in call.inputs}) > 1:
            self._refuse(call, "an addition that is not of two outputs of one shape")
        pairs = [(self._values[term], term) for term in call.inputs]
        if any(not value.active and value.wires[0].route for value, _ in pairs):
            self._refuse(call, "an addition behind a pool, in front of an activation function")
        (one, source), other = sorted(pairs, key=lambda pair: (pair[0].active, -pair[0].window))
        layer = self._identity(one, source) if one.active else self._settled(one)
        if other[0].active:  # becomes a skip, if it can
            return Value.of(replace(layer, potential=call), other)
        return Value.of(self._sum(call, layer, self._settled(other[0])))

    def _read_output(self, output: Any) -> None:
        value = self._values.get(output) if isinstance(output, Call) else None
        if value is not None and value.active and value.window and len(_shape(output)) == 1:
            value = Value.of(self._identity(value, output))  # logits are activations, or means of them
        layer = None if value is None else value.layer
        if value is None or layer is None or not layer.linear or value.active or value.wires[0].route:
            self._refuse(output, "an output that no Linear layer computes")
        self._fires(replace(value, layer=self._settled(value), carried=None))

    def _refuse(self, call: Any, what: str = "") -> NoReturn:
        culprit = call.label if isinstance(call, Call) else "several outputs"
        raise ConversionError(f"convert_ann: model must do without {culprit}{f', {what}' if what else ''}. {_REMEDY}")


def _shape(call: Call) -> tuple[int, ...]:
    """Shape of a call's output for one image."""
    return call.shape or ()
