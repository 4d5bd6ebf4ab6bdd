"""Calibrates a spiking network against the ANN with its weights: initial potentials, layer by layer, by least squares.

With psp_persistence σ > 0, a neuron's activation is (A + σW)/(1 + σW), where the ANN has clamp(A, 0, 1). The slope W,
the summed weights of all active inputs, is far from 0 in a trained ANN: silent neurons fire, active ones fall silent,
and the error grows from layer to layer. One initial potential per channel corrects its mean and leaves the weights as
they are. A skip's spike adds v·x to the potential and σ·v to its slope, and is corrected in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

from ttfs_kernels.rule import fire
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import AnalogEncoder, Grid
from ttfs_triton.nn.graph import NetworkGraph, Stage, network_graph
from ttfs_triton.nn.on_chip import contract
from ttfs_triton.nn.trace import evaluating
from ttfs_triton.table import Table

# Series of 17 initial potentials; a series is eight times finer than the one before it. The first reaches two threshold
# heights up and down, the last resolves 1/256 of one.
REACHES, CANDIDATES = (2.0, 2.0 / 8, 2.0 / 64), 17
HEADROOM = 1.25
"""Clip at σ = 0, as a multiple of the largest activation on the calibration images, which other images exceed."""

Batches = Sequence[tuple[Tensor, Tensor | None]]
"""A layer's inputs and skip inputs, batch by batch."""
Outputs = Callable[[Stage, Batches], list[Tensor]]


@dataclass(frozen=True)
class LayerCalibration:
    """Result of calibration for one layer.

    Attributes:
        name: name of the layer.
        before, after: root mean squared difference from the outputs that the layer is fitted to, before and after its
            calibration; it reads outputs of calibrated layers in both. In windows; of a readout in threshold heights.
        shift: mean change of the initial potential over channels, in threshold heights; 0 for a layer left alone.
    """

    name: str
    before: float
    after: float
    shift: float


@dataclass(frozen=True)
class Calibration:
    """Result of calibration for a network.

    Attributes:
        layers: hidden layers in their order; if calibrated for a grid, the readout too.
        images: number of calibration images.
        grid: grid that the network was calibrated for; None if it was calibrated against its ANN.
    """

    layers: tuple[LayerCalibration, ...]
    images: int
    grid: Grid | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {key: value for key, value in to_jsonable_python(self).items() if value is not None}

    def table(self) -> Table:
        """The result as a table for a terminal."""
        purpose = "against the ANN" if self.grid is None else f"for {self.grid.text()}"
        headers = ("layer", "difference", "calibrated", "mean change of initial potential")
        rows = [(one.name, f"{one.before:.4f}", f"{one.after:.4f}", f"{one.shift:+.3f}") for one in self.layers]
        caption = "root mean square, in windows; of the readout in threshold heights"
        return Table(f"Calibrated on {self.images} images {purpose}", headers, rows, caption=caption)


