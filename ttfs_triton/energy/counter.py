"""Counts of spikes and synaptic operations, made on the device while a network runs; fan-out of a layer's inputs.

`count(model, batches)` runs the network itself. Inside `with counting(model) as counter:` other code runs the network,
such as the trainer's evaluation. Counts stay on the device, as int64, until `counter.counts()` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ttfs_triton.energy.counts import GATED, Counts, InputCounts, LayerCounts
from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.graph import NetworkGraph, Stage, network_graph
from ttfs_triton.nn.layers import DFTConv2d, WeightedLinear
from ttfs_triton.nn.on_chip import earliest_input
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.statistics import SpikeCounter, channels_innermost, in_parts, where_fired
from ttfs_triton.nn.trace import TURNS, evaluating
from ttfs_triton.nn.weighted import WeightedLayer


@torch.no_grad()
def count(
    model: nn.Module,
    batches: Iterable[Tensor] | Iterable[tuple[Tensor, ...]],
    *,
    histogram_bins: int = 50,
) -> Counts:
    """Run a network over batches and count its spikes and operations.

    Args:
        model: a network that `network_graph` accepts, not compiled. It runs in evaluation mode; its mode is restored.
        batches: images [N, ...] in the form that the model takes, or tuples that start with such images. They are moved
            to the model's device.
        histogram_bins: number of bins of the spike-time histograms, which hold a process's first 250 samples; 0 for no
            histograms.
    Returns:
        Exact counts, summed over the samples of this process. `counting` also sums over processes.
    Raises:
        NetworkError: the model is no network of this project's layers. The message says what to use instead.
        ValueError: `batches` is empty.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> counts = count(cnn1(), [torch.rand(4, 1, 28, 28)])
        >>> counts.samples, counts.layers[0].synapses, counts.total()["dense_macs"] // counts.samples
        (4, 287296, 1670976)
        >>> 0 <= counts.sparsity <= 1
        True
    """
    graph, remaining = graph_of_batches("count", model, batches)
    device = next(model.parameters()).device
    with TURNS, evaluating(model), Counter(graph, histogram_bins) as counter:
        for batch in remaining:
            model(images_and_labels(batch)[0].to(device, non_blocking=True))
    return counter.counts()


def graph_of_batches(function: str, model: nn.Module, batches: Iterable[Any]) -> tuple[NetworkGraph, Iterable[Any]]:
    """The model's graph for images of the batches' shape, and an iterator over all batches; errors name `function`."""
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError(f"{function}: batches must not be empty; got none. A generator gives its batches only once.")
    return network_graph(model, images_and_labels(first)[0].shape[1:]), chain((first,), remaining)


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images of a batch, and its labels or None."""
    if isinstance(batch, Tensor):
        return batch, None
    return batch[0], batch[1] if len(batch) > 1 else None


def counting(model: nn.Module, *, image_shape: Sequence[int] | None = None, histogram_bins: int = 50) -> Counter:
    """A counter of every forward pass inside its `with` block. Arguments as in `network_graph` and `count`.

    Inside the block, the counter replaces the layers' statistics; `collect_statistics` then reads the counter's.
    """
    return Counter(network_graph(model, image_shape), histogram_bins)


