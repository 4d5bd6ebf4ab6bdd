"""Calibrate any spiking network of our layers against the ANN that its own weights are: skips, averages, any modules.

The ANN is the network at psp_persistence σ = 0, where a neuron's activation is clamp(A, 0, 1). As in `calibrate`, each
layer gets the initial potentials that bring it closest to that, seeing what the layers before it, calibrated, hand on.
A delayed spike adds v·x to the potential and σ·v to its slope, so that at σ > 0 it alone would fire at
(v·x + σv + b)/(1 + σv): its part of the slope is made up for like that of the other inputs.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.convert.calibration import (
    Calibration,
    LayerCalibration,
    correlation,
    search_initial_potentials,
)
from ttfs_triton.convert.clean import ConversionError
from ttfs_triton.convert.encoder_margin import MARGIN_IMAGES, choose_margin, reader_of_encoder
from ttfs_triton.convert.fit_range import rows_of
from ttfs_triton.nn import DFTConv2d, DFTLinear, SignedEncoder
from ttfs_triton.nn.graph import NetworkGraph, Stage
from ttfs_triton.nn.trace import network_graph


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

    Args:
        network: what `network_graph` takes, with an ANN's weights and initial potentials, on the images' device, in any
            mode; the readout is left alone, an analog encoder only gets a margin.
        images: [N, ...], as the network reads them; 256 are enough. Activations of some layers for all of them are held
            in memory.
        batch_size: images whose potentials are computed at once.
        samples: outputs of a channel that decide, drawn among all positions of all images.
        seed: of that draw.
        progress: told each layer's name before it is calibrated.
    Returns:
        What it did to each hidden layer.
    Raises:
        NetworkError: as `network_graph`, or an ANN layer.
        ConversionError: a layer without initial potentials, a network on a grid, or no images.
    Example:
        >>> from ttfs_triton.nn import resnet20
        >>> found = calibrate_network(resnet20(width=0.25), torch.rand(4, 3, 32, 32))
        >>> len(found.layers)
        19
    """
    graph = network_graph(network, images.shape[1:])
    graph.require_spiking()
    for stage in graph.weighted[:-1]:
        if _spiking(stage) and stage.weighted.bias is None:
            raise ConversionError(
                f"calibrate_network: layers must have initial potentials; got bias=False in {stage.name}. "
                "Make it with bias=True."
            )
    if graph.grid is not None or len(images) == 0:
        got = "no images" if len(images) == 0 else f"a network on a grid, {graph.grid}"
        raise ConversionError(f"calibrate_network: must get a network without a grid, and images; got {got}.")

    return calibrate_layers(
        network,
        graph,
        images,
        _without_slope,
        batch_size=batch_size,
        samples=samples,
        seed=seed,
        progress=progress,
    )


@torch.no_grad()
def calibrate_layers(
    network: nn.Module,
    graph: NetworkGraph,
    images: Tensor,
    reference: Callable[[Stage, Tensor, Tensor | None], Tensor],
    *,
    batch_size: int,
    samples: int,
    seed: int,
    progress: Callable[[str], None],
) -> Calibration:
    """Calibrate each layer, in the order in which they fire, against an ANN of the same graph, in place.

    Args:
        network, images, batch_size, samples, seed, progress: as in `calibrate_network`, checked.
        graph: of the network.
        reference: activations of the ANN's layer for a stage, from its inputs and its skip's, as `NetworkGraph.run`
            hands them over. It is asked before the stage is calibrated.
    Returns:
        What it did to each hidden layer.
    """

    reader = reader_of_encoder(graph)

    def margin(reader: Stage, pixels: Tensor, analog: Tensor) -> float:
        """The encoder's, chosen by its reader on a few images; `analog` is what the ANN's encoder makes of them."""
        target = _by_batches(partial(reference, reader), (reader.input.deliver(analog), None), batch_size)

        def reader_correlation() -> float | None:
            spikes = reader.input.deliver(_by_batches(graph.encoder.activations, (pixels, None), batch_size))
            _choose(reader, spikes, None, target, batch_size, samples, torch.Generator().manual_seed(seed))
            return correlation(_by_batches(reader.activations, (spikes, None), batch_size), target)

        return choose_margin(graph.encoder, reader, reader_correlation)

    def run(choose: bool) -> dict[str, tuple[float | None, float]]:
        generator = torch.Generator().manual_seed(seed)
        found: dict[str, tuple[float | None, float]] = {}

        def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
            """Both networks' activations, those of the spiking one first."""
            (ours, theirs), (our_skip, their_skip) = inputs.chunk(2), (None, None) if skip is None else skip.chunk(2)
            wanted = _by_batches(partial(reference, stage), (theirs, their_skip), batch_size)
            shift = 0.0
            if choose and stage is graph.encoder and reader is not None:
                progress(stage.name)
                shift = -margin(reader, ours[:MARGIN_IMAGES], wanted[:MARGIN_IMAGES])
            if choose and _spiking(stage):
                progress(stage.name)
                shift = _choose(stage, ours, our_skip, wanted, batch_size, samples, generator)
            spikes = _by_batches(stage.activations, (ours, our_skip), batch_size)
            if stage.kind not in ("latency", "readout"):
                found[stage.name] = (correlation(spikes, wanted), shift)
            return torch.cat([spikes, wanted])

        graph.run(torch.cat([images, images]), fire)
        return found

    training = network.training
    network.eval()
    before = run(choose=False)
    after = run(choose=True)
    network.train(training)
    layers = (LayerCalibration(name, before[name][0], *after[name]) for name in before)
    return Calibration(tuple(layers), len(images))


