"""Calibrate a spiking network against an ANN: initial potentials, layer by layer, by least squares on some images.

With psp_persistence σ > 0 a copied neuron fires by (A + σW)/(1 + σW) where the ANN has clamp(A, 0, 1). The slope W, the
sum of the weights of all active inputs, is far from 0 in a trained ANN: neurons that the ANN has silent rise into the
threshold, or active ones never meet it, and every layer adds to it. Another initial potential makes up for the mean of
that. It is one number a channel and leaves the weights as they are. A delayed spike adds v·x to the potential and σ·v
to its slope, and is made up for in the same way.

`bench/conversion.py` compares this with a gain a channel, centred weights, and fitting all weights of a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic_core import to_jsonable_python
from torch import Tensor

from ttfs_kernels.rule import fire
from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.convert.conversion import Converted
from ttfs_triton.convert.fit_range import fit_range, rows_of
from ttfs_triton.convert.fold import FoldedANN
from ttfs_triton.nn import DFTConv2d, DFTLinear, SignedEncoder, TTFSNetwork
from ttfs_triton.nn.graph import NetworkGraph, Stage
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.terminal import TerminalTable

# Grids of 17 initial potentials, each eight times finer than the one before. The first reaches two threshold heights
# up and down, the last resolves 1/256 of one.
REACH, CANDIDATES, REFINEMENTS = 2.0, 17, 3

Reference = Callable[[Stage, Tensor, Tensor | None], Tensor]
"""Activations of the ANN's layer for a stage, from its inputs and its skip's, as `NetworkGraph.run` hands them over."""


@dataclass(frozen=True)
class LayerCalibration:
    """What calibration did to a layer.

    Attributes:
        name: of the layer.
        before, after: correlation of its activations with the ANN's, in [−1, 1]; None where either is constant.
        shift: mean change of the initial potential over channels, in threshold heights; 0 for a layer left alone.
    """

    name: str
    before: float | None
    after: float | None
    shift: float


@dataclass(frozen=True)
class Calibration:
    """What calibration did to a network.

    Attributes:
        layers: hidden layers in their order.
        images: how many decided.
    """

    layers: tuple[LayerCalibration, ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return to_jsonable_python(self)

    def table(self) -> TerminalTable:
        """For a terminal."""

        def text(correlation: float | None) -> str:
            return "constant" if correlation is None else f"{correlation:.3f}"

        headers = ("layer", "correlation with the ANN", "calibrated", "mean change of initial potential")
        rows = [(each.name, text(each.before), text(each.after), f"{each.shift:+.3f}") for each in self.layers]
        return TerminalTable(f"Calibrated on {self.images} images", headers, rows)


def calibrate_converted(
    converted: Converted,
    images: Tensor,
    *,
    percentile: float = 99.9,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[Converted, Calibration]:
    """`fit_range`, then `calibrate`, on the images' device: all that brings a converted network to its source.

    Args:
        converted: as `convert` gave, on the CPU; its network is changed in place.
        images: see `calibrate`, on the device to compute on.
        percentile: see `fit_range`.
        progress: see `calibrate`.
    Returns:
        The networks, on the CPU again, and what calibration did.
    Raises:
        ConversionError: as `fit_range` and `calibrate`.
    """
    converted.network.to(images.device)
    converted.ann.to(images.device)
    converted = fit_range(converted, images, percentile=percentile)
    calibration = calibrate(converted.network, converted.ann, images, progress=progress)
    converted.network.cpu()
    converted.ann.cpu()
    return converted, calibration


@torch.no_grad()
def calibrate(
    network: TTFSNetwork,
    ann: FoldedANN,
    images: Tensor,
    *,
    batch_size: int = 64,
    samples: int = 8192,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> Calibration:
    """Choose initial potentials that bring each layer's activations closest to the ANN's (least squares), in place.

    Layers follow one another: each sees what those before it, calibrated, make of the images. An analog encoder and the
    readout are left alone. Both networks' activations of a layer and of the next are held in memory.

    Args:
        network: spiking network with the weights of `ann`, in any mode; its initial potentials are changed in place.
        ann: reference, with activations clamped to [0, 1].
        images: [N, in_channels, height, width], as the networks read them; 256 are enough.
        batch_size: images that run at once.
        samples: outputs of a channel that decide, drawn among all positions of all images.
        seed: of that draw.
        progress: told each layer's name before it is calibrated.
    Returns:
        What it did to each hidden layer.
    Raises:
        ConversionError: activations of the ANN are not clamped; the network has no initial potentials, or other layers
            than the ANN; there are no images.
    """
    if ann.bound != 1:
        raise ConversionError(
            f"calibrate: ann must have activations clamped to [0, 1]; got an upper bound of {ann.bound}. "
            "Use fit_range first."
        )
    if network.config.specification != ann.config.specification:
        raise ConversionError(
            f"calibrate: ann must have the layers of the network, {network.config.specification}; got "
            f"{ann.config.specification}."
        )
    graph, generator = network_graph(network), torch.Generator().manual_seed(seed)
    _check(graph, images)

    def choose(stage: Stage, inputs: Tensor, skip: Tensor | None, wanted: Tensor) -> float:
        if not _spiking(stage):
            return 0.0
        progress(stage.name)
        return choose_initial_potentials(stage, inputs, skip, wanted, batch_size, samples, generator)

    training = network.training
    network.eval()
    before = dict(_compare(graph, images, ann.activate, batch_size))
    after = _compare(graph, images, ann.activate, batch_size, choose)
    network.train(training)
    return Calibration(tuple(LayerCalibration(name, before[name][0], *found) for name, found in after), len(images))


@torch.no_grad()
def layer_correlations(
    network: TTFSNetwork, ann: FoldedANN, images: Tensor, batch_size: int = 64
) -> dict[str, float | None]:
    """Correlation of each hidden layer's activations with the ANN's, over all neurons and images, before pooling.

    Args:
        network: in the mode, training or evaluation, that is meant.
        ann: with the same layers.
        images: [N, in_channels, height, width], as the networks read them.
        batch_size: images that run at once.
    Returns:
        Pearson's coefficient by name of the layer, in [−1, 1]; None where either side is constant.
    """
    return {name: found for name, (found, _) in _compare(network_graph(network), images, ann.activate, batch_size)}


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
    reference: Reference,
    batch_size: int,
    choose: Callable[[Stage, Tensor, Tensor | None, Tensor], float] = lambda *_: 0.0,
) -> list[tuple[str, tuple[float | None, float]]]:
    """Run both networks side by side, each layer behind what those before it emit.

    Args:
        graph: of the spiking network.
        images: [N, *image_shape].
        reference: the ANN.
        batch_size: images that run at once.
        choose: gets a stage, its inputs, its skip's and the ANN's activations; calibrates it before it runs.
    Returns:
        Name, correlation of the two activations, and what `choose` returned, of each hidden layer.
    """
    found = []

    def fire_both(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        """Both networks' activations, those of the spiking one first."""
        (ours, theirs), (our_skip, their_skip) = inputs.chunk(2), (None, None) if skip is None else skip.chunk(2)
        wanted = _by_batches(partial(reference, stage), theirs, their_skip, batch_size)
        shift = choose(stage, ours, our_skip, wanted)
        spikes = _by_batches(stage.activations, ours, our_skip, batch_size)
        if stage.kind not in ("latency", "readout"):
            found.append((stage.name, (correlation(spikes, wanted), shift)))
        return torch.cat([spikes, wanted])

    graph.run(torch.cat([images, images]), fire_both)
    return found


