"""Every layer of a source with all that belongs to it folded, in the shapes of a network of ours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ttfs_triton.convert.fold import (
    BatchNorm,
    fold_average_pool,
    fold_batch_norm,
    fold_input_normalisation,
)
from ttfs_triton.convert.layouts import Layout, SourceLayer, skeleton, weighted_layers
from ttfs_triton.nn import standardise_weight
from ttfs_triton.nn.weighted import WeightedConv2d


@dataclass(frozen=True)
class FoldedLayer:
    """Weights and initial potentials of one layer.

    Attributes:
        name: "conv1", ..., "fc1", ..., "readout".
        weight: [C_out, ...], plain.
        bias: [C_out], or None.
        raw_weight, weight_gain: standardised weights and their gains where they are kept; else `weight` and None.
        folded: what was folded in, in words.
        drawn: whether the layer was drawn anew.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    raw_weight: Tensor
    weight_gain: Tensor | None
    folded: tuple[str, ...] = ()
    drawn: bool = False


def fold_layers(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    *,
    keep_standardisation: bool,
    epsilon: float,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
    head: tuple[int, float, int] | None,
) -> list[FoldedLayer]:
    """Fold a recognised network, layer by layer.

    Args:
        layout: checked.
        tensors: of the source.
        keep_standardisation: keep gains beside the plain weights.
        epsilon: of batch norms.
        statistics: mean and std to fold into the first layer, or None.
        head: classes, initial gain and seed of a new readout, or None for the source's.
    """
    layers: list[FoldedLayer] = []
    maps_seen = False
    shapes = list(weighted_layers(skeleton(layout.config)))
    for source, (name, shape) in zip(layout.layers, shapes, strict=True):
        convolution = isinstance(shape, WeightedConv2d)
        first_dense = not convolution and maps_seen
        maps_seen = convolution
        if name == "readout" and head is not None:
            layers.append(_draw(*head, shape.weight[0].numel(), keep_standardisation, source.bias is not None))
            continue
        layer = _fold(source, tensors, keep_standardisation, epsilon)
        weight, bias, folded = layer.weight, layer.bias, list(layer.folded)
        if not convolution:
            weight = weight.flatten(1)
        if first_dense and layout.pool is not None:
            weight = fold_average_pool(weight, layout.pool.side, layout.pool.maps)
            folded.append("average pool")
        if not layers and statistics is not None:
            weight, bias = fold_input_normalisation(weight, bias, *statistics)
            folded.append("mean and std of the images")
        kept = layer.weight_gain is not None
        raw = layer.raw_weight if kept else weight
        layers.append(FoldedLayer(name, weight, bias, raw, layer.weight_gain, tuple(folded)))
    return layers


def _fold(
    source: SourceLayer, tensors: Mapping[str, Tensor], keep_standardisation: bool, epsilon: float
) -> FoldedLayer:
    """One layer with its gains and its batch norm folded."""
    raw = weight = tensors[source.weight]
    bias = None if source.bias is None else tensors[source.bias]
    gain = None if source.weight_gain is None else tensors[source.weight_gain]
    folded = []
    if gain is not None:
        weight = standardise_weight(raw.double(), gain.double())
        folded += [] if keep_standardisation else ["weight standardisation"]
    if source.batch_norm is not None:
        norm = BatchNorm.of(tensors, source.batch_norm, epsilon)
        # The gain takes the scale as well as the weight would: it multiplies standardised weights.
        gain = None if gain is None else gain.double() * norm.scale()
        weight, bias = fold_batch_norm(weight, bias, norm)
        folded.append("batch norm")
    return FoldedLayer(source.name, weight, bias, raw, gain if keep_standardisation else None, tuple(folded))


def _draw(
    classes: int, initial_gain: float, seed: int, in_features: int, standardised: bool, bias: bool
) -> FoldedLayer:
    """A new readout, Kaiming-normal times the gain, as `WeightedLayer.reset_parameters` draws it."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, in_features, generator=generator) * (initial_gain * math.sqrt(2 / in_features))
    zeros = torch.zeros(classes) if bias else None
    if not standardised:
        return FoldedLayer("readout", weight, zeros, weight, None, drawn=True)
    gain = torch.full((classes,), initial_gain * math.sqrt(2))
    return FoldedLayer("readout", standardise_weight(weight, gain), zeros, weight, gain, drawn=True)
