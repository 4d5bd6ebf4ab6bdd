"""Builds a network of this package's layers from the layers of a traced ANN, with the ANN's weights."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ttfs_triton.convert.layer import ANNLayer
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    EarliestSpikePool2d,
    LatencyEncoder,
    NetworkConfig,
    Neuron,
    Readout,
    SpikeUpsample2d,
    TTFSNetwork,
)
from ttfs_triton.nn.graph import Wire, delivered
from ttfs_triton.nn.weighted import WeightedLayer

ReadoutTime = Literal["potential_start", "potential_end"]


class ConvertedNetwork(nn.Module):
    """A network of our layers for an ANN that no specification describes: groups, dilation, skips, oblong kernels.

    Input [N, *image_shape] images, output [N, classes] logits.

    Attributes:
        encoder: a `LatencyEncoder`, or an `Identity` if the first of the layers is an `AnalogEncoder`.
        layers: this network's layers, by the names of the ANN's calls.
        wires: by the same names, the sources of a layer's inputs, and that of its skip or None.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        encoder: nn.Module,
        layers: Mapping[str, nn.Module],
        wires: Mapping[str, tuple[tuple[Wire, ...], Wire | None]],
    ) -> None:
        super().__init__()
        self.image_shape, self.encoder = image_shape, encoder
        self.layers, self.wires = nn.ModuleDict(layers), wires

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(images)
        emitted: dict[str | None, Tensor] = {None: x}
        for name, layer in self.layers.items():
            inputs, skip = self.wires[name]
            x = delivered(inputs, emitted)
            emitted[name] = x = layer(x) if skip is None else layer(x, skip=skip.deliver(emitted))
        return x


def code_of(network: ConvertedNetwork) -> str:
    """Python code whose function `build` makes the same network of this package's layers, without its weights."""
    layers, steps = [], []

    def read(wire: Wire) -> str:
        value = wire.source or "images"
        for module in wire.route:
            value = f"{module}({value})"
        return value

    for name, layer in network.layers.items():
        made, (inputs, skip) = re.sub(r"\bat=(\w+)", r'at="\1"', repr(layer)), network.wires[name]
        layers.append(f'            "{name}": {made},\n')
        argument = ", ".join(map(read, inputs))
        argument = argument if len(inputs) == 1 else f"torch.cat([{argument}], 1)"
        option = "" if skip is None else f", skip={read(skip)}"
        steps.append(f'        {name} = self.layers["{name}"]({argument}{option})\n')
    return _CODE.format(network.image_shape, network.encoder, "".join(layers), "".join(steps), [*network.layers][-1])


_CODE = """\"\"\"Builds the network of this folder's weights: --network network.py:build.\"\"\"

import torch
from torch.nn import Flatten, Identity, Module, ModuleDict

from ttfs_triton.nn import AnalogEncoder, DFTConv2d, DFTLinear, EarliestSpikePool2d
from ttfs_triton.nn import LatencyEncoder, Neuron, Readout, SpikeUpsample2d


class Network(Module):
    image_shape = {}

    def __init__(self):
        super().__init__()
        self.encoder = {}
        self.layers = ModuleDict({{
{}        }})

    def forward(self, images):
        images = self.encoder(images)
{}        return {}


def build():
    return Network()
"""


def build_network(
    layers: Sequence[ANNLayer],
    image_shape: tuple[int, ...],
    *,
    encoder: Literal["analog", "latency"] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    neuron: Neuron,
    readout: ReadoutTime,
) -> nn.Module:
    """A `TTFSNetwork` if a specification describes the ANN, else a `ConvertedNetwork`; options as in `convert_ann`."""
    first = layers[0]
    plain = not first.linear and first.groups == 1 and first.geometry[2] == (1, 1) and first.average == 1
    plain = plain and not first.inputs[0].route and len(layers) > 1
    plain = plain and all(wire.source is not None for layer in layers[1:] for wire in layer.inputs)  # one stem
    analog = plain if encoder is None else encoder == "analog"
    if (analog or mean or std) and not (analog and plain):
        raise ConversionError(
            "convert_ann: encoder must be analog with mean and std, and the first layer a plain convolution, the only "
            f"one that reads the images, with that encoder; got encoder {'analog' if analog else 'latency'} and the "
            f"first layer {first.name}. Train the ANN on pixels in [0, 1], or put a convolution first."
        )
    specification = specification_of(layers)
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        if specification is None or len(image_shape) != 3:
            built = {
                layer.name: _built(
                    layer,
                    neuron,
                    {"mean": mean, "std": std} if analog and layer is first else None,
                    readout if layer is layers[-1] else None,
                )
                for layer in layers
            }
            wires = {layer.name: (layer.inputs, layer.skip) for layer in layers}
            reader = nn.Identity() if analog else LatencyEncoder()
            network: nn.Module = ConvertedNetwork(image_shape, reader, built, wires)
        else:
            config = NetworkConfig(
                specification,
                in_channels=image_shape[0],
                image_size=image_shape[1:],
                classes=len(layers[-1].weight),
                encoder="analog" if analog else "latency",
                weight_standardisation=False,
                mean=mean,
                std=std,
                neuron=neuron,
                readout=readout,
            )
            network = TTFSNetwork(config)
    weighted = [module for module in network.modules() if isinstance(module, WeightedLayer)]
    for ours, theirs in zip(weighted, layers, strict=True):  # initial potentials are 0 at first, weights of skips 1
        state = {"weight": theirs.weight} | ({} if theirs.bias is None else {"bias": theirs.bias})
        ours.load_state_dict(state, strict=False)
    return network.eval()


