"""Calibrate a spiking network against the ANN of its weights: initial potentials, layer by layer, by least squares.

With psp_persistence σ > 0 a neuron's activation is (A + σW)/(1 + σW), where the ANN has clamp(A, 0, 1). The slope W,
the summed weights of all active inputs, is far from 0 in a trained ANN: silent neurons fire, active ones fall silent,
and the error grows with each layer. One initial potential a channel corrects its mean and leaves the weights as they
are. A delayed spike adds v·x to the potential and σ·v to its slope, and is corrected in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

from ttfs_kernels.rule import fire
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import AnalogEncoder, DFTConv2d, DFTLinear, Grid, SignedEncoder
from ttfs_triton.nn.graph import NetworkGraph, Stage
from ttfs_triton.nn.trace import evaluating, network_graph
from ttfs_triton.nn.weighted import WeightedConv2d
from ttfs_triton.terminal import TerminalTable

# Grids of 17 initial potentials, each eight times finer than the one before. The first reaches two threshold heights
# up and down, the last resolves 1/256 of one.
REACHES, CANDIDATES = (2.0, 2.0 / 8, 2.0 / 64), 17


@dataclass(frozen=True)
class LayerCalibration:
    """Result of calibration for one layer.

    Attributes:
        name: of the layer.
        before, after: correlation of its activations with the ANN's, in [−1, 1]; None where either is constant. On a
            grid, root of the mean squared difference from the activations without: in windows, or in threshold heights
            of a readout.
        shift: mean change of the initial potential over channels, in threshold heights; 0 for a layer left alone.
    """

    name: str
    before: float | None
    after: float | None
    shift: float


@dataclass(frozen=True)
class Calibration:
    """Result of calibration for a network.

    Attributes:
        layers: hidden layers in their order; of a network on a grid its readout, too.
        images: how many decided.
        grid: that it was calibrated for; None of one that was calibrated against its ANN.
    """

    layers: tuple[LayerCalibration, ...]
    images: int
    grid: Grid | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = to_jsonable_python(self) | {"grid": None if self.grid is None else self.grid.to_dict()}
        return {key: value for key, value in values.items() if value is not None}

    def table(self) -> TerminalTable:
        """For a terminal."""

        def text(value: float | None) -> str:
            return "constant" if value is None else f"{value:.3f}" if self.grid is None else f"{value:.4f}"

        title, caption, found = f"Calibrated on {self.images} images", "", "correlation with the ANN"
        if self.grid is not None:
            title, found = f"{title} for {self.grid.text()}", "difference rounded"
            caption = "root mean square, in windows; of the readout in threshold heights"
        headers = ("layer", found, "calibrated", "mean change of initial potential")
        rows = [(each.name, text(each.before), text(each.after), f"{each.shift:+.3f}") for each in self.layers]
        return TerminalTable(title, headers, rows, caption=caption)


@torch.no_grad()
def calibrate_network(
    network: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 64,
    samples: int = 8192,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> Calibration:
    """Choose initial potentials that bring each layer closest to what its weights compute as an ANN, in place.

    The ANN is the network at psp_persistence σ = 0, where a neuron's activation is clamp(A, 0, 1). Layers follow one
    another: each sees what those before it, calibrated, make of the images.

    Args:
        network: what `network_graph` takes, with an ANN's weights and initial potentials, on the images' device, in any
            mode; an analog encoder and the readout are left alone.
        images: [N, ...], as the network reads them; 256 are enough. Activations of some layers for all of them are held
            in memory.
        batch_size: images that run at once.
        samples: outputs of a channel that decide, drawn among all positions of all images.
        seed: of that draw.
        progress: told each layer's name before it is calibrated.
    Returns:
        What it did to each hidden layer.
    Raises:
        NetworkError: as `network_graph`.
        ConversionError: a layer without initial potentials, a network on a grid, or no images.
    Example:
        >>> from ttfs_triton.nn import resnet20
        >>> found = calibrate_network(resnet20(width=0.25), torch.rand(4, 3, 32, 32))
        >>> len(found.layers)
        19
    """
    graph = network_graph(network, images.shape[1:])
    _check(graph, images)
    generator = torch.Generator().manual_seed(seed)

    def choose(stage: Stage, inputs: Tensor, skip: Tensor | None, wanted: Tensor) -> float:
        if not _spiking(stage):
            return 0.0
        progress(stage.name)
        return _choose_initial_potentials(stage, inputs, skip, wanted, batch_size, samples, generator)

    with evaluating(network):
        before = dict(_compare(graph, images, batch_size))
        after = _compare(graph, images, batch_size, choose)
    return Calibration(tuple(LayerCalibration(name, before[name][0], *found) for name, found in after), len(images))


def _check(graph: NetworkGraph, images: Tensor) -> None:
    for stage in graph.weighted[:-1]:
        if _spiking(stage) and stage.weighted.bias is None:
            raise ConversionError(
                f"calibrate: layers must have initial potentials; got bias=False in {stage.name}. "
                "Make the network, or convert, with bias=True."
            )
    if graph.grid is not None or len(images) == 0:
        got = "no images" if len(images) == 0 else f"a network on a grid, {graph.grid}"
        raise ConversionError(f"calibrate: must get a network without a grid, and at least one image; got {got}.")


def _compare(
    graph: NetworkGraph,
    images: Tensor,
    batch_size: int,
    choose: Callable[[Stage, Tensor, Tensor | None, Tensor], float] = lambda *_: 0.0,
) -> list[tuple[str, tuple[float | None, float]]]:
    """Run the network and its ANN side by side; `choose` calibrates each layer before it runs.

    Returns:
        Name, correlation of the two activations, and what `choose` returned, of each hidden layer.
    """
    found = []

    def fire_both(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        """Both networks' activations, those of the spiking one first."""
        (ours, theirs), (our_skip, their_skip) = inputs.chunk(2), (None, None) if skip is None else skip.chunk(2)
        wanted = by_batches(partial(_without_slope, stage), theirs, their_skip, batch_size)
        shift = choose(stage, ours, our_skip, wanted)
        spikes = by_batches(stage.activations, ours, our_skip, batch_size)
        if stage.kind not in ("latency", "readout"):
            found.append((stage.name, (correlation(spikes, wanted), shift)))
        return torch.cat([spikes, wanted])

    graph.run(torch.cat([images, images]), fire_both)
    return found