@torch.no_grad()
def calibrate_network(
    network: nn.Module, images: Tensor, *, batch_size: int = 64, samples: int = 8192, seed: int = 0
) -> Calibration:
    """Choose initial potentials, in place, that bring the layers closest to the ANN with the same weights.

    The ANN is the network at psp_persistence σ = 0, where a neuron's activation is clamp(A, 0, 1). Layers are fitted in
    order; a layer reads the spikes of the calibrated layers before it.

    Args:
        network: network that `network_graph` accepts, with an ANN's weights and initial potentials, on the images'
            device, in training or evaluation mode; an analog encoder and the readout are left alone.
        images: [N, ...], as the network reads them; 256 are enough. Memory must hold the activations of some layers for
            all images.
        batch_size: images that run at once.
        samples: number of outputs to fit per channel, drawn from all positions of all images.
        seed: seed of the drawn outputs.
    Returns:
        Differences before and after calibration, and the change of initial potentials, by hidden layer.
    Raises:
        NetworkError: `network_graph` does not accept the network.
        ConversionError: a layer without initial potentials, a network on a grid, or no images.
    Example:
        >>> from ttfs_triton.nn import resnet20
        >>> report = calibrate_network(resnet20(width=0.25), torch.rand(4, 3, 32, 32))
        >>> len(report.layers)
        19
    """
    graph = network_graph(network, images.shape[1:])
    for stage in graph.weighted[:-1]:
        if _spiking(stage) and stage.weighted.bias is None:
            raise ConversionError(
                f"calibrate: layers must have initial potentials; got bias=False in {stage.name}. "
                "Make the network, or convert, with bias=True."
            )
    if graph.grid is not None or len(images) == 0:
        got = "no images" if len(images) == 0 else f"a network on a grid, {graph.grid}"
        raise ConversionError(f"calibrate: network must have no grid, and images must hold at least one; got {got}.")
    generator = torch.Generator().manual_seed(seed)

    def choose(stage: Stage, inputs: Batches, wanted: Sequence[Tensor]) -> float:
        return _choose_initial_potentials(stage, inputs, wanted, samples, generator) if _spiking(stage) else 0.0

    def activations(stage: Stage, inputs: Batches) -> list[Tensor]:
        return [stage.activations(*batch) for batch in inputs]

    with evaluating(network):
        layers = calibrate_layers(graph, images, batch_size, _without_slope, activations, choose)
    return Calibration(layers[:-1], len(images))


def calibrate_layers(
    graph: NetworkGraph,
    images: Tensor,
    batch_size: int,
    reference: Outputs,
    outputs: Outputs,
    choose: Callable[[Stage, Batches, Sequence[Tensor]], float],
) -> tuple[LayerCalibration, ...]:
    """Run a network and its reference side by side, and calibrate a layer before the next one runs.

    `choose` fits a layer, given its inputs, to the reference's outputs, and returns the mean change of its initial
    potentials.
    """
    results = dict[str, LayerCalibration]()

    def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        """Outputs of the network, then of its reference, as one batch."""
        (ours, theirs), (our_skip, their_skip) = inputs.chunk(2), (None, None) if skip is None else skip.chunk(2)
        wanted, parts = reference(stage, batches(theirs, their_skip, batch_size)), batches(ours, our_skip, batch_size)
        expected = torch.cat(wanted)

        def run() -> tuple[Tensor, float]:
            given = torch.cat(outputs(stage, parts))
            return given, (given.double() - expected.double()).square().mean().sqrt().item()

        before = run()[1]
        shift = 0.0 if stage.kind == "latency" else choose(stage, parts, wanted)
        given, after = run()
        results[stage.name] = LayerCalibration(stage.name, before, after, shift)
        return torch.cat([given, expected])

    graph.run(torch.cat([images, images]), fire)
    return tuple(results[stage.name] for stage in graph.weighted)


def batches(inputs: Tensor, skip: Tensor | None, batch_size: int) -> Batches:
    """Split a layer's inputs and skip inputs into batches."""
    parts = inputs.split(batch_size)
    return list(zip(parts, [None] * len(parts) if skip is None else skip.split(batch_size), strict=True))


def rows_of(activations: Tensor) -> Tensor:
    """[N, C, height, width] or [N, C] as [rows, C]."""
    return rearrange(activations, "n c h w -> (n h w) c") if activations.dim() == 4 else activations


