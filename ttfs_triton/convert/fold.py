"""Equal networks with fewer parts: normalisations and average pools become weights and initial potentials.

All of it is computed in float64 and is exact but for rounding, except for input normalisation at padded borders.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.convert.layouts import Layout, SourceLayer, skeleton, weighted_layers
from ttfs_triton.nn import NetworkConfig, standardise_weight
from ttfs_triton.nn.folding import BatchNorm
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer, WeightedLinear

BATCH_NORM, INPUT_NORMALISATION = "batch norm", "mean and std of the images"


@dataclass(frozen=True)
class FoldedLayer:
    """Weights and initial potentials of one layer.

    Attributes:
        name: "conv1", ..., "fc1", ..., "readout".
        weight: [C_out, ...], plain.
        bias: [C_out], or None.
        raw_weight, weight_gain: standardised weights and their gains where they are kept; else `weight` and None.
        skip_weight: of delayed spikes, one a channel that they come from; None without. They arrive behind a batch
            norm, which leaves them as they are.
        folded: what was folded in, in words.
        drawn: whether the layer was drawn anew.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    raw_weight: Tensor
    weight_gain: Tensor | None
    skip_weight: Tensor | None = None
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
    pool = layout.pool
    for source, (name, shape) in zip(layout.layers, weighted_layers(skeleton(layout.config)), strict=True):
        if name == "readout" and head is not None:
            layers.append(_draw(*head, shape.weight[0].numel(), keep_standardisation, source.bias is not None))
            continue
        layer = _fold(source, tensors, keep_standardisation, epsilon)
        weight, bias, folded = layer.weight, layer.bias, list(layer.folded)
        if not isinstance(shape, WeightedConv2d):
            weight = weight.flatten(1)
            if pool is not None:
                weight, pool = fold_average_pool(weight, *pool), None
                folded.append("average pool")
        if not layers and statistics is not None:
            weight, bias = fold_input_normalisation(weight, bias, *statistics)
            folded.append(INPUT_NORMALISATION)
        raw = weight if layer.weight_gain is None else layer.raw_weight
        layers.append(dataclasses.replace(layer, weight=weight, bias=bias, raw_weight=raw, folded=tuple(folded)))
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
        norm = batch_norm_of(tensors, source.batch_norm, epsilon)
        # The gain takes the scale as well as the weight would: it multiplies standardised weights.
        gain = None if gain is None else gain.double() * norm.scale()
        weight, bias = norm.fold(weight, bias)
        folded.append(BATCH_NORM)
    skip = None if source.skip_weight is None else tensors[source.skip_weight]
    return FoldedLayer(source.name, weight, bias, raw, gain if keep_standardisation else None, skip, tuple(folded))


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


def batch_norm_of(tensors: Mapping[str, Tensor], prefix: str, epsilon: float) -> BatchNorm:
    """Batch norm whose tensors are named `prefix.weight`, `prefix.running_mean` and so on.

    Raises:
        ConversionError: negative variances, or an epsilon that is not positive.
    """
    mean, var = tensors[f"{prefix}.running_mean"], tensors[f"{prefix}.running_var"]
    if not epsilon > 0:
        raise ConversionError(f"convert: batch_norm_epsilon must be positive; got {epsilon}.")
    if float(var.min()) < 0:
        raise ConversionError(f"convert: {prefix}.running_var must not be negative; got {float(var.min()):.6g}.")
    return BatchNorm(mean, var, tensors.get(f"{prefix}.weight"), tensors.get(f"{prefix}.bias"), epsilon)