def _spiking(stage: Stage) -> bool:
    return isinstance(stage.layer, DFTConv2d | DFTLinear)


def _without_slope(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
    """Activations of the same layer at σ = 0; those of an analog encoder, and the readout's logits, as they are."""
    if not _spiking(stage):
        return stage.activations(inputs, skip)
    potential, bias = _potentials(stage, inputs, skip)[0], stage.weighted.bias
    assert bias is not None
    return (potential + bias.view(-1, *[1] * (potential.dim() - 2))).clamp(0, 1)


def _potentials(stage: Stage, inputs: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """A without the initial potential, and σW, of a layer's neurons."""
    layer = stage.layer
    assert isinstance(layer, DFTConv2d | DFTLinear)
    x = layer.normalise(inputs) if isinstance(layer, SignedEncoder) else inputs
    contract = _contraction(layer)
    potential, slope = contract(x), contract((x > 0).to(x.dtype))
    delayed = layer.skip_weights()
    if skip is not None and delayed is not None:
        delayed = delayed.view(-1, *[1] * (skip.dim() - 2))
        potential, slope = potential + delayed * skip, slope + delayed * (skip > 0)
    return potential, layer.neuron.psp_persistence * slope


def _contraction(layer: DFTConv2d | DFTLinear) -> Callable[[Tensor], Tensor]:
    """Σ w·x over the synapses of a layer, without initial potentials."""
    weight = layer.effective_weight()
    if isinstance(layer, DFTLinear):
        return lambda x: F.linear(x, weight)
    return lambda x: F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _choose(
    stage: Stage,
    inputs: Tensor,
    skip: Tensor | None,
    wanted: Tensor,
    batch_size: int,
    samples: int,
    generator: torch.Generator,
) -> float:
    """Search every channel's initial potential at once; returns the mean change."""
    share, parts = min(1.0, samples / len(rows_of(wanted))), []
    skips = [None] * len(inputs.split(batch_size)) if skip is None else skip.split(batch_size)
    for x, delayed, target in zip(inputs.split(batch_size), skips, wanted.split(batch_size), strict=True):
        potential, slope, rows = map(rows_of, (*_potentials(stage, x, delayed), target))
        kept = torch.randperm(len(rows), generator=generator)[: max(1, round(share * len(rows)))].to(rows.device)
        parts.append([each[kept].float() for each in (potential, slope, rows)])
    bias = stage.weighted.bias
    assert bias is not None
    return search_initial_potentials(bias, *(torch.cat(each) for each in zip(*parts, strict=True)))


def _by_batches(
    compute: Callable[[Tensor, Tensor | None], Tensor], inputs: tuple[Tensor, Tensor | None], batch_size: int
) -> Tensor:
    images, skip = inputs
    places = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    return torch.cat([compute(images[place], None if skip is None else skip[place]) for place in places])
