"""Build a network of this package's layers from the layers of a traced ANN, with the ANN's weights."""

import re
from collections.abc import Sequence
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

    If `analog`, the first layer is a convolution that reads real pixels; else pixels are spike times.

    Attributes:
        layers: this network's layers, by the names of the ANN's calls.
        wires: sources of each layer's inputs, and of its skip or None, by the same names.
    """

    def __init__(
        self,
        layers: Sequence[ANNLayer],
        image_shape: tuple[int, ...],
        *,
        analog: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        neuron: Neuron,
        readout: ReadoutTime,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.encoder = nn.Identity() if analog else LatencyEncoder()
        self.layers = nn.ModuleDict()
        self.wires = {layer.name: (layer.inputs, layer.skip) for layer in layers}
        for layer in layers:
            statistics = (mean, std) if analog and layer is layers[0] else None
            self.layers[layer.name] = _built(layer, neuron, statistics, readout if layer is layers[-1] else None)

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(images)
        emitted: dict[str | None, Tensor] = {None: x}
        for name, layer in self.layers.items():
            inputs, skip = self.wires[name]
            x = delivered(inputs, emitted)
            emitted[name] = x = layer(x) if skip is None else layer(x, skip=skip.deliver(emitted))
        return x


def code_of(network: ConvertedNetwork) -> str:
    """Python code whose function `build` makes the same network, without its weights, of this package's layers."""
    layers, steps = [], []

    def read(wire: Wire) -> str:
        value = wire.source or "images"
        for module in wire.route:
            value = f"{module}({value})"
        return value

    for name, layer in network.layers.items():
        made, (inputs, skip) = re.sub(r"\bat=(\w+)", r'at="\1"', repr(layer)), network.wires[name]
        if isinstance(layer, AnalogEncoder):
            made = f"{made[:-1]}, mean={layer.mean.flatten().tolist()}, std={layer.std.flatten().tolist()})"
        layers.append(f'            "{name}": {made},\n')
        arriving = ", ".join(map(read, inputs))
        arriving = arriving if len(inputs) == 1 else f"torch.cat([{arriving}], 1)"
        delayed = "" if skip is None else f", skip={read(skip)}"
        steps.append(f'        {name} = self.layers["{name}"]({arriving}{delayed})\n')
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


def _built(
    layer: ANNLayer,
    neuron: Neuron,
    statistics: tuple[Sequence[float] | None, Sequence[float] | None] | None,
    readout: ReadoutTime | None,
) -> WeightedLayer:
    """Our layer: an analog encoder if `statistics` are given, a readout if `readout` is, else spiking neurons."""
    sizes, inputs = layer.module, layer.weight.shape[1] * layer.average
    options: dict[str, Any] = {"weight_standardisation": False}
    skip = 0 if layer.skip is None else layer.skip.shape[0]
    spiking = options | {"neuron": neuron, "average": layer.average}
    if isinstance(sizes, nn.Conv2d):
        geometry: Any = (sizes.in_channels, sizes.out_channels, sizes.kernel_size, sizes.stride, sizes.padding)
        if statistics is not None:
            return AnalogEncoder(*geometry, mean=statistics[0], std=statistics[1], **options)
        geometry += sizes.dilation, sizes.groups
        return DFTConv2d(*geometry, skip=skip, **spiking)
    if readout is not None:
        return Readout(inputs, sizes.out_features, at=readout, **spiking)
    return DFTLinear(inputs, sizes.out_features, skip=skip, **spiking)


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
    """A `TTFSNetwork` if a specification can describe the ANN, else a `ConvertedNetwork`; options of `convert_ann`."""
    first = layers[0]
    plain = isinstance(first.module, nn.Conv2d) and first.module.groups == 1 and first.module.dilation == (1, 1)
    plain = plain and first.average == 1 and not first.inputs[0].route and len(layers) > 1
    analog = plain if encoder is None else encoder == "analog"
    if (analog or mean or std) and not plain:
        raise ConversionError(
            "convert_ann: encoder must be latency unless the first layer is a plain convolution, and mean and std None "
            f"with that encoder; got {first.module}. Train the ANN on pixels in [0, 1], or put a convolution first."
        )
    if (mean or std) and not analog:
        raise ConversionError("convert_ann: encoder must be analog with mean and std; got latency. Leave them out.")
    options = {"mean": mean, "std": std, "neuron": neuron, "readout": readout}
    specification = specification_of(layers)
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        if specification is None or len(image_shape) != 3:
            network: nn.Module = ConvertedNetwork(layers, image_shape, analog=analog, **options)
        else:
            config = NetworkConfig(
                specification,
                in_channels=image_shape[0],
                image_size=image_shape[1:],
                classes=len(layers[-1].weight),
                encoder="analog" if analog else "latency",
                weight_standardisation=False,
                **options,
            )
            network = TTFSNetwork(config)
    _fill(network, layers)
    return network.eval()