class Counter:
    """Counts a running network's spikes and operations; made by `counting`."""

    def __init__(self, graph: NetworkGraph, histogram_bins: int) -> None:
        self._graph = graph
        self._layers = [LayerCounter(stage, histogram_bins) for stage in graph.weighted]
        self._undo = ExitStack()

    def __enter__(self) -> Counter:
        for counter in self._layers:
            layer = counter.layer
            self._undo.callback(layer.register_forward_pre_hook(counter.add_inputs, with_kwargs=True).remove)
            self._undo.callback(setattr, layer, "statistics", layer.statistics)
            self._undo.callback(setattr, counter, "recording", False)
            layer.statistics, counter.recording = counter, True
        if self._graph.encoder.kind == "latency":
            self._undo.callback(self._graph.encoder.layer.register_forward_hook(self._count_encoded).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _count_encoded(self, _: nn.Module, __: Any, activations: Tensor) -> None:
        self._layers[0].encoded += torch.count_nonzero(activations > 0)

    def counts(self, accelerator: Accelerator | None = None) -> Counts:
        """The counts so far. Only this call copies from the device.

        Args:
            accelerator: sum over its processes, which must count different samples and must all call this. Default:
                this process alone.
        """
        kept: Any = [counter.tensors() for counter in self._layers]
        if accelerator is not None and accelerator.num_processes > 1:
            kept = accelerator.reduce(kept, "sum")
        layers = [counter.read(*tensors) for counter, tensors in zip(self._layers, kept, strict=True)]
        if not all(layer.samples for layer, _ in layers):
            raise ValueError("counting: the network must run inside the block; got no images. Run it on some there.")
        grid = self._graph.grid
        bits = () if grid is None else (grid.weight_bits, grid.state_bits)
        return network_counts(self._graph, layers, int(kept[0][-1]), *bits)


def fan_out(layer: WeightedLayer, input_size: tuple[int, ...]) -> tuple[Tensor, int]:
    """Fan-out of a layer's inputs, in two factors: neurons of one output channel reached from a place; channels.

    The first is int64, [height · width] for `input_size` (height, width), or [1] for a linear layer, whose size is ().
    """
    if isinstance(layer, DFTConv2d):
        outputs = layer.output_shape((layer.in_channels, *input_size))[1:]
        taps, reached = (torch.ones(1, 1, *size, dtype=torch.float64) for size in (layer.kernel_size, outputs))
        geometry = layer.geometry | {"groups": 1}
        places = conv2d_input((1, 1, *input_size), taps, reached, **geometry)
        return places.flatten().long(), layer.out_channels // layer.groups
    assert isinstance(layer, WeightedLinear)
    return torch.ones(1, dtype=torch.int64), layer.out_features


@torch.no_grad()
def neurons_reached(layer: WeightedLayer, inputs: Tensor, skip: Tensor | None = None) -> Tensor | None:
    """Mask [N, 1, ...] of a convolution's output places that an input spike of any group reaches, else None."""
    if not isinstance(layer, DFTConv2d):
        return None
    return (earliest_input(layer, inputs, skip).amax(1, keepdim=True) > 0).to(inputs.dtype)


def input_timing(layer: WeightedLayer, inputs: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """`without_input`, `driven_time` and `undriven_time` of a batch, three scalars on the device; see `LayerCounts`.

    `inputs` are activations or steps until the window's end, and `driven_time` is in their unit.
    """
    earliest = rearrange(earliest_input(layer, inputs, skip), "n g ... -> g (n ...)")  # by group or channel
    bias = layer.with_batch_norm(layer.weight)[1]
    bias = torch.zeros(len(layer.weight), device=inputs.device) if bias is None else bias.detach().double()
    until = torch.ones_like(bias)
    if not isinstance(layer, Readout) or layer.at == "first_spike":  # until the initial potential alone meets the ramp
        until = 1 - ((bias + layer.initial_potential) / layer.threshold).clamp(0, 1)
        until = (until * 2**20).round() / 2**20  # sums are exact in any order
    unreached, channels = (earliest <= 0).sum(1, dtype=torch.float64), len(bias) // len(earliest)
    silent, time = ((unreached * one.view(len(earliest), -1).sum(1)).sum() for one in ((bias == 0).double(), until))
    return silent.long(), earliest.sum(dtype=torch.float64) * channels, time.double()


# Sums that a `SynapseCounter` keeps: attributes of `LayerCounts`. Behind them stand the arriving spikes, by wire.
SUMS = ("nonzero_macs", "synaptic_operations", "without_input")


class SynapseCounter:
    """Counts a layer's non-zero inputs, and synaptic operations, which are the sum of these inputs' fan-outs.

    `sums`, [3 + wires] int64, have the order of `SUMS`, then of `Stage.wires`; `times`, [2] float64, that of `GATED`.
    """

    def __init__(self, stage: Stage) -> None:
        self._layer = layer = stage.weighted
        self._channels_of = [wire.shape[0] for wire in stage.inputs]
        self._real_inputs = layer.kind == "analog"
        self._signed = self._real_inputs and stage.neuron is not None  # bright pixels add to a slope, as spikes do
        self.sums = torch.zeros(len(SUMS) + len(stage.wires), dtype=torch.int64, device=layer.weight.device)
        self.times = torch.zeros(len(GATED), dtype=torch.float64, device=layer.weight.device)
        inputs, size, is_map = sum(self._channels_of), stage.inputs[0].shape[1:], isinstance(layer, DFTConv2d)
        places, self._channels = fan_out(layer, size)
        products = int(places.sum()) * inputs
        # Fan-out of the inputs divided by `channels`, channels innermost; None for a linear layer, where it is 1.
        self._reach = places.repeat_interleave(inputs).to(layer.weight.device, torch.float32) if is_map else None
        self._exact = torch.float32 if products < 1 << 24 else torch.float64  # for sums of integers
        # The delayed spikes of a skip are inputs too, with one synapse per spike.
        skipped = math.prod((layer.skip, *stage.shape[1:]))
        self._described = {
            "name": stage.name,
            "kind": layer.kind,
            "neurons": math.prod(stage.shape),
            "neuron": getattr(layer, "neuron", None),
            "inputs": math.prod((inputs, *size)) + skipped,
            "synapses": products * self._channels + skipped,
            "weights": layer.weight.numel() + layer.skip,
            "average": layer.average ** (2 if is_map else 1),
            "biases": 0 if layer.bias is None and layer.batch_norm is None else len(layer.weight),
        }

    def add(self, inputs: Tensor, skip: Tensor | None = None) -> None:
        """Add a batch of inputs, [N, channels, height, width] or [N, features]; an encoder's inputs minus its mean.

        `skip` are delayed spikes, one per neuron; a delayed spike meets one synapse.
        """
        nonzero_macs, synaptic_operations, without_input, *arrived = self.sums
        if not self._real_inputs:
            silent, *times = input_timing(self._layer, inputs, skip)
            self.times += torch.stack(times)
            if self._layer.kind == "spiking":
                without_input += silent
        for part in in_parts(channels_innermost(inputs)):
            active = torch.ne(part, 0, out=torch.empty_like(part, dtype=torch.float32))
            by_wire = rearrange(active, "n (p c) -> n p c", c=inputs.shape[1]).split(self._channels_of, 2)
            for total, spikes in zip(arrived, by_wire, strict=False):
                total += spikes.sum((1, 2)).long().sum()
            nonzero_macs += (products := self._products(active))
            if self._signed:
                synaptic_operations += self._products(where_fired(part).float())
            elif not self._real_inputs:
                synaptic_operations += products
        if skip is not None:
            skipped = torch.count_nonzero(skip)
            for total in (arrived[-1], nonzero_macs, synaptic_operations):
                total += skipped

    def _products(self, chosen: Tensor) -> Tensor:
        """Sum, int64, of the fan-out of inputs that are 1 in `chosen`, [n, inputs] float32, which it overwrites."""
        reached = chosen if self._reach is None else chosen.mul_(self._reach)
        return reached.sum(1, dtype=self._exact).long().sum() * self._channels

    def counts(
        self, sums: Sequence[int], times: Sequence[float], samples: int, **spikes: Any
    ) -> tuple[LayerCounts, Sequence[int]]:
        """The layer's counts, except its delivered spikes, and the numbers of spikes that arrived, by wire.

        `times` are in windows; `spikes` are counts of the neurons' spikes.
        """
        arrived, dense = sums[len(SUMS) :], self._described["synapses"] * samples
        counts: dict[str, Any] = dict(zip(SUMS, sums[: len(SUMS)], strict=True)) | {"active_inputs": sum(arrived)}
        counts |= {"dense_macs": dense, "analog_macs": dense if self._real_inputs else 0}
        if not self._real_inputs:
            counts |= zip(GATED, times, strict=True)
        return LayerCounts(samples=samples, **self._described, **counts, **spikes), arrived


# Samples in a histogram, which takes longer than all other counts: with 128 neurons, about 200 spikes a bin (± 7 %).
HISTOGRAM_SAMPLES = 250


class LayerCounter(SpikeCounter):
    """A `SpikeCounter` that also counts its layer's inputs and synaptic operations; `encoded`: an encoder's spikes."""

    def __init__(self, stage: Stage, histogram_bins: int) -> None:
        super().__init__(stage.shape)
        self._stage, self.layer, self._bins = stage, stage.weighted, histogram_bins
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.prepare(device := self.layer.weight.device)
        self._summed_activation = torch.zeros((), dtype=torch.float64, device=device)
        self._histogram = torch.zeros(self._bins, dtype=torch.int64, device=device)
        self._room = HISTOGRAM_SAMPLES if self._bins else 0
        self.encoded = torch.zeros((), dtype=torch.int64, device=device)
        self.synapses = SynapseCounter(self._stage)

    def update(self, activations: Tensor) -> None:
        """Add a batch of outputs; see `SpikeCounter`."""
        flat = channels_innermost(activations.detach())
        for part in in_parts(flat):
            fired = where_fired(part)
            self.add(part, fired)
            self._summed_activation += part.sum(1, dtype=torch.float32).sum(dtype=torch.float64)
        if self._room:
            for part in in_parts(flat[: self._room]):
                self._histogram += spike_histogram(part, self._bins)
            self._room = max(0, self._room - len(flat))

    def add_inputs(self, _: nn.Module, arguments: Any, options: Any) -> None:
        """Forward pre-hook of the layer: add a batch of its inputs and delayed spikes."""
        if self.layer.training:
            reason = "training drops spikes and normalises by batches. Call its eval() first"
            raise ValueError(f"counting: the network must be in evaluation mode; got training mode: {reason}.")
        inputs, skip = arguments[0], options.get("skip")
        if skip is not None:
            skip = self.layer.read_skip(skip.detach(), self._stage.shape)
        if isinstance(self.layer, AnalogEncoder):
            inputs = inputs - self.layer.mean  # proportional to what the synapses read
        self.synapses.add(inputs.detach(), skip)

    def tensors(self) -> list[Tensor]:
        """All sums, on the device, as `read` takes them; the last is the spikes of an encoder."""
        assert self.counts is not None
        sums, times = self.synapses.sums, self.synapses.times
        return [self.counts, self._summed_activation, self._histogram, sums, times, self.encoded]

    def read(
        self, counts: Tensor, activation: Tensor, histogram: Tensor, *synapses: Tensor
    ) -> tuple[LayerCounts, Sequence[int]]:
        """The result of `SynapseCounter.counts`, from `tensors()` of one process or summed over several."""
        (saturated, samples), spikes = counts[:2].tolist(), counts[2:].cpu()
        sums, times, _ = (part.tolist() for part in synapses)
        return self.synapses.counts(
            sums,
            times,
            samples,
            spikes=int(spikes.sum()),
            saturated=saturated,
            never_active=int((spikes == 0).sum()),
            summed_spike_time=float(spikes.sum() - activation.cpu()),
            histogram=tuple(histogram.tolist()),
        )


def network_counts(
    graph: NetworkGraph, layers: Sequence[tuple[LayerCounts, Sequence[int]]], encoder: int, *bits: int | None
) -> Counts:
    """Counts of a network from those of its layers and their wires; `encoder`: spikes of a latency encoder; `bits`: of
    weights, of states.
    """
    delivered: dict[str | None, int] = {}  # after pooling
    for stage, (_, arrived) in zip(graph.weighted, layers, strict=True):
        for wire, spikes in zip(stage.wires, arrived, strict=True):
            delivered[wire.source] = delivered.get(wire.source, 0) + spikes
    pixels = math.prod(graph.encoder.shape) if graph.encoder.kind == "latency" else 0
    counted = tuple(replace(layer, spikes_delivered=delivered.get(layer.name, 0)) for layer, _ in layers)
    inputs = InputCounts(pixels, encoder)
    return Counts(layers[0][0].samples, counted, inputs, graph.readout.at, graph.windows, *bits)


def spike_histogram(flat: Tensor, bins: int) -> Tensor:
    """[bins] int64: number of spikes in equal bins of time, 1 − activation; `flat` are activations [n, neurons].

    A spike on a border between bins counts in the earlier bin; within float32 rounding of a border, in either bin.
    """
    spiked = flat.float().masked_fill(flat <= 0, -1.0)  # histc ignores values outside of its range, and nan
    return torch.histc(spiked, bins, 0.0, 1.0).long().flip(0)