def by_batches(
    compute: Callable[[Tensor, Tensor | None], Tensor], inputs: Tensor, skip: Tensor | None, batch_size: int
) -> Tensor:
    """A function of a layer's inputs and its skip's, computed batch by batch."""
    return torch.cat([compute(x, delayed) for x, delayed in batches(inputs, skip, batch_size)])


def batches(inputs: Tensor, skip: Tensor | None, batch_size: int) -> list[tuple[Tensor, Tensor | None]]:
    """A layer's inputs, and its skip's, in batches."""
    parts = inputs.split(batch_size)
    return list(zip(parts, [None] * len(parts) if skip is None else skip.split(batch_size), strict=True))


def rows_of(activations: Tensor) -> Tensor:
    """[N, C, height, width] or [N, C] as [rows, C]."""
    return rearrange(activations, "n c h w -> (n h w) c") if activations.dim() == 4 else activations


def drawn_rows(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Numbers of a share of `count` rows, at least one, drawn on the CPU so that every device has the same."""
    return torch.randperm(count, generator=generator)[: max(1, round(share * count))]


def correlation(spiking: Tensor, analog: Tensor) -> float | None:
    """Pearson's coefficient of activations, in [−1, 1]; None where either side is constant."""
    pairs = torch.stack([spiking.flatten(), analog.flatten()]).double()
    count, (x, y), ((xx, xy), (_, yy)) = pairs.shape[1], pairs.sum(1).tolist(), (pairs @ pairs.T).tolist()
    covariance, spread = xy - x * y / count, (xx - x * x / count) * (yy - y * y / count)
    # Rounding leaves about 1e-16 of the squares where nothing varies.
    return covariance / spread**0.5 if spread > 1e-20 * xx * yy and xx * yy > 0 else None


def _spiking(stage: Stage) -> bool:
    return isinstance(stage.layer, DFTConv2d | DFTLinear)


def _without_slope(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
    """Activations of the layer at σ = 0. An analog encoder and the readout give what they always give."""
    if not _spiking(stage):
        return stage.activations(inputs, skip)
    return analog_potential(stage, inputs, skip).clamp(0, 1)


def analog_potential(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
    """A, with the initial potential: what the ANN hands to its activation function."""
    potential, bias = _potentials(stage, inputs, skip)[0], stage.weighted.bias
    return potential if bias is None else potential + bias.view(-1, *[1] * (potential.dim() - 2))


def _potentials(stage: Stage, inputs: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """A without the initial potential, and W without σ, of a layer's neurons."""
    layer = stage.weighted
    x = layer.normalise(inputs) if isinstance(layer, AnalogEncoder | SignedEncoder) else inputs
    contract = partial(F.linear, weight=layer.effective_weight())
    if isinstance(layer, WeightedConv2d):
        contract = partial(F.conv2d, weight=layer.effective_weight(), **layer.geometry)
    potential, slope = contract(x), contract((x > 0).to(x.dtype))
    delayed = layer.skip_weights()
    if skip is not None and delayed is not None:
        delayed = delayed.view(-1, *[1] * (skip.dim() - 2))
        potential, slope = potential + delayed * skip, slope + delayed * (skip > 0)
    return potential, slope


def _choose_initial_potentials(
    stage: Stage,
    inputs: Tensor,
    skip: Tensor | None,
    wanted: Tensor,
    batch_size: int,
    samples: int,
    generator: torch.Generator,
) -> float:
    """Give each channel the initial potential of least squared error from `wanted`; returns the mean change."""
    share, parts = min(1.0, samples / len(rows_of(wanted))), []
    for (x, delayed), target in zip(batches(inputs, skip, batch_size), wanted.split(batch_size), strict=True):
        potential, slope, rows = map(rows_of, (*_potentials(stage, x, delayed), target))
        kept = drawn_rows(len(rows), share, generator).to(rows.device)
        parts.append([each[kept].float() for each in (potential, slope, rows)])
    potential, slope, rows = (torch.cat(each) for each in zip(*parts, strict=True))
    bias, neuron = stage.weighted.bias, stage.neuron
    assert bias is not None
    assert neuron is not None
    slope *= neuron.psp_persistence

    def squared_error() -> Tensor:
        return (fire(potential + bias, slope)[0] - rows).square().mean(0)

    first = bias.clone()
    for reach in REACHES:
        choose_least(bias, squared_error, around(bias, reach, CANDIDATES))
    return (bias - first).mean().item()


def around(parameter: Tensor, reach: float, points: int) -> list[Tensor]:
    """Candidates from `reach` below to `reach` above the values of a parameter."""
    return [parameter.detach() + step for step in torch.linspace(-reach, reach, points).tolist()]


def choose_least(parameter: nn.Parameter, error: Callable[[], Tensor], candidates: Sequence[Tensor]) -> None:
    """Give each channel the candidate of least error, in place; a parameter of one number is chosen for all channels.

    Args:
        parameter: [C] or [1]; what it holds is the first candidate.
        error: [C], of what the parameter holds.
        candidates: of the parameter's shape.
    """
    best, least = parameter.detach().clone(), None
    for candidate in [best, *candidates]:
        parameter.copy_(candidate)
        found = error()
        if len(parameter) == 1:
            found = found.sum(0, keepdim=True)
        if least is None:
            least = found
            continue
        best, least = torch.where(found < least, candidate, best), torch.minimum(found, least)
    parameter.copy_(best)


@torch.no_grad()
def fit_range(
    network: nn.Module,
    images: Tensor,
    bounds: Sequence[float | None] | None = None,
    *,
    percentile: float = 99.9,
    batch_size: int = 64,
    samples: int = 65536,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Divide each channel's weights by its clip, multiply the weights that read the channel by it, in place.

    An ANN computes the same afterwards. Spikes say what lies below the clip, and saturate above.

    Args:
        network: what `network_graph` takes, spiking, with the weights and biases of an ANN.
        images: [N, ...], as the network reads them; 256 are enough.
        bounds: of the ANN's activations in each hidden layer: an upper bound, which is the clip, or None for a ReLU,
            whose clip is a percentile of what a channel's activations are on the images. Default: ReLUs.
        percentile: over positions and images, zeros included, in (0, 100].
        batch_size: images that run at once.
        samples: activations of a channel that decide, drawn among all.
        seed: of that draw.
    Returns:
        [C] clips by name of the hidden layer.
    Raises:
        ConversionError: percentile out of range, or no images.
    """
    if not 0 < percentile <= 100:
        raise ConversionError(f"fit_range: percentile must be in (0, 100]; got {percentile}.")
    if len(images) == 0:
        raise ConversionError("fit_range: images must hold at least one image; got none.")
    graph = network_graph(network, images.shape[1:])
    hidden = [stage.name for stage in graph.weighted[:-1]]
    upper = dict(zip(hidden, bounds or [None] * len(hidden), strict=True))
    generator, clips = torch.Generator().manual_seed(seed), {}

    def measure(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind in ("latency", "readout"):
            return stage.activations(inputs, skip)
        bound = upper[stage.name]
        activations = by_batches(partial(analog_potential, stage), inputs, skip, batch_size).clamp(0, bound)
        if bound is None:
            rows = rows_of(activations)
            kept = drawn_rows(len(rows), min(1.0, samples / len(rows)), generator).to(rows.device)
            clips[stage.name] = _reached(rows[kept], percentile / 100)
        else:
            clips[stage.name] = stage.weighted.weight.new_full((len(stage.weighted.weight),), bound)
        return activations

    graph.run(images, measure)
    _rescale(graph, clips)
    return clips


def _reached(rows: Tensor, quantile: float) -> Tensor:
    """[C], the quantile of activations [rows, C]; 1 for channels that are never active."""
    ordered = rows.sort(dim=0).values
    value = ordered[round(quantile * (len(ordered) - 1))]
    # A channel that is active in less than the percentile leaves out reaches its maximum.
    value = torch.where(value > 0, value, ordered[-1])
    return torch.where(value > 0, value, torch.ones_like(value))


def _rescale(graph: NetworkGraph, clips: Mapping[str, Tensor]) -> None:
    for stage in graph.weighted:
        layer, source = stage.weighted, stage.input.source or ""
        weight, groups = layer.weight.double(), getattr(layer, "groups", 1)
        per_output = [-1, *[1] * (weight.dim() - 1)]
        if source in clips:
            # A flattened map has its channels one after the other; each group reads its own.
            inputs = clips[source].double().repeat_interleave(groups * weight.shape[1] // len(clips[source]))
            weight = weight.unflatten(0, (groups, -1)) * inputs.view(groups, 1, -1, *per_output[2:])
            weight = weight.flatten(0, 1)
        if (clip := clips.get(stage.name)) is not None:
            weight = weight / clip.double().view(per_output)
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() / clip)
            if layer.skip_weight is not None and stage.skip is not None:
                before = clips.get(stage.skip.source or "", torch.ones_like(clip))
                layer.skip_weight.copy_(layer.skip_weight * before[: layer.skip] / clip[: layer.skip])
        layer.weight.copy_(weight)
