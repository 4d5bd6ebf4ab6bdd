"""Scale an ANN so that its activations fit into [0, 1], the range of spike times.

Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold balancing", 2015, by
channel and with a percentile in place of the maximum as Rueckauer et al., "Conversion of continuous-valued deep
networks to efficient event-driven networks for image classification", 2017.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ttfs_triton.convert.calibration import analog_potential, by_batches, drawn_rows, rows_of
from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.nn.graph import NetworkGraph, Stage
from ttfs_triton.nn.trace import network_graph


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