def _by_batches(
    compute: Callable[[Tensor, Tensor | None], Tensor], inputs: Tensor, skip: Tensor | None, batch_size: int
) -> Tensor:
    return torch.cat([compute(x, delayed) for x, delayed in batches(inputs, skip, batch_size)])


def batches(inputs: Tensor, skip: Tensor | None, batch_size: int) -> list[tuple[Tensor, Tensor | None]]:
    """A layer's inputs, and its skip's, in batches."""
    parts = inputs.split(batch_size)
    return list(zip(parts, [None] * len(parts) if skip is None else skip.split(batch_size), strict=True))


def correlation(spiking: Tensor, analog: Tensor) -> float | None:
    """Pearson's coefficient of activations, in [−1, 1]; None where either side is constant."""
    pairs = torch.stack([spiking.flatten(), analog.flatten()]).double()
    count, (x, y), ((xx, xy), (_, yy)) = pairs.shape[1], pairs.sum(1).tolist(), (pairs @ pairs.T).tolist()
    covariance, spread = xy - x * y / count, (xx - x * x / count) * (yy - y * y / count)
    # Rounding leaves about 1e-16 of the squares where nothing varies.
    return covariance / spread**0.5 if spread > 1e-20 * xx * yy and xx * yy > 0 else None


def _spiking(stage: Stage) -> bool:
    return isinstance(stage.layer, DFTConv2d | DFTLinear)


