"""A network as one file of C99, equal to the simulator: integers only, spikes in time order, no heap, no library."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.chip.simulation import SimulationSettings
from ttfs_triton.chip.simulator import Own, Simulator
from ttfs_triton.data.pixels import to_float
from ttfs_triton.nn.coding import AnalogEncoder, SignedEncoder
from ttfs_triton.nn.graph import NetworkGraph, Stage, Wire
from ttfs_triton.nn.grid import POTENTIAL_BITS, Clock
from ttfs_triton.nn.layers import EarliestSpikePool2d
from ttfs_triton.nn.on_chip import REGISTER_BOUND, AnalogLayer, ClockedLayer
from ttfs_triton.nn.readout import ClockedReadout
from ttfs_triton.nn.sizes import skip_step
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.nn.weighted import WeightedConv2d

ENGINE = Path(__file__).with_name("engine.c")
FINE = 2**POTENTIAL_BITS
PIXELS = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)

# Binary places of an analog layer's pixels and σ, and how far their rounding may move a spike, in windows.
MOST_PLACES, LARGEST_SHIFT = 44, 1e-9


def to_c(
    network: nn.Module,
    *,
    steps: int | Own = "network",
    weight_bits: int | Own | None = "network",
    image_shape: Sequence[int] | None = None,
    about: Mapping[str, str] | None = None,
) -> str:
    """Translate a network into one file of C99 that computes the same integers as `simulate`.

    The file needs no library, no heap and no floating point. `int net_classify(const uint8_t *image)` takes 8-bit
    pixels, row by row, the channels of a pixel beside each other, and returns the class in `predictions` of `simulate`
    for `image / 255`. Then `net_first_spike` is the class in `first_spike_predictions`, `net_spike_times` holds the
    time steps of the output neurons' spikes, and `net_operations` the number of synaptic operations. With -DTTFS_MAIN,
    the file is a program that reads images from standard input and prints a class a line.

    An analog layer sums exactly, the simulator in float64, so a spike within about 1e-15 windows of the border between
    two steps may differ; within 1e-9, if pixels or σ need more binary places than 64 bits leave for them.

    Args:
        network: network that `network_graph` accepts.
        steps, weight_bits: as in `simulate`; all other settings are those of the network's grid.
        image_shape: see `network_graph`.
        about: lines of the file's first comment, by title.
    Returns:
        The file's text, ASCII.
    Raises:
        NetworkError: as `network_graph`.
        ValueError: as `simulate`; images are not (channels, height, width); or sums of an analog layer need more than
            64 bits.
    Source: Wei et al., ICCV 2023, Eq. 2-7.
    """
    graph = network_graph(network, image_shape)
    if len(graph.image_shape) != 3:
        raise ValueError(f"to_c: image_shape must be (channels, height, width); got {graph.image_shape}.")
    others: dict[str, Own] = {"per_channel": "network", "state_bits": "network"}
    settings = SimulationSettings.of(graph.grid, steps=steps, weight_bits=weight_bits, **others)
    simulator = Simulator(graph, settings, False)
    source = _Source(graph, settings, {name: layer for name, (layer, _) in simulator.layers.items()})
    for number, stage in enumerate(graph.stages):
        source.add(number, stage)
    return source.text(about or {})


class _Source:
    """The file under construction: macros, types, static state, constants, and the calls that classify an image."""

    def __init__(
        self, graph: NetworkGraph, settings: SimulationSettings, layers: Mapping[str, ClockedLayer | AnalogLayer]
    ) -> None:
        self._graph, self._settings, self._layers = graph, settings, layers
        clocked = {name: layer for name, layer in layers.items() if isinstance(layer, ClockedLayer)}
        saturates = any(layer.may_saturate for layer in clocked.values())
        slopes = saturates or any(layer.persistence for layer in clocked.values())
        wide, bits = max(map(_largest_sum, clocked.values())) >= 2**31, settings.weight_bits or 32
        inputs = max(sum(math.prod(wire.shape) for wire in stage.wires) for stage in graph.stages[1:])
        self._types = {
            "step_t": "uint8_t" if settings.steps < 2**8 else "uint16_t",
            "weight_t": f"int{next(size for size in (8, 16, 32) if size >= bits)}_t",
            "sum_t": "int64_t" if wide else "int32_t",
            "place_t": "uint16_t" if inputs < 2**16 else "uint32_t",
        }
        self._macros: dict[str, object] = {
            "NET_CLASSES": graph.classes,
            "NET_IMAGE_BYTES": math.prod(graph.image_shape),
            "NET_NO_SPIKE": settings.steps,
            "FINE": f"INT64_C({FINE})",
        }
        # The parts of the engine that this network needs.
        decision = "first_spike" if graph.readout.at == "first_spike" else "potential"
        self._parts = {graph.encoder.kind, decision, "slopes" if slopes else "no_slopes"}
        self._parts |= {name for name, needed in (("saturates", saturates), ("hidden", len(clocked) > 1)) if needed}
        self._flash = self._ram = self._joined = self._pooled = 0
        self._state, self._tables, self._calls = list[str](), list[str](), list[str]()
        self._spikes: dict[str | None, str] = {}
        neurons = max(math.prod(graph[name].shape) for name in clocked)
        self._buffer("sum_t", "potential", neurons)
        if slopes:
            self._buffer("sum_t", "slope", neurons)
        self._buffer("place_t", "order", inputs)
        self._buffer("int32_t", "begins", settings.steps + 1)

    def add(self, number: int, stage: Stage) -> None:
        """Add a stage's constants and state, and the calls that run it."""
        name = f"layer{number}_" + re.sub(r"\W", "_", stage.name, flags=re.ASCII)
        self._tables.append(f"\n/* {_plain(self._graph.describe()[number])} */")
        layer, fields = self._layers.get(stage.name), dict[str, object]()
        if stage.kind != "readout":
            fields["to"] = self._spikes[stage.name] = self._buffer("step_t", f"{name}_spikes", math.prod(stage.shape))
        if layer is None:
            clock = Clock(self._settings.steps)
            self._constants("step_t", "encoded", clock.step_of(clock.encode(to_float(PIXELS))))
            self._calls.append(f"encode(image, {name}_spikes);")
        elif isinstance(layer, AnalogLayer):
            pixels, start, fall, fields["persistence"] = _analog_integers(layer, self._settings)
            self._parts |= {"signed"} if isinstance(layer.layer, SignedEncoder) else set()
            self._macros["ENCODED_MAPS"] = stage.shape[0]
            self._ram += 2 * 8 * stage.shape[0]
            self._constants("int64_t", "pixels", pixels)
            self._neurons(stage, name, layer.quantised.integers, start, fall, fields)
            self._calls.append(f"encode(image, &{name});")
        else:
            fields |= {"from": self._arriving(stage), "persistence": layer.persistence}
            fields["saturates"] = int(layer.may_saturate)
            if layer.skip_weight is not None:
                self._parts.add("delayed")
                fields |= {
                    "delayed": layer.layer.skip,
                    "late": self._constants("sum_t", f"{name}_late", layer.skip_weight),
                }
            ramp, call = layer.ramp(), f"run(&{name});"
            if isinstance(layer, ClockedReadout):
                ramp, call = layer.own_ramp(), f"return read_out(&{name});"
                self._scores(layer)
            self._neurons(stage, name, layer.weight, layer.start, ramp.decrement, fields)
            self._calls.append(call)

    def text(self, about: Mapping[str, str]) -> str:
        """The whole file; see `to_c`."""
        if self._joined:
            self._buffer("step_t", "inputs", self._joined)
        graph, settings = self._graph, self._settings
        channels, height, width = graph.image_shape
        grid = f"{settings.steps} time steps a window, {settings.weight_bits or 'unrounded 24'}-bit weights"
        lines = {
            **about,
            "Images": f"{height} x {width} x {channels} bytes: height, width, channels; {graph.classes} classes",
            "Grid": grid + (f", {settings.state_bits}-bit registers" if settings.state_bits else ""),
            "Flash": f"{self._flash:,} bytes of tables, without code",
            "RAM": f"{self._ram:,} bytes of static state, without stack and image",
        }
        parts = {
            "COMMENT": [f"   {title:<12}{_plain(text)}" for title, text in lines.items()],
            "MACROS": [f"#define {name} {value}" for name, value in self._macros.items()],
            "TYPES": [f"typedef {kind} {name};" for name, kind in self._types.items()],
            "STATE": self._state,
            "TABLES": self._tables,
            "CALLS": [f"    {call}" for call in self._calls],
        }
        chosen = _chosen(ENGINE.read_text(encoding="ascii"), self._parts)
        return re.sub(r"^@(\w+)@$", lambda found: "\n".join(parts[found[1]]), chosen, flags=re.MULTILINE)

    # ---- layers

    def _neurons(
        self, stage: Stage, name: str, weight: Tensor, start: Tensor, fall: Tensor, fields: dict[str, object]
    ) -> None:
        """A layer with its tables; a fully connected one is a convolution of one pixel."""
        layer, groups, kernel = stage.weighted, 1, (1, 1)
        geometry: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        if isinstance(layer, WeightedConv2d):
            groups, kernel, geometry = layer.groups, layer.kernel_size, layer.geometry
        read = _map((sum(wire.shape[0] for wire in stage.inputs), *stage.inputs[0].shape[1:]))
        # Weights to the targets of a spike lie beside each other.
        weight = weight.reshape(groups, -1, read[0] // groups, *kernel).permute(3, 4, 0, 2, 1)
        fields |= zip(("channels", "height", "width"), read, strict=True)
        fields |= zip(("maps", "rows", "columns"), _map(stage.shape), strict=True)
        fields |= {"kernel": kernel} | geometry
        fields["weights"] = self._constants("weight_t", f"{name}_weights", weight)
        for key, values in (("start", start), ("fall", fall)):
            fields[key] = self._constants("int64_t", f"{name}_{key}", values)
        self._struct("layer_t", name, fields)

    def _arriving(self, stage: Stage) -> str:
        """The array with a stage's input spikes: its source's own, or one to which they are copied and pooled."""
        first, channels = stage.inputs[0], sum(wire.shape[0] for wire in stage.inputs)
        source = self._graph[str(first.source)].shape
        # Flattening moves nothing in a single map, or in maps of one pixel.
        same = first.shape == source or (len(first.shape) == 1 and 1 in (source[0], math.prod(source[1:])))
        if len(stage.wires) == 1 and same and not _pools(first):
            return self._spikes[first.source]
        begin = 0
        for wire in stage.inputs:
            self._copy(wire, f"inputs + {begin}", channels)
            begin += wire.shape[0]
        size = channels * math.prod(first.shape[1:])
        if stage.skip is not None:
            step = skip_step(stage.skip.shape, stage.shape) or (1, 1)
            self._copy(stage.skip, f"inputs + {size}", stage.skip.shape[0], (step[0], step[1]))
            size += stage.skip.shape[0] * math.prod(stage.shape[1:])
        self._joined = max(self._joined, size)
        return "inputs"

    def _copy(self, wire: Wire, to: str, channels: int, step: tuple[int, int] = (1, 1)) -> None:
        """Copy a wire's spikes to an array with so many channels a pixel: pooled, and then every `step`-th pixel."""
        self._parts.add("pools")
        source, (maps, *size) = self._spikes[wire.source], _map(self._graph[str(wire.source)].shape)
        pools = [(pool.kernel_size, pool.stride, pool.padding) for pool in _pools(wire)]
        if not pools or step != (1, 1):
            pools.append(((1, 1), step, (0, 0)))
        for number, (kernel, stride, padding) in enumerate(pools, 1):
            rows, columns = (
                (length + 2 * around - taps) // apart + 1
                for length, taps, apart, around in zip(size, kernel, stride, padding, strict=True)
            )
            distances, target = (columns * maps, maps, 1), to
            if number < len(pools):
                target = self._buffer("step_t", f"pooled{self._pooled}", rows * columns * maps)
            else:
                distances = (columns, 1, rows * columns) if len(wire.shape) == 1 else (columns * channels, channels, 1)
            fields: dict[str, object] = {"from": source, "to": target, "height": size[0], "width": size[1]}
            fields |= {"channels": maps, "rows": rows, "columns": columns}
            fields |= {"kernel": kernel, "stride": stride, "padding": padding}
            fields |= zip(("by_row", "by_column", "by_channel"), distances, strict=True)
            self._struct("pool_t", f"pool{self._pooled}", fields)
            self._calls.append(f"pool(&pool{self._pooled});")
            self._pooled += 1
            source, size = target, [rows, columns]

    def _scores(self, layer: ClockedReadout) -> None:
        """Tables and macros that give potentials of all classes one unit: products of 62 bits at most, split in two."""
        unit, common, steps = layer.unit.flatten(), layer.readout.initial_potential, layer.steps
        grain = math.gcd(FINE, 2 * steps * layer.persistence)  # all potentials of the readout are multiples
        largest = FINE * (_largest_sum(layer, False) + abs(common) * steps / float(unit.min()))
        bits = (2 * int(largest) // grain).bit_length()
        split = -(-bits // 2)
        self._constants("int64_t", "scale", (unit / unit.max() * 2.0 ** (61 - split)).round())
        offset = common * steps * FINE / (float(unit.max()) * grain) * 2.0 ** (61 - 2 * split)
        self._macros |= {"GRAIN": f"INT64_C({grain})", "SPLIT": f"INT64_C({2**split})"}
        if "potential" in self._parts:
            self._macros["OFFSET"] = f"INT64_C({round(offset)})"
            self._macros["POTENTIAL"] = "end" if self._graph.readout.at == "potential_end" else "value"
        if layer.register is not None and layer.register * FINE < REGISTER_BOUND:  # wider ones never saturate
            self._parts.add("register")
            self._macros["REGISTER"] = layer.register

    # ---- text

    def _bytes(self, kind: str, count: int) -> int:
        return count * int(re.sub(r"\D", "", self._types.get(kind, kind))) // 8

    def _buffer(self, kind: str, name: str, size: int) -> str:
        self._ram += self._bytes(kind, size)
        self._state.append(f"static {kind} {name}[{size}];")
        return name

    def _constants(self, kind: str, name: str, values: Tensor) -> str:
        numbers = [str(number) for number in values.flatten().long().tolist()]
        self._flash += self._bytes(kind, len(numbers))
        lines = ",\n    ".join(", ".join(numbers[start : start + 20]) for start in range(0, len(numbers), 20))
        self._tables.append(f"static const {kind} {name}[{len(numbers)}] = {{\n    {lines}}};")
        return name

    def _struct(self, kind: str, name: str, fields: Mapping[str, object]) -> None:
        text = (
            f".{key} = {f'{{{value[0]}, {value[1]}}}' if isinstance(value, tuple) else value}"
            for key, value in fields.items()
        )
        lines = textwrap.fill(", ".join(text), 112, initial_indent="    ", subsequent_indent="    ")
        self._tables.append(f"static const {kind} {name} = {{\n{lines}}};")


def _analog_integers(layer: AnalogLayer, settings: SimulationSettings) -> tuple[Tensor, Tensor, Tensor, int]:
    """An analog layer in integers: pixels [C, 256], initial potentials and fall of the threshold [C_out], and σ.

    The unit of its potentials is u / (2 · T · 2^places), for weights with the unit u; of its pixels, 1 / 2^places.
    """
    encoder, integers, double = layer.layer, layer.quantised.integers.double(), 2 * settings.steps
    assert isinstance(encoder, AnalogEncoder | SignedEncoder)
    pixels = encoder.normalise(to_float(PIXELS)).double()[..., 0, 0].T
    unit = torch.where(integers.flatten(1).any(1), layer.quantised.unit, 1.0)
    start = torch.zeros_like(unit) if layer.bias is None else layer.bias / unit
    reach = (integers.abs() * (pixels.abs().amax(1).view(-1, 1, 1) + layer.persistence)).flatten(1).sum(1)
    largest = float((double * (reach + start.abs() + 1 / unit)).max())
    places = min(MOST_PLACES, math.floor(math.log2(REGISTER_BOUND / largest)))
    finer = 2.0**places
    exact = torch.cat([pixels.flatten(), pixels.new_tensor([layer.persistence])])
    off = ((exact * finer).round() / finer - exact).abs().max()
    if off * (integers.flatten(1).abs().sum(1) * unit).max() > LARGEST_SHIFT:
        raise ValueError(
            "to_c: weight_bits must let 64 bits hold sums of pixels times weights; got "
            f"{settings.weight_bits or 24} bits and {settings.steps} steps. Use fewer weight_bits or steps."
        )
    return (
        (pixels * finer).round(),
        (start * double * finer).round(),
        (finer / unit).round(),
        round(layer.persistence * finer),
    )


def _largest_sum(layer: ClockedLayer, saturates: bool | None = None) -> int:
    """Bound on a layer's slopes and potentials before its own window, in weight units · steps."""
    late = 0 if layer.skip_weight is None else int(layer.skip_weight.abs().max())
    reach = int(layer.weight.double().abs().flatten(1).sum(1).max()) + late
    if (layer.may_saturate if saturates is None else saturates) and layer.register is not None:
        return layer.register + max(reach, layer.register)
    return int(layer.start.abs().max()) + reach * layer.steps


def _pools(wire: Wire) -> list[EarliestSpikePool2d]:
    return [module for module in wire.route if isinstance(module, EarliestSpikePool2d)]


def _map(shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of maps; features are the channels of one pixel."""
    channels, height, width = (*shape, 1, 1) if len(shape) == 1 else shape
    return channels, height, width


def _plain(text: str) -> str:
    """Text that may stand in a comment of C: one line of ASCII that neither ends the comment nor begins another."""
    text = " ".join(text.replace("×", "x").replace("→", "->").split())
    return re.sub(r"\*/|/\*", " ", text.encode("ascii", "xmlcharrefreplace").decode())


def _chosen(text: str, parts: set[str]) -> str:
    """The lines of the engine outside of the parts that are not needed: //if NAME to //end."""
    lines, needed = list[str](), [True]
    for line in text.splitlines():
        if line.startswith("//if "):
            needed.append(needed[-1] and line.removeprefix("//if ") in parts)
        elif line == "//end":
            needed.pop()
        elif needed[-1]:
            lines.append(line)
    return "\n".join(lines) + "\n"
