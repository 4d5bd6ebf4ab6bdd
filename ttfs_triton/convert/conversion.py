"""From trained weights to a spiking network, and to the artificial network that it is compared with.

With σ = 0 and a source whose activations are clamped to [0, 1], the two compute the same. With the slope
of the membrane potential persisting (σ above 0), or with activations above 1, the copied weights are a
start only: calibrate or train them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ttfs_triton.convert.checkpoint import ConversionError
from ttfs_triton.convert.fold import FoldedANN, FoldedLayer, fold_layers
from ttfs_triton.convert.foreign import foreign_layout
from ttfs_triton.convert.layouts import (
    Layout,
    Statistics,
    TrainedAs,
    check_tensors,
    is_own,
    own_layout,
    skeleton,
    weighted_layers,
)
from ttfs_triton.convert.report import ConversionReport, make_report
from ttfs_triton.convert.source import Weights, open_weights
from ttfs_triton.nn import NetworkConfig, TTFSNetwork, parse_specification
from ttfs_triton.nn.specification import Convolution

# Fields of the network's configuration that the weights leave open; all others are the source's.
FREE = frozenset("encoder max_value mean std readout neuron bias initial_gain dropout".split())


@dataclass(frozen=True)
class Converted:
    """What `convert` made of some weights.

    Attributes:
        ann: the source network, folded; float32. It reads the same images as `network`.
        network: the spiking network with the same weights, in evaluation mode; not calibrated.
        weights: the source.
        report: where every tensor went and came from.
        from_ann: whether the weights were trained as an ANN, not to spike.
    """

    ann: FoldedANN
    network: TTFSNetwork
    weights: Weights
    report: ConversionReport
    from_ann: bool

    @property
    def needs_calibration(self) -> bool:
        """Whether the source is another project's ANN that the copied network does not compute: with a slope that
        persists, or with activations above 1. Networks of ours are left as they are: they train on instead, while σ
        rises."""
        return self.from_ann and (self.ann.bound is None or self.network.config.neuron.has_slope)


def convert(
    source: str | Path | Weights,
    *,
    sha256: str | None = None,
    config: NetworkConfig | None = None,
    classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    replace_head: bool = False,
    seed: int = 0,
    keep_standardisation: bool = True,
    input_normalisation: Literal["configuration", "weights"] = "configuration",
    inexact_borders: bool = False,
    batch_norm_epsilon: float = 1e-5,
    trained_as: TrainedAs | None = None,
    **overrides: Any,
) -> Converted:
    """Make a spiking network of trained weights: recognise, fold, copy.

    Nothing is drawn at random unasked and nothing is dropped: a tensor that fits nowhere stops the conversion. Weights
    are copied, not calibrated; see the module.

    Args:
        source: what `open_weights` reads, or what it gave.
        sha256: see `open_weights`.
        config: network of the source, where it is one of ours without a config.json beside it; else its mean and std
            are those of a source that says none.
        classes: number of classes wanted. Default: the source's.
        image_size: side, or (height, width), of the images. Default: the source's.
        replace_head: draw a new readout for `classes` from `seed`; without it, another number is an error.
        seed: of that draw.
        keep_standardisation: keep standardised weights and their gains, for further training; plain ones stay plain.
        input_normalisation: leave mean and std to the configuration (exact), or fold them into the first convolution.
        inexact_borders: accept that the latter changes what a padded first convolution computes at the borders.
        batch_norm_epsilon: of the source's batch norms, which no state dict says.
        trained_as: see `TrainedAs`; needed for the paper's networks. What was trained to spike is not calibrated, and
            keeps its encoder, neuron and readout.
        **overrides: fields of `NetworkConfig` that the weights leave open: encoder, max_value, mean, std (the
            source's, in place of those assumed), readout, neuron, bias, initial_gain, dropout.
    Raises:
        WeightsError: the source cannot be read.
        ConversionError: names or shapes are of no known network or do not fit together; another number of classes
            without `replace_head`; options that exclude each other.
        ValueError: a value out of range, see `NetworkConfig`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import nn
        >>> from ttfs_triton.nn import Neuron
        >>> features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        >>> vgg = nn.ModuleDict({"features": features, "classifier": nn.Linear(4 * 4 * 4, 10)})  # of 8×8 images
        >>> statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(vgg.state_dict(), f"{folder}/vgg.pth")
        ...     converted = convert(f"{folder}/vgg.pth", neuron=Neuron(psp_persistence=0.25), **statistics)
        >>> converted.network.config.specification, converted.report.layout, converted.needs_calibration
        ('4C3-P2', 'torchvision VGG', True)
        >>> converted.network(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    weights = source if isinstance(source, Weights) else open_weights(source, sha256=sha256)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if wrong := sorted(set(overrides) - FREE):
        raise ConversionError(
            f"convert: overrides must be among {', '.join(sorted(FREE))}; got {', '.join(wrong)}. The rest is what "
            "the weights say."
        )
    statistics = (overrides.get("mean"), overrides.get("std"))
    layout = recognise(weights, config, size, None if replace_head else classes, trained_as, statistics)
    source_config = layout.config
    fold_input = input_normalisation == "weights" and source_config.encoder != "latency"
    # Standardised weights have mean 0 over a neuron's inputs, which dividing by std would end.
    standardised = keep_standardisation and not fold_input and all(layer.weight_gain for layer in layout.layers)
    gain = float(overrides.get("initial_gain", source_config.initial_gain))
    layers = fold_layers(
        layout,
        weights.tensors,
        keep_standardisation=standardised,
        epsilon=batch_norm_epsilon,
        statistics=_normalisation(source_config, inexact_borders) if fold_input else None,
        head=(classes or source_config.classes, gain, seed) if replace_head else None,
    )
    target = _target_config(source_config, layers, classes, standardised, fold_input, overrides)
    network = _network(target, layers)
    ann = FoldedANN(target, _plain_tensors(target, layers), layout.bound)
    return Converted(ann, network, weights, make_report(weights, layout, layers, network, seed), layout.from_ann)


def recognise(
    weights: Weights,
    config: NetworkConfig | None = None,
    image_size: tuple[int, int] | None = None,
    classes: int | None = None,
    trained_as: TrainedAs | None = None,
    statistics: Statistics = (None, None),
) -> Layout:
    """The layout of some weights, checked: every tensor accounted for, every shape right.

    Args:
        weights: see `open_weights`.
        config: see `convert`.
        image_size: (height, width) to convert for, or None.
        classes: that it must have, or None.
        trained_as: see `TrainedAs`, or None.
        statistics: mean and std of the images that it was trained on, where the caller knows better.
    Raises:
        ConversionError: unknown, incomplete, superfluous or misshapen tensors, by name; other images or classes.
    """
    if is_own(weights.tensors):
        own = _own_config(weights, config, image_size, trained_as)
        if any(statistics) and own.encoder == "latency":
            raise ConversionError("convert: mean and std must not be given for a source that reads pixels as they are.")
        mean, std = statistics
        layout = own_layout(weights.tensors, own.replace(mean=mean or own.mean, std=std or own.std))
    else:
        layout = foreign_layout(
            weights.tensors,
            image_size=image_size,
            trained_as=trained_as,
            statistics=statistics,
            fallback=None if config is None else (config.mean, config.std),
            config=weights.config,
        )
    check_tensors(layout, weights.tensors)
    if classes not in (None, layout.config.classes):
        raise ConversionError(
            f"convert: classes must be {layout.config.classes}, as {weights.name} has; got {classes}. "
            "Give replace_head=True (--replace-head) to draw a new readout."
        )
    return layout


def _own_config(
    weights: Weights,
    config: NetworkConfig | None,
    image_size: tuple[int, int] | None,
    trained_as: TrainedAs | None,
) -> NetworkConfig:
    """What the config.json beside weights of ours says, or the caller; arguments as of `recognise`."""
    description = weights.description()
    own = config if description is None else description.network
    if own is None:
        raise ConversionError(
            f"convert: {weights.name} must have a config.json beside it, as training writes; it has none. "
            "Keep both together."
        )
    if not isinstance(own, NetworkConfig):
        raise ConversionError(
            f"convert: {weights.name} must hold a network of a specification; got one that {own.builder} builds. "
            "Fine-tune it with recipes/train_own.py --weights."
        )
    if image_size not in (None, own.image_size):
        raise ConversionError(
            f"convert: image_size must be {own.image_size}, as {weights.name} was trained; got {image_size}."
        )
    if trained_as is not None:
        raise ConversionError(f"convert: trained_as must be left out for a network of ours; got {trained_as}.")
    return own


def _normalisation(config: NetworkConfig, inexact_borders: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std to fold, if folding is exact or accepted."""
    first = parse_specification(config.specification)[0]
    assert isinstance(first, Convolution)  # as in every network with an analog encoder
    mean = config.mean or (0.0,) * config.in_channels
    if first.padding > 0 and any(mean) and not inexact_borders:
        raise ConversionError(
            'convert: input_normalisation must be "configuration" for a padded first convolution; got "weights". '
            "Its padding is the mean image; with mean and std in the weights it would be black, and borders would "
            "change. Give inexact_borders=True (--inexact-borders) to accept that."
        )
    return mean, config.std or (1.0,) * config.in_channels


def _target_config(
    source: NetworkConfig,
    layers: list[FoldedLayer],
    classes: int | None,
    standardised: bool,
    fold_input: bool,
    overrides: Mapping[str, Any],
) -> NetworkConfig:
    has_bias = any(layer.bias is not None for layer in layers)
    if overrides.get("bias") is False and has_bias:
        raise ConversionError(
            "convert: bias must be True for a source with biases or batch norm; got False. They would be lost."
        )
    values = {
        "batch_norm": False,
        "bias": has_bias,
        "weight_standardisation": standardised,
        "classes": classes or source.classes,
        **overrides,
    }
    encoder = values.get("encoder", source.encoder)
    if fold_input:
        values |= {"mean": None, "std": None}
    elif encoder == "latency" and source.encoder != "latency" and (source.mean or source.std):
        raise ConversionError(
            f'convert: encoder must be "{source.encoder}" for a source with mean and std; got "latency". Give '
            'input_normalisation="weights" to fold them.'
        )
    else:
        values |= {"mean": source.mean, "std": source.std}
    return source.replace(**values)


def _plain_tensors(config: NetworkConfig, layers: list[FoldedLayer]) -> dict[str, Tensor]:
    """Tensors of the folded network; a layer without bias gets zeros, one that averages a weight for each input."""
    tensors: dict[str, Tensor] = {}
    for layer, (_, shape) in zip(layers, weighted_layers(skeleton(config)), strict=True):
        tensors[f"{layer.name}.weight"] = shape.spread(layer.weight).float()
        zeros = torch.zeros(layer.weight.shape[0])
        tensors[f"{layer.name}.bias"] = zeros if layer.bias is None else layer.bias.float()
        if layer.skip_weight is not None:
            tensors[f"{layer.name}.skip_weight"] = layer.skip_weight.float()
    return tensors


def _network(config: NetworkConfig, layers: list[FoldedLayer]) -> TTFSNetwork:
    """The spiking network with these weights; the caller's random numbers are not used up."""
    with torch.random.fork_rng(devices=[]):
        network = TTFSNetwork(config)
    state: dict[str, Tensor] = {}
    for layer in layers:
        prefix = layer.name if layer.name == "readout" else f"features.{layer.name}"
        kept = config.weight_standardisation
        state[f"{prefix}.weight"] = layer.raw_weight if kept else layer.weight
        if kept:
            assert layer.weight_gain is not None
            state[f"{prefix}.weight_gain"] = layer.weight_gain
        if layer.skip_weight is not None:
            state[f"{prefix}.skip_weight"] = layer.skip_weight
        if config.bias:
            state[f"{prefix}.bias"] = torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
    network.load_state_dict(state)
    return network.eval()