def _potentials(stage: Stage, inputs: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """A without the initial potential, and σW, of a layer's neurons."""
    layer = stage.layer
    assert isinstance(layer, DFTConv2d | DFTLinear)
    x, weight = layer.normalise(inputs) if isinstance(layer, SignedEncoder) else inputs, layer.effective_weight()
    contract = partial(F.linear, weight=weight)
    if isinstance(layer, DFTConv2d):
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        contract = lambda x: F.conv2d(x, weight, None, *options)  # noqa: E731
    potential, slope = contract(x), contract((x > 0).to(x.dtype))
    delayed = layer.skip_weights()
    if skip is not None and delayed is not None:
        delayed = delayed.view(-1, *[1] * (skip.dim() - 2))
        potential, slope = potential + delayed * skip, slope + delayed * (skip > 0)
    return potential, layer.neuron.psp_persistence * slope


def choose_initial_potentials(
    stage: Stage,
    inputs: Tensor,
    skip: Tensor | None,
    wanted: Tensor,
    batch_size: int,
    samples: int,
    generator: torch.Generator,
) -> float:
    """Give each channel the initial potential of least squared error, in place.

    Args:
        stage: of spiking neurons.
        inputs, skip: as `NetworkGraph.run` hands them over.
        wanted: activations of the ANN.
        batch_size, samples, generator: see `calibrate`.
    Returns:
        The mean change, in threshold heights.
    """
    share, parts = min(1.0, samples / len(rows_of(wanted))), []
    for (x, delayed), target in zip(batches(inputs, skip, batch_size), wanted.split(batch_size), strict=True):
        potential, slope, rows = map(rows_of, (*_potentials(stage, x, delayed), target))
        kept = torch.randperm(len(rows), generator=generator)[: max(1, round(share * len(rows)))].to(rows.device)
        parts.append([each[kept].float() for each in (potential, slope, rows)])
    potential, slope, rows = (torch.cat(each) for each in zip(*parts, strict=True))

    def squared_error(initial: Tensor) -> Tensor:
        return (fire(potential + initial, slope)[0] - rows).square().mean(0)

    bias = stage.weighted.bias
    assert bias is not None
    first = bias.float().clone()
    best, error, reach = first, squared_error(first), REACH
    for _ in range(REFINEMENTS):
        centre = best
        for step in torch.linspace(-reach, reach, CANDIDATES).tolist():
            candidate = centre + step
            its_error = squared_error(candidate)
            best, error = torch.where(its_error < error, candidate, best), torch.minimum(error, its_error)
        reach *= 2 / (CANDIDATES - 1)
    bias.copy_(best)
    return (best - first).mean().item()