def specification_of(layers: Sequence[ANNLayer]) -> str | None:
    """Specification of the hidden layers, as `parse_specification` reads it; None if no specification fits them."""
    tokens: list[list[str]] = []  # of each layer: pools, averages, the layer itself
    before: str | None = None
    for layer in layers:
        read, own = layer.inputs[0], []
        if len(layer.inputs) > 1 or read.source != before:
            return None
        for pool in read.route:
            if isinstance(pool, EarliestSpikePool2d):
                (rows, columns), (step, across), (above, beside) = pool.kernel_size, pool.stride, pool.padding
                if rows != columns or step != across or above != beside or pool.ceil_mode:
                    return None
                own.append(f"P{rows}" + (f"p{above}" if above else "") + (f"s{step}" if step != rows else ""))
            elif isinstance(pool, SpikeUpsample2d):
                return None
        if layer.average > 1 and not tokens and not own:  # a specification averages no images
            return None
        before = layer.name
        if isinstance(layer.module, nn.Linear):
            own += ["A"] if layer.average > 1 else []
            own += [] if layer is layers[-1] else [str(len(layer.weight))]
        else:
            own += [f"A{layer.average}"] if layer.average > 1 else []
            if (token := _token(layer.module)) is None:
                return None
            own.append(token)
        tokens.append(own)
    for last, layer in enumerate(layers):
        if layer.skip is not None:  # a block: from the layer that reads the same spikes, without skips and pools inside
            first = next((place for place in range(last) if layers[place].inputs == (layer.skip,)), last)
            inside = [len(own) > 1 for own in tokens[first + 1 : last + 1]]
            if first == last or any(inside) or any(each.skip for each in layers[first:last]):
                return None
            tokens[first][-1], tokens[last][-1] = f"({tokens[first][-1]}", f"{tokens[last][-1]})"
    text = "-".join(token for own in tokens for token in own)
    return re.sub(r"(\([^()]*\))((?:-\1)+)", lambda found: f"{found[1]}x{1 + found[2].count(found[1])}", text) or None


def _token(module: nn.Conv2d) -> str | None:
    sizes = {module.kernel_size, module.stride, module.padding}
    square = all(not isinstance(size, str) and size[0] == size[1] for size in sizes)
    if not square or module.groups != 1 or module.dilation != (1, 1):
        return None
    kernel, stride, padding = module.kernel_size[0], module.stride[0], module.padding[0]
    token = f"{module.out_channels}C{kernel}"
    token += "" if padding == (kernel - 1) // 2 else f"p{padding}"
    return token + ("" if stride == 1 else f"s{stride}")


@torch.no_grad()
def _fill(network: nn.Module, layers: Sequence[ANNLayer]) -> None:
    """Copy the weights of an ANN's layers into a network's layers, in order; skips get weights of 1."""
    weighted = [module for module in network.modules() if isinstance(module, WeightedLayer)]
    for ours, theirs in zip(weighted, layers, strict=True):
        ours.weight.copy_(theirs.weight)
        if ours.bias is not None:
            ours.bias.copy_(torch.zeros(len(theirs.weight)) if theirs.bias is None else theirs.bias)
        if ours.skip_weight is not None:
            ours.skip_weight.fill_(1.0)