def fold_input_normalisation(
    weight: Tensor, bias: Tensor | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Weight and initial potential of the first convolution that reads pixels instead of (pixel − mean) / std.

    Exact only without padding. Padding is 0 behind the normalisation, which is the mean image; in front of it, it is a
    black one. `AnalogEncoder` therefore normalises itself.

    Args:
        weight: [C_out, C_in, height, width].
        bias: [C_out], or None.
        mean, std: C_in values.
    Returns:
        (weight, bias), shapes as above, float64.
    """
    divisor = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    folded = weight.double() / divisor
    shift = (folded * torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)).sum((1, 2, 3))
    return folded, -shift if bias is None else bias.double() - shift


def fold_average_pool(weight: Tensor, side: int, maps: tuple[int, int]) -> Tensor:
    """Weights that read maps themselves, from weights that read their adaptive average pool.

    Maps smaller than the pool's output are replicated by it, so that weights add up: a 7×7 head on 1×1 maps becomes the
    sum over its 49 places.

    Args:
        weight: [features, channels·side·side].
        side: height and width of the pool's output.
        maps: height and width of its input.
    Returns:
        [features, channels·height·width], float64.
    """
    places = maps[0] * maps[1]
    basis = torch.eye(places, dtype=torch.float64).view(places, 1, *maps)
    pool = F.adaptive_avg_pool2d(basis, side).view(places, side * side)
    return (weight.double().view(weight.shape[0], -1, side * side) @ pool.T).flatten(1)


class FoldedANN(nn.Module):
    """An artificial network of plain PyTorch layers that computes what the source of a conversion computes.

    Input [N, in_channels, height, width] images as `config` says (pixels in [0, 1]), output [N, classes] logits.

    Args:
        config: specification, encoder, mean, std and sizes; what it says of neurons is not used.
        tensors: "conv1.weight", "conv1.bias", ..., "readout.bias": every layer's, weights spread over what it averages;
            "conv3.skip_weight" [skip] of one with a skip; nothing else.
        bound: upper bound of hidden activations, 1 for a clamped ReLU; None for a plain one.
    Attributes:
        layers: `nn.ModuleDict` in the order of computation: `nn.Conv2d` and `nn.Linear` by the names of `TTFSNetwork`
            ("conv1", ..., "fc1", ..., "readout"), all with bias, those with a skip with a `skip_weight`.
    Raises:
        ValueError: tensors are missing, superfluous or of another shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig, tensors: Mapping[str, Tensor], bound: float | None = 1.0) -> None:
        super().__init__()
        self.config, self.bound = config, bound
        self._graph = network_graph(skeleton(config))
        self.layers = nn.ModuleDict({stage.name: _plain(stage.weighted) for stage in self._graph.weighted})
        try:
            self.layers.load_state_dict(dict(tensors), assign=True)
        except RuntimeError as error:
            raise ValueError(f"FoldedANN: tensors must be those of {config.specification}; {error}") from error
        self.requires_grad_(False)
        dtype = next(self.layers.parameters()).dtype
        for name, values, default in (("mean", config.mean, 0.0), ("std", config.std, config.max_value)):
            buffer = torch.tensor([default] * config.in_channels if values is None else values)
            self.register_buffer(name, buffer.view(-1, 1, 1).to(dtype), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self._graph.run(images, self.activate)

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """Activations of every hidden layer by name, [N, channels, height, width] or [N, features], before pooling."""
        found: dict[str, Tensor] = {}

        def keep(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
            found[stage.name] = activations = self.activate(stage, inputs, skip)
            return activations

        self._graph.run(images, keep)
        return {name: found[name] for name in self.layers if name != "readout"}

    def activate(self, stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        """What the neurons of a layer make of its inputs, and of its skip's, as `NetworkGraph.run` hands them over.

        Args:
            stage: of this network's graph, or of a spiking network's with the same layers.
            inputs: of the first one images, which are normalised, for a latency encoder clamped to [0, 1].
            skip: [N, channels, ...], one a neuron; or None.
        Returns:
            [N, ...] activations, the readout's logits.
        """
        x = (inputs - self.mean) / self.std if stage.input.source is None else inputs
        if stage.kind == "latency":
            return x.clamp(0, 1)
        layer = self.layers[stage.name]
        x = layer(x)
        if skip is not None:
            v = layer.get_parameter("skip_weight")
            v = F.pad(v, (0, skip.shape[1] - len(v)))  # new channels hear nothing
            x = x + v.view(-1, *[1] * (skip.dim() - 2)) * skip
        return x if stage.kind == "readout" else x.clamp(0, self.bound)


def _plain(layer: WeightedLayer) -> nn.Module:
    """The PyTorch layer of the same shape, without memory for its weights yet."""
    if isinstance(layer, WeightedConv2d):
        plain = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, device="meta"
        )
    else:
        assert isinstance(layer, WeightedLinear)
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
    if layer.skip:
        plain.register_parameter("skip_weight", nn.Parameter(torch.empty(layer.skip, device="meta")))
    return plain