def _built(
    layer: ANNLayer, neuron: Neuron, statistics: Mapping[str, Any] | None, readout: ReadoutTime | None
) -> WeightedLayer:
    """Our layer: an analog encoder if `statistics` are given, a readout if `readout` is, else spiking neurons."""
    outputs, inputs, *kernel = layer.weight.shape
    plain: Any = {"weight_standardisation": False}
    sizes: Any = (inputs * layer.groups, outputs, tuple(kernel), *layer.geometry, layer.groups)
    if statistics is not None:
        return AnalogEncoder(*sizes, **statistics, **plain)
    spiking = plain | {"neuron": neuron, "average": layer.average}
    if readout is not None:
        return Readout(inputs * layer.average, outputs, at=readout, **spiking)
    skip = 0 if layer.skip is None else layer.skip.shape[0]
    if layer.linear:
        return DFTLinear(inputs * layer.average, outputs, skip=skip, **spiking)
    return DFTConv2d(*sizes, skip=skip, **spiking)


def specification_of(layers: Sequence[ANNLayer]) -> str | None:
    """Specification of the hidden layers, as `parse_specification` reads it; None if no specification fits them."""
    tokens: list[list[str]] = []  # by layer: its pools, its average, the layer itself
    before: str | None = None
    for layer in layers:
        read, parts = layer.inputs[0], list[str]()
        if len(layer.inputs) > 1 or read.source != before:
            return None
        for pool in read.route:
            if isinstance(pool, EarliestSpikePool2d):
                (rows, columns), (step, across), (above, beside) = pool.kernel_size, pool.stride, pool.padding
                if rows != columns or step != across or above != beside or pool.ceil_mode:
                    return None
                parts.append(f"P{rows}" + (f"p{above}" if above else "") + (f"s{step}" if step != rows else ""))
            elif isinstance(pool, SpikeUpsample2d):
                return None
        if layer.average > 1 and not tokens and not parts:  # a specification averages no images
            return None
        before = layer.name
        if layer.linear:
            parts += ["A"] if layer.average > 1 else []
            parts += [] if layer is layers[-1] else [str(len(layer.weight))]
        else:
            parts += [f"A{layer.average}"] if layer.average > 1 else []
            if (token := _token(layer)) is None:
                return None
            parts.append(token)
        tokens.append(parts)
    for last, layer in enumerate(layers):
        if layer.skip is not None:  # a block: from the layer that reads the same spikes, without skips and pools inside
            first = next((place for place in range(last) if layers[place].inputs == (layer.skip,)), last)
            inside = [len(parts) > 1 for parts in tokens[first + 1 : last + 1]]
            if first == last or any(inside) or any(between.skip for between in layers[first:last]):
                return None
            tokens[first][-1], tokens[last][-1] = f"({tokens[first][-1]}", f"{tokens[last][-1]})"
    text = "-".join(token for parts in tokens for token in parts)
    return re.sub(r"(\([^()]*\))((?:-\1)+)", lambda match: f"{match[1]}x{1 + match[2].count(match[1])}", text) or None


def _token(layer: ANNLayer) -> str | None:
    kernel, (strides, paddings, dilation) = layer.weight.shape[2:], layer.geometry
    square = all(rows == columns for rows, columns in (kernel, strides, paddings))
    if not square or layer.groups != 1 or dilation != (1, 1):
        return None
    token = f"{len(layer.weight)}C{kernel[0]}" + ("" if paddings[0] == (kernel[0] - 1) // 2 else f"p{paddings[0]}")
    return token + ("" if strides[0] == 1 else f"s{strides[0]}")
