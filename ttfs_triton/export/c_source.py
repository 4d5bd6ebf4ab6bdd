"""A network as one file of C99, equal to the simulator: integers only, no heap, no library."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ttfs_triton.chip.simulator import FromGrid, SimulationSettings, Simulator
from ttfs_triton.data.pixels import to_float
from ttfs_triton.export.shared import as_array, refuse_upsampling, ungrouped
from ttfs_triton.nn import AnalogEncoder, DFTConv2d, EarliestSpikePool2d, NetworkGraph, Stage, Wire, network_graph
from ttfs_triton.nn.grid import POTENTIAL_BITS
from ttfs_triton.nn.on_chip import REGISTER_BOUND, AnalogLayer, ClockedLayer
from ttfs_triton.nn.weighted import skip_step

FINE, INT64_MAX = 2**POTENTIAL_BITS, 2**63 - 1
# Binary places of an analog layer's pixels and σ, and how far their rounding may move a spike, in windows.
MOST_PLACES, LARGEST_SHIFT = 44, 1e-9


def to_c(
    network: nn.Module,
    *,
    steps: int | FromGrid = "network",
    weight_bits: int | FromGrid | None = "network",
    image_shape: Sequence[int] | None = None,
    about: Mapping[str, str] | None = None,
) -> str:
    """Translate a network into one file of C99 that computes the same integers as `simulate`.

    `net_classify` takes 8-bit pixels [height, width, channels], and returns the class in `predictions` of `simulate`
    for `image / 255`. Then `net_first_spike` is the class in `first_spike_predictions`, `net_spike_times` has the time
    steps of the output neurons' spikes, and `net_operations` is the number of synaptic operations. With -DTTFS_MAIN,
    the file is a program that reads images and prints one class per line.

    An analog layer sums exactly, the simulator in float64, so a spike within about 1e-15 windows of the border between
    two steps may differ; within 1e-9, if pixels or σ need more binary places than 64 bits leave for them.

    Args:
        network, image_shape: see `network_graph`.
        steps, weight_bits: as in `simulate`; all other settings are those of the network's grid.
        about: lines of the file's first comment, by title.
    Returns:
        The file's text, ASCII.
    Raises:
        ValueError: as `network_graph` and `simulate`; images are not (channels, height, width); an analog encoder
            reads pooled images, or its sums need more than 64 bits.
        NotImplementedError: the network upsamples spikes.
    Source: Wei et al., ICCV 2023, Eq. 2-7.
    """
    graph = network_graph(network, image_shape)
    if len(graph.image_shape) != 3:
        raise ValueError(f"to_c: image_shape must be (channels, height, width); got {graph.image_shape}.")
    if graph.encoder.kind == "analog" and (route := graph.encoder.inputs[0].route):
        raise ValueError(f"to_c: an analog encoder must read the image itself; got {route[0]} before it.")
    refuse_upsampling("to_c", graph)
    chosen = {"steps": steps, "weight_bits": weight_bits, "per_channel": "network", "state_bits": "network"}
    return _Source(graph, SimulationSettings.of(graph.grid, **chosen)).text(about or {})


class _Source:
    """The file under construction: types and macros, static state, constants, and the table of layers."""

    def __init__(self, graph: NetworkGraph, settings: SimulationSettings) -> None:
        self._graph, self._settings = graph, settings
        layers = {name: layer for name, (layer, _) in Simulator(graph, settings, False).layers.items()}
        clocked = [layer for layer in layers.values() if isinstance(layer, ClockedLayer)]
        self._spikes = {stage.name: f"layer{number}_spikes" for number, stage in enumerate(graph.stages)}
        bits, steps = settings.weight_bits or 32, settings.steps
        largest = max(int(layer.start.abs().max()) + _largest_change(layer) for layer in clocked)
        self._definitions = [
            f"#define NET_CLASSES {graph.classes}",
            f"#define NET_IMAGE_BYTES {math.prod(graph.image_shape)}",
            f"#define NET_NO_SPIKE {steps}",
            f"typedef uint{8 if steps < 2**8 else 16}_t step_t;",
            f"typedef int{next(size for size in (8, 16, 32) if size >= bits)}_t weight_t;",
            f"typedef int{32 if largest < 2**31 else 64}_t sum_t;",
        ]
        neurons = max(math.prod(stage.shape) for stage in graph.stages[1:])
        sloped = any(layer.persistence or layer.may_saturate for layer in clocked)
        inputs = max(sum(math.prod(wire.shape) for wire in stage.wires) for stage in graph.stages[1:])
        self._tables = [f"static sum_t potential[{neurons}], slope[{neurons if sloped else 1}];"]
        self._tables.append(f"static step_t inputs[{inputs}];")
        self._calls = list[str]()
        for number, (stage, text) in enumerate(zip(graph.stages, graph.describe(), strict=True)):
            self._tables.append(f"\n/* {_plain(text)} */")
            self._add(f"layer{number}", stage, layers.get(stage.name))
        self._decide(clocked[-1])

    def _add(self, name: str, stage: Stage, layer: ClockedLayer | AnalogLayer | None) -> None:
        """Add a stage's constants, state and calls: pools, then neurons; `layer` is None for a latency encoder."""
        shape = self._graph.image_shape if layer is None else stage.shape
        self._tables.append(f"static step_t {name}_spikes[{math.prod(shape)}];")
        fields: dict[str, object] = {"to": f"{name}_spikes"}
        channels = sum(wire.shape[0] for wire in stage.inputs)
        read = _map((channels, *stage.inputs[0].shape[1:]))
        if isinstance(layer, ClockedLayer):
            begin = 0
            for wire in stage.inputs:
                self._pool(wire, begin, channels)
                begin += wire.shape[0]
            if (skip := stage.skip) is not None:
                self._pool(skip, math.prod(read), skip.shape[0], skip_step(skip.shape, stage.shape) or (1, 1))
            weight, start, fall, persistence = layer.weight, layer.start, layer.fall(), layer.persistence
            fields |= {"saturates": int(layer.may_saturate), "delayed": layer.layer.skip}
            if layer.skip_weight is not None:
                fields["late"] = self._constants("sum_t", f"{name}_late", layer.skip_weight)
        else:
            read = self._graph.image_shape
            pixels, weight, start, fall, persistence = _encoder(layer, shape[0], self._settings.steps)
            self._tables.append(f"static int64_t patch[{weight[0].numel()}];")
            fields["pixels"] = self._constants("int64_t", f"{name}_pixels", pixels)
            fields["spiking"] = int(stage.neuron is not None)
        kernel, geometry = (1, 1), {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        if isinstance(stage.layer, DFTConv2d):
            kernel, geometry = stage.layer.kernel_size, stage.layer.geometry
        groups = geometry["groups"] if isinstance(layer, ClockedLayer) else 1
        # The weights that one input spike adds to its targets are contiguous.
        weight = weight.reshape(groups, -1, read[0] // groups, *kernel).permute(3, 4, 0, 2, 1)
        fields |= {"kernel": kernel, **geometry, "persistence": persistence}
        fields["weights"] = self._constants("weight_t", f"{name}_weights", weight)
        fields["start"] = self._constants("int64_t", f"{name}_start", start)
        fields["fall"] = self._constants("int64_t", f"{name}_fall", fall)
        self._call("run" if isinstance(layer, ClockedLayer) else "encode", read, _map(shape), fields)

    def text(self, about: Mapping[str, str]) -> str:
        """The whole file; see `to_c`."""
        (channels, height, width), settings = self._graph.image_shape, self._settings
        images = f"{height} x {width} x {channels} bytes: height, width, channels; {self._graph.classes} classes"
        grid = f"{settings.steps} time steps a window, {settings.weight_bits or 'unrounded 24'}-bit weights"
        grid += f", {settings.state_bits}-bit registers" if settings.state_bits else ""
        about = {**about, "Images": images, "Grid": grid}
        comment = [f"   {title:<12}{_plain(text)}" for title, text in about.items()]
        parts = {"COMMENT": comment, "DEFINITIONS": self._definitions, "TABLES": self._tables, "CALLS": self._calls}
        engine = Path(__file__).with_name("engine.c").read_text(encoding="ascii")
        return re.sub(r"^@(\w+)@$", lambda match: "\n".join(parts[match[1]]), engine, flags=re.MULTILINE)

    def _pool(self, wire: Wire, begin: int, channels: int, step: tuple[int, ...] = (1, 1)) -> None:
        """Add calls that pool a wire's spikes into `inputs`, every `step`-th place; a pixel there has `channels`."""
        emitter, source = self._graph[str(wire.source)], self._spikes[str(wire.source)]
        route, (maps, *size) = wire.route, _map(emitter.shape)
        if emitter.kind == "latency":  # it encodes the image itself: pools in front of it come after it here
            route, (maps, *size) = (*emitter.inputs[0].route, *route), self._graph.image_shape
        pools = [module for module in route if isinstance(module, EarliestSpikePool2d)]
        if not pools or step != (1, 1):
            pools.append(EarliestSpikePool2d(1, (step[0], step[1])))
        for number, pool in enumerate(pools, 1):
            read, size = size, pool.output_shape((maps, *size))[1:]
            fields: dict[str, object] = {"from": source, "kernel": pool.kernel_size, "stride": pool.stride}
            fields |= {"padding": pool.padding, "dilation": (1, 1)}
            source, by = f"inputs + {begin}", (channels, 1) if len(wire.shape) > 1 else (1, math.prod(size))
            if number < len(pools):
                source, by = f"pooled{len(self._calls)}", (maps, 1)
                self._tables.append(f"static step_t {source}[{maps * math.prod(size)}];")
            fields |= {"to": source, "by_place": by[0], "by_map": by[1]}
            self._call("pool", (maps, *read), (maps, *size), fields)
        assert step != (1, 1) or maps * math.prod(size) == math.prod(wire.shape)

    def _decide(self, layer: ClockedLayer) -> None:
        """Add the decision, for which products of 62 bits, split in two, give potentials of all classes one unit."""
        readout, unit, start = self._graph.readout, layer.unit.flatten(), layer.start.flatten().double()
        largest_unit, common = float(unit.max()), readout.initial_potential * layer.steps
        # Initial potentials without V₀ apart: in a class's own tiny unit, they have more bits than the products.
        rest = (start * unit - common) / largest_unit
        largest = 2 * FINE * (_largest_change(layer) + float(rest.abs().max()))
        split = -(-int(largest).bit_length() // 2)
        self._constants("int64_t", "scale", (unit / largest_unit * 2.0 ** (61 - split)).round())
        self._constants("int64_t", "rest", (rest * FINE * 2.0 ** (61 - 2 * split)).round())
        register = min(layer.register or INT64_MAX, INT64_MAX // FINE)
        macros = {"AT_END": int(readout.at == "potential_end"), "FIRST_SPIKE": int(readout.at == "first_spike")}
        macros |= {"FINE": FINE, "REGISTER": register, "SPLIT": 2**split}
        self._definitions += [f"#define {name} INT64_C({value})" for name, value in macros.items()]
        self._calls.append(f"    return decide(&net{len(self._calls) - 1});")

    def _constants(self, kind: str, name: str, values: Tensor) -> str:
        numbers = [str(number) for number in values.flatten().long().tolist()]
        lines = ",\n    ".join(", ".join(numbers[start : start + 20]) for start in range(0, len(numbers), 20))
        self._tables.append(f"static const {kind} {name}[{len(numbers)}] = {{\n    {lines}}};")
        return name

    def _call(self, function: str, read: Sequence[int], emitted: Sequence[int], fields: dict[str, object]) -> None:
        """Add a call for a layer that reads and emits maps of these sizes: channels, rows, columns."""
        # Every layer has a separate table and call, for which compilers specialise the function: 1.5 times as fast.
        name = f"net{len(self._calls)}"
        fields |= zip(("channels", "height", "width", "maps", "rows", "columns"), (*read, *emitted), strict=True)
        text = ", ".join(f".{key}={value}" for key, value in fields.items()).translate(str.maketrans("()", "{}"))
        self._tables.append(f"static const layer_t {name} = {{{text}}};")
        self._calls.append(f"    {function}(&{name}{', image' * (function == 'encode')});")


def _encoder(layer: AnalogLayer | None, channels: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """The first layer in integers: pixels [C, 256], dense weights, initial potentials and thresholds' fall [C_out], σ.

    Pixels have the unit 1 / (2 · T · 2^places); with weights of the unit u, potentials have u times this unit.
    """
    pixels = torch.arange(256, dtype=torch.uint8)
    if layer is None:  # a latency encoder has one synapse per neuron, from a pixel
        start = torch.zeros(channels)
        return 2 * steps * pixels.long().expand(channels, 256), torch.eye(channels), start, start + 255, 0
    assert isinstance(layer.layer, AnalogEncoder)
    pixels = to_float(pixels.to(layer.layer.mean.device).view(-1, 1, 1, 1))
    exact = layer.layer.normalise(pixels).double()[..., 0, 0].T
    integers = torch.from_numpy(ungrouped(as_array(layer.quantised.integers), layer.layer.groups)).to(exact)
    unit = torch.where(integers.flatten(1).any(1), layer.quantised.unit, 1.0)
    start = torch.zeros_like(unit) if layer.bias is None else layer.bias / unit
    reach = (integers.abs() * (exact.abs().amax(1).view(-1, 1, 1) + layer.persistence)).flatten(1).sum(1)
    largest = 2 * steps * float((reach + start.abs() + 1 / unit).max() + exact.abs().max())
    finer = 2.0 ** min(MOST_PLACES, math.floor(math.log2(REGISTER_BOUND / largest)))
    if (integers.flatten(1).abs().sum(1) * unit).max() > LARGEST_SHIFT * 2 * finer:
        raise ValueError(
            "to_c: weight_bits must let 64 bits hold sums of pixels times weights; got "
            f"{layer.quantised.limit.bit_length() + 1} bits and {steps} steps. Use fewer weight_bits or steps."
        )
    start, fall = (start * 2 * steps * finer).round(), (finer / unit).round()
    return (exact * 2 * steps * finer).round(), integers, start, fall, round(layer.persistence * finer)


def _largest_change(layer: ClockedLayer) -> int:
    """Bound on what inputs add to a potential before its firing window, in weight units · steps."""
    skip_weight = 0 if layer.skip_weight is None else int(layer.skip_weight.abs().max())
    reach = int(layer.weight.double().abs().flatten(1).sum(1).max()) + skip_weight
    return reach * layer.steps


def _map(shape: Sequence[int]) -> tuple[int, ...]:
    """(channels, height, width) of maps; features are the channels of one pixel."""
    return (*shape, 1, 1) if len(shape) == 1 else tuple(shape)


def _plain(text: str) -> str:
    """Text that may stand in a comment of C: one line of ASCII that neither ends the comment nor begins another."""
    text = " ".join(text.replace("×", "x").replace("→", "->").split()).encode("ascii", "xmlcharrefreplace").decode()
    return re.sub(r"\*/|/\*", " ", text)