def drawn_rows(rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random share of rows, at least one; drawn on the CPU, so that every device gets the same."""
    kept = torch.randperm(len(rows), generator=generator)[: max(1, round(share * len(rows)))]
    return kept.to(rows.device)


def _spiking(stage: Stage) -> bool:
    return stage.neuron is not None and stage.kind != "readout"


def _without_slope(stage: Stage, inputs: Batches) -> list[Tensor]:
    """Activations of a layer at σ = 0; an encoder without a neuron and the readout compute as always."""
    if not _spiking(stage):
        return [stage.activations(*batch) for batch in inputs]
    return [analog_potential(stage, *batch).clamp(0, 1) for batch in inputs]


def analog_potential(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
    """Membrane potential A plus the initial potential: the input of the ANN's activation function."""
    potential, bias = _potentials(stage, inputs, skip)[0], stage.weighted.bias
    return potential if bias is None else potential + bias.view(-1, *[1] * (potential.dim() - 2))


def _potentials(stage: Stage, inputs: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer's membrane potentials A without the initial potential, and their slopes W without σ."""
    layer = stage.weighted
    x = layer.normalise(inputs) if isinstance(layer, AnalogEncoder) else inputs
    weight = layer.effective_weight()
    potential, slope = contract(layer, x, weight), contract(layer, (x > 0).to(x.dtype), weight)
    skip_weight = layer.skip_weights()
    if skip is not None and skip_weight is not None:
        skip_weight = skip_weight.view(-1, *[1] * (skip.dim() - 2))
        potential, slope = potential + skip_weight * skip, slope + skip_weight * (skip > 0)
    return potential, slope


def _choose_initial_potentials(
    stage: Stage, inputs: Batches, wanted: Sequence[Tensor], samples: int, generator: torch.Generator
) -> float:
    """Give every channel the initial potential with the least squared error from `wanted`; returns the mean change."""
    parts, count = [], sum(len(rows_of(target)) for target in wanted)
    for (x, skip), target in zip(inputs, wanted, strict=True):
        potential, slope, rows = map(rows_of, (*_potentials(stage, x, skip), target))
        kept = drawn_rows(rows, min(1.0, samples / count), generator)
        parts.append([values[kept].float() for values in (potential, slope, rows)])
    potential, slope, rows = map(torch.cat, zip(*parts, strict=True))
    bias, neuron = stage.weighted.bias, stage.neuron
    assert bias is not None
    assert neuron is not None
    slope *= neuron.psp_persistence
    return fit_bias(bias, lambda: (fire(potential + bias, slope)[0] - rows).square().mean(0), REACHES, CANDIDATES)


def fit_bias(bias: nn.Parameter, error: Callable[[], Tensor], reaches: Sequence[float], points: int) -> float:
    """Choose initial potentials by `choose_least`, in ever finer steps; returns their mean change."""
    first = bias.clone()
    for reach in reaches:
        steps = torch.linspace(-reach, reach, points).tolist()
        choose_least(bias, error, [bias.detach() + step for step in steps])
    return (bias - first).mean().item()


def choose_least(parameter: nn.Parameter, error: Callable[[], Tensor], candidates: Sequence[Tensor]) -> None:
    """Set every channel of a parameter, in place, to its present value or the candidate with the least error.

    `error` gives errors [C] of the present values. A parameter [1] is one number that all channels share.
    """
    best = parameter.detach().clone()
    least = torch.full_like(best, torch.inf, dtype=torch.float64)
    for candidate in [best, *candidates]:
        parameter.copy_(candidate)
        current = error().double()
        if len(parameter) == 1:
            current = current.sum(0, keepdim=True)
        best, least = torch.where(current < least, candidate, best), torch.minimum(current, least)
    parameter.copy_(best)


@torch.no_grad()
def fit_range(
    network: nn.Module,
    images: Tensor,
    bounds: Sequence[float | None] | None = None,
    *,
    percentile: float | None = None,
    batch_size: int = 64,
    samples: int = 65536,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Divide a channel's weights by its clip, and multiply the weights that read the channel by the clip, in place.

    The ANN's outputs stay the same. Spikes represent activations up to the clip, and saturate above it.

    Args:
        network: spiking network that `network_graph` accepts, with an ANN's weights and biases.
        images: [N, ...], as the network reads them; 256 are enough.
        bounds: by hidden layer, the upper bound of the ANN's activations, which is the clip, or None for a ReLU, whose
            clip is a percentile of a channel's activations on the images. Default: None for all layers.
        percentile: percentile over positions and images, zeros included, in (0, 100]. Default: 99.9; at σ = 0, where
            clipping alone changes the ANN, the largest activation times `HEADROOM`.
        batch_size: images that run at once.
        samples: number of activations per channel, drawn at random, of which a percentile below 100 is taken.
        seed: seed of the drawn activations.
    Returns:
        Clips [C] by name of the hidden layer.
    Raises:
        ConversionError: percentile out of range, no images, a grid, or weights that have batch norm or gains.
    """
    if percentile is not None and not 0 < percentile <= 100:
        raise ConversionError(f"fit_range: percentile must be in (0, 100]; got {percentile}.")
    if len(images) == 0:
        raise ConversionError("fit_range: images must hold at least one image; got none.")
    graph = network_graph(network, images.shape[1:])
    factor = 1.0 if percentile or any(graph.persistences) else HEADROOM
    percentile = percentile or (99.9 if any(graph.persistences) else 100)
    if any(stage.weighted.weight_gain is not None or stage.weighted.batch_norm is not None for stage in graph.weighted):
        raise ConversionError("fit_range: network must have plain weights, no batch norm or gains. Fold them first.")
    if graph.grid is not None:
        raise ConversionError(f"fit_range: network must have no grid; got {graph.grid}. Put it on a grid afterwards.")
    hidden = [stage.name for stage in graph.weighted[:-1]]
    upper = dict(zip(hidden, bounds or [None] * len(hidden), strict=True))
    generator, clips = torch.Generator().manual_seed(seed), {}

    def measure(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind in ("latency", "readout"):
            return stage.activations(inputs, skip)
        bound = upper[stage.name]
        parts = batches(inputs, skip, batch_size)
        activations = torch.cat([analog_potential(stage, *batch) for batch in parts]).clamp(0, bound)
        if bound is None:
            rows = rows_of(activations)
            if percentile < 100:
                rows = rows[drawn_rows(rows, min(1.0, samples / len(rows)), generator)]
            clips[stage.name] = _reached(rows, percentile / 100, factor)
        else:
            clips[stage.name] = stage.weighted.weight.new_full((len(stage.weighted.weight),), bound)
        return activations

    graph.run(images, measure)
    _rescale(graph, clips)
    return clips


def _reached(rows: Tensor, quantile: float, factor: float) -> Tensor:
    """Quantiles [C] of activations [rows, C], times a factor; 1 for channels that are never active."""
    most = rows.amax(0)
    value = most if quantile == 1 else rows.sort(dim=0).values[round(quantile * (len(rows) - 1))]
    # A channel so rarely active that its quantile is 0 gets its maximum.
    value = torch.where(value > 0, value, most)
    return torch.where(value > 0, factor * value, torch.ones_like(value))


def _rescale(graph: NetworkGraph, clips: Mapping[str, Tensor]) -> None:
    for stage in graph.weighted:
        layer, weight = stage.weighted, stage.weighted.weight.double()
        groups, per_output = getattr(layer, "groups", 1), [-1, *[1] * (weight.dim() - 1)]
        # Inputs that share a weight: more than one where a linear layer averages over a map.
        average = sum(wire.shape[0] for wire in stage.inputs) // (groups * weight.shape[1])
        inputs = []
        for wire in stage.inputs:  # a flattened map has one channel behind the other
            clip = clips.get(wire.source or "", weight.new_ones(1)).double()
            inputs.append(clip.repeat_interleave(wire.shape[0] // average // len(clip)))
        weight = rearrange(weight, "(g o) i ... -> o ... g i", g=groups)  # a group reads no other group's channels
        weight = weight * rearrange(torch.cat(inputs), "(g i) -> g i", g=groups)
        weight = rearrange(weight, "o ... g i -> (g o) i ...")
        if (clip := clips.get(stage.name)) is not None:
            weight = weight / clip.double().view(per_output)
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() / clip)
            if layer.skip_weight is not None and stage.skip is not None:
                before = clips.get(stage.skip.source or "", clip.new_ones(layer.skip))
                before = before.repeat_interleave(layer.skip // len(before))  # flattened maps, as above
                layer.skip_weight.copy_(layer.skip_weight * before / clip[: layer.skip])
        layer.weight.copy_(weight)
