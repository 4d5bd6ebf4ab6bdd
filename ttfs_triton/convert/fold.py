"""Equal networks with fewer parts: normalisations and average pools become weights and initial potentials.

All of it is computed in float64 and is exact but for rounding, except for input normalisation at padded borders.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_triton.convert.clean import ConversionError
from ttfs_triton.convert.layouts import Layout, SourceLayer, skeleton, weighted_layers
from ttfs_triton.nn import EarliestSpikePool2d, LatencyEncoder, NetworkConfig, standardise_weight
from ttfs_triton.nn.folding import BatchNorm
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLinear


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
        norm = batch_norm_of(tensors, source.batch_norm, epsilon)
        # The gain takes the scale as well as the weight would: it multiplies standardised weights.
        gain = None if gain is None else gain.double() * norm.scale()
        weight, bias = norm.fold(weight, bias)
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
        tensors: "conv1.weight", "conv1.bias", ..., "readout.bias": every layer's, nothing else.
        bound: upper bound of hidden activations, 1 for a clamped ReLU; None for a plain one.
    Attributes:
        layers: `nn.ModuleDict` in the order of computation: `nn.Conv2d` and `nn.Linear` by the names of `TTFSNetwork`
            ("conv1", ..., "fc1", ..., "readout"), all with bias, and what lies between them ("pool1", "flatten").
    Raises:
        ValueError: tensors are missing, superfluous or of another shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig, tensors: Mapping[str, Tensor], bound: float | None = 1.0) -> None:
        super().__init__()
        self.config, self.bound = config, bound
        network = skeleton(config)
        self.layers = nn.ModuleDict()
        for name, layer in [*network.features.named_children(), ("readout", network.readout)]:
            if not isinstance(layer, LatencyEncoder):
                self.layers[name] = _plain(layer)
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
        return self._run(images, {})

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """Activations of every hidden layer by name, [N, channels, height, width] or [N, features], before pooling."""
        found: dict[str, Tensor] = {}
        self._run(images, found)
        return found

    def encode(self, images: Tensor) -> Tensor:
        """What the first layer reads: normalised images, clamped to [0, 1] for a latency encoder."""
        x = (images - self.mean) / self.std
        return x.clamp(0, 1) if self.config.encoder == "latency" else x

    def run_layer(self, name: str, x: Tensor) -> Tensor:
        """One of `layers` and what its neurons make of it: [N, ...] activations, logits behind the readout."""
        layer = self.layers[name]
        x = layer(x)
        hidden = isinstance(layer, nn.Conv2d | nn.Linear) and name != "readout"
        return x.clamp(0, self.bound) if hidden else x

    def _run(self, images: Tensor, hidden: dict[str, Tensor]) -> Tensor:
        x = self.encode(images)
        for name, layer in self.layers.items():
            x = self.run_layer(name, x)
            if isinstance(layer, nn.Conv2d | nn.Linear) and name != "readout":
                hidden[name] = x
        return x


def _plain(layer: nn.Module) -> nn.Module:
    """The PyTorch layer of the same shape, without memory for its weights yet."""
    if isinstance(layer, WeightedConv2d):
        return nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, device="meta"
        )
    if isinstance(layer, WeightedLinear):
        return nn.Linear(layer.in_features, layer.out_features, device="meta")
    if isinstance(layer, EarliestSpikePool2d):
        return nn.MaxPool2d(layer.kernel_size, layer.stride)
    assert isinstance(layer, nn.Flatten)
    return nn.Flatten()
