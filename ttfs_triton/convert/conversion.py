"""Conversion of trained weights in a file to a spiking network: recognise, fold, copy; then scale and calibrate.

At σ = 0 the spiking network computes the same as its source, if the source clamps its activations to [0, 1]. Otherwise
the copied weights are only a start: calibrate or train them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.convert.ann import trace_ann
from ttfs_triton.convert.build import specification_of
from ttfs_triton.convert.calibration import Calibration, calibrate_network, fit_range
from ttfs_triton.convert.layouts import NO_STATISTICS, PAPER, Layout, Statistics, TrainedAs, foreign_layout
from ttfs_triton.convert.source import ConversionError, Weights, load_state, open_weights
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.table import Table

_OURS = re.compile(r"(?:features\.(?:conv|fc)\d+|readout)\..+")
# Fields of the network's configuration that the weights leave open; all others are the source's.
FREE = frozenset("encoder mean std readout neuron bias initial_gain dropout".split())
SPIKING = "the source is a spiking network; its weights are copied"


@dataclass(frozen=True)
class LayerEntry:
    """Source of one layer of the converted network.

    Attributes:
        name: name of the layer: "conv1", ..., "fc1", ..., "readout".
        sources: names of the source's tensors; empty for a layer with new random weights.
        folded: operations folded into its weights and initial potentials, in words.
    """

    name: str
    sources: tuple[str, ...]
    folded: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConversionReport:
    """A conversion, layer by layer. Tensors that fit no layer are not listed: they stop the conversion.

    Attributes:
        source, format, sha256, revision: origin of the weights; see `Weights`.
        layout, specification: names of the recognised layout and of the network's layers.
        layers: one entry for each layer with weights.
        notes: containers opened, assumptions, and changes made on request.
        head_replaced: the readout has new random weights, so that its classes are no longer the source's.
    """

    source: str
    format: str
    sha256: str
    revision: str | None
    layout: str
    specification: str
    layers: tuple[LayerEntry, ...]
    notes: tuple[str, ...]
    head_replaced: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return to_jsonable_python(self)

    def table(self) -> Table:
        """The report as a table for a terminal."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        rows = [(each.name, ", ".join(each.sources) or "drawn", ", ".join(each.folded)) for each in self.layers]
        title = f"{self.source}{revision}, {self.layout}: {self.specification}"
        caption = "\n".join((f"SHA-256 {self.sha256}", *self.notes))
        return Table(title, ("layer", "from", "folded"), rows, caption=caption)


@dataclass(frozen=True)
class Converted:
    """A converted network, and the source of its weights.

    Attributes:
        network: the spiking network with the weights of the source, in evaluation mode; not calibrated.
        weights: the source.
        report: source tensors of every layer.
        bounded: the source's hidden activations are clamped to [0, 1].
        from_ann: the source is another project's ANN, to be calibrated. Networks of this package, which train on while
            σ rises, and networks that were trained to spike are left as they are.
    """

    network: TTFSNetwork
    weights: Weights
    report: ConversionReport
    bounded: bool
    from_ann: bool

    @property
    def needs_calibration(self) -> bool:
        """Whether the copied network differs from its ANN: its slope persists, or activations exceed 1."""
        return self.from_ann and (not self.bounded or self.network.config.neuron.has_slope)


@dataclass(frozen=True)
class _Source:
    """A recognised network, batch norm folded: its configuration, and tensors by the names of a `TTFSNetwork`."""

    layout: str
    config: NetworkConfig
    state: dict[str, Tensor]
    layers: list[LayerEntry]
    bounded: bool
    from_ann: bool
    notes: tuple[str, ...] = ()


def convert(
    source: str | Path | Weights,
    *,
    config: NetworkConfig | None = None,
    classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    replace_head: bool = False,
    seed: int = 0,
    keep_standardisation: bool = True,
    trained_as: TrainedAs | None = None,
    **overrides: Any,
) -> Converted:
    """Convert trained weights into a spiking network: recognise, fold, copy.

    No weight is drawn at random unless asked for, and none is dropped: tensors that fit no layer stop the conversion.
    Weights are copied; `calibrate_converted` calibrates them. An ANN with other names converts by `convert_ann`.

    Args:
        source: a source that `open_weights` reads, or its result.
        config: configuration of a source of this package that has no config.json beside it. For a source of another
            project, only its mean and std are used, if nothing else gives them.
        classes: number of classes wanted. Default: the source's.
        image_size: side, or (height, width), of the images. Default: the source's.
        replace_head: draw a new readout for `classes` classes; without it, another number of classes is an error.
        seed: seed of the new readout's weights.
        keep_standardisation: keep standardised weights and their gains, for further training; plain ones stay plain.
        trained_as: see `TrainedAs`; needed for the paper's networks. Networks that were trained to spike are not
            calibrated, and keep their encoder, neuron and readout.
        **overrides: fields of `NetworkConfig` that the weights leave open: encoder, mean, std (of the
            source's training images, in place of assumed ones), readout, neuron, bias, initial_gain, dropout.
    Raises:
        WeightsError: the source cannot be read.
        ConversionError: names or shapes match no known network or do not fit together; another number of classes
            without `replace_head`; options that exclude each other.
        ValueError: a value out of range, see `NetworkConfig`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import nn
        >>> from ttfs_triton.nn import Neuron
        >>> features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        >>> vgg = nn.ModuleDict({"features": features, "classifier": nn.Linear(4 * 4 * 4, 10)})  # for 8×8 images
        >>> statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(vgg.state_dict(), f"{folder}/vgg.pth")
        ...     converted = convert(f"{folder}/vgg.pth", neuron=Neuron(psp_persistence=0.25), **statistics)
        >>> converted.network.config.specification, converted.report.layout, converted.needs_calibration
        ('4C3-P2', 'torchvision VGG', True)
        >>> converted.network(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    weights = source if isinstance(source, Weights) else open_weights(source)
    if wrong := sorted(set(overrides) - FREE):
        raise ConversionError(
            f"convert: overrides must be among {', '.join(sorted(FREE))}; got {', '.join(wrong)}. The weights "
            "determine all others."
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    statistics = (overrides.get("mean"), overrides.get("std"))
    if any(_OURS.fullmatch(name) for name in weights.tensors):
        found = _own(weights, config, size, trained_as, statistics, keep_standardisation)
    else:
        fallback = None if config is None else (config.mean, config.std)
        layout = foreign_layout(weights, size, trained_as, statistics, fallback)
        found = _foreign(weights, layout, trained_as)
    if not replace_head and classes not in (None, found.config.classes):
        raise ConversionError(
            f"convert: classes must be {found.config.classes}, as {weights.name} has; got {classes}. "
            "Give replace_head=True (--replace-head) to draw a new readout."
        )
    if replace_head:
        gain = float(overrides.get("initial_gain", found.config.initial_gain))
        found = _with_new_readout(found, classes or found.config.classes, gain, seed)
    target = _target_config(found, overrides)
    report = ConversionReport(
        *(weights.name, weights.format, weights.sha256, weights.revision),
        *(found.layout, found.config.specification, tuple(found.layers), (*weights.steps, *found.notes)),
        replace_head,
    )
    return Converted(_network(target, found.state), weights, report, found.bounded, found.from_ann)


def calibrate_converted(
    converted: Converted,
    images: Tensor,
    *,
    percentile: float | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[Converted, Calibration]:
    """Fit a converted network to its source: scale its activations into [0, 1], then choose initial potentials.

    Args:
        converted: result of `convert`, on the CPU; its network is changed in place.
        images: [N, in_channels, height, width], as the network reads them, on the device to compute on; 256 are enough.
        percentile, progress: see `fit_range` and `calibrate_network`.
    Returns:
        The converted network, on the CPU again, and the result of calibration.
    Raises:
        ConversionError: no images, a percentile out of range, or a network without initial potentials.
    """
    network = converted.network.to(images.device)
    if not converted.bounded:
        fit_range(network, images, percentile=percentile)
    calibration = calibrate_network(network, images, progress=progress)
    network.cpu()
    return replace(converted, bounded=True), calibration


def _own(
    weights: Weights,
    config: NetworkConfig | None,
    size: tuple[int, int] | None,
    trained_as: TrainedAs | None,
    statistics: Statistics,
    keep_standardisation: bool,
) -> _Source:
    """A network of this package, batch norm folded, and standardised weights too unless they are kept."""
    own = _own_config(weights, config, size, trained_as)
    mean, std = statistics
    if any(statistics) and own.encoder == "latency":
        raise ConversionError(NO_STATISTICS)
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        network = TTFSNetwork(own.replace(mean=mean or own.mean, std=std or own.std, grid=None))
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.endswith(".log2_unit")}
    load_state(network, tensors, f"the weights must be those of {own.specification}")
    network.fold_batch_norm()
    if not keep_standardisation:
        network.fold_standardisation()
    entries: list[LayerEntry] = []
    for layer in dict.fromkeys(re.sub(r"(\.batch_norm)?\.\w+$", "", name) for name in tensors):
        sources = [name for name in tensors if name.startswith(f"{layer}.") and ".batch_norm." not in name]
        folded = ["weight standardisation"] if not keep_standardisation and f"{layer}.weight_gain" in tensors else []
        if f"{layer}.batch_norm.running_var" in tensors:
            sources, folded = [*sources, f"{layer}.batch_norm.*"], [*folded, "batch norm"]
        entries.append(LayerEntry(layer.removeprefix("features."), tuple(sources), tuple(folded)))
    notes = [SPIKING]
    if any("weight standardisation" in entry.folded for entry in entries):
        notes.append("standardised weights folded into plain ones")
    if own.grid is not None:
        notes.append(f"left without its grid, {own.grid.text()}: calibrate or train the network for it again")
    return _Source("ours", network.config, network.state_dict(), entries, True, False, tuple(notes))


def _own_config(
    weights: Weights, config: NetworkConfig | None, size: tuple[int, int] | None, trained_as: TrainedAs | None
) -> NetworkConfig:
    """Configuration of a network of this package: from the config.json beside its weights, else from the caller."""
    description = weights.description()
    own = config if description is None else description.network
    if own is None:
        raise ConversionError(
            f"convert: {weights.name} must have a config.json beside it, as training writes; it has none. "
            "Keep both together."
        )
    if not isinstance(own, NetworkConfig):
        raise ConversionError(
            f"convert: {weights.name} must hold a network of a specification; got a network that {own.builder} builds. "
            "Train on from it: --network FILE.py:FUNCTION --weights."
        )
    if size not in (None, own.image_size):
        raise ConversionError(f"convert: image_size must be {own.image_size}, as {weights.name} says; got {size}.")
    if trained_as is not None:
        raise ConversionError(f"convert: trained_as must be left out for a network of ours; got {trained_as}.")
    return own


def _foreign(weights: Weights, layout: Layout, trained_as: TrainedAs | None) -> _Source:
    """A network of another project: built as a PyTorch module, traced, its layers named as ours."""
    module = layout.load(weights.tensors)
    try:
        traced = trace_ann(module, torch.zeros(1, *layout.image_shape))
    except ConversionError as error:
        raise ConversionError(f"convert: layers of {weights.name} must fit each other; {error}") from error
    specification = specification_of(traced.layers)
    assert specification is not None, "layouts are chains of square convolutions"
    config = NetworkConfig(
        specification,
        in_channels=layout.image_shape[0],
        image_size=layout.image_shape[1:],
        classes=len(traced.layers[-1].weight),
        encoder="latency" if layout.latency else "analog",
        mean=layout.mean,
        std=layout.std,
        weight_standardisation=False,
    )
    if layout.name == PAPER.layout and trained_as == "direct":
        config = config.replace(readout="potential_end", neuron=Neuron(derivative_clip=1e5))
    if layout.name == PAPER.layout and trained_as == "proxy" and not layout.latency:
        config = config.replace(encoder="signed")
    state, entries = {}, []
    with torch.device("meta"):
        modules = TTFSNetwork(config).named_modules()
    paths = [name for name, layer in modules if isinstance(layer, WeightedLayer)]
    for path, layer, sources in zip(paths, traced.layers, _sources(layout), strict=True):
        state |= {f"{path}.weight": layer.weight} | ({} if layer.bias is None else {f"{path}.bias": layer.bias})
        entries.append(LayerEntry(path.removeprefix("features."), sources, tuple(layer.folded)))
    bounded = all(layer.bound == 1 for layer in traced.layers[:-1])
    unbounded = "activations of the source are not bounded, spikes saturate at 1: calibrate or train the network"
    from_ann = trained_as in (None, "ann")
    notes = (*layout.assumptions, *([] if bounded else [unbounded]), *([] if from_ann else [SPIKING]))
    return _Source(layout.name, config, state, entries, bounded, from_ann, notes)


def _sources(layout: Layout) -> list[tuple[str, ...]]:
    """Names of the source's tensors for each layer with weights."""
    found: list[tuple[str, ...]] = []
    for name, module in layout.modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            found.append(tuple(f"{name}.{key}" for key in module.state_dict()))
        elif name:
            found[-1] += (f"{name}.*",)
    return found


def _with_new_readout(source: _Source, classes: int, initial_gain: float, seed: int) -> _Source:
    old, state = source.state["readout.weight"], dict(source.state)
    generator, inputs = torch.Generator().manual_seed(seed), old[0].numel()
    # The same distribution as in `WeightedLayer.reset_parameters`.
    drawn = torch.randn(classes, inputs, generator=generator) * (initial_gain * (2 / inputs) ** 0.5)
    state["readout.weight"] = drawn
    if "readout.weight_gain" in state:
        state["readout.weight_gain"] = torch.full((classes,), initial_gain * 2**0.5)
    state.pop("readout.bias", None)
    return replace(
        source,
        config=source.config.replace(classes=classes),
        state=state,
        layers=[*source.layers[:-1], LayerEntry("readout", ())],
        notes=(*source.notes, f"a new readout for {classes} classes, drawn from seed {seed}"),
    )


def _target_config(source: _Source, overrides: Mapping[str, Any]) -> NetworkConfig:
    config, has_bias = source.config, any(key.endswith(".bias") for key in source.state)
    if overrides.get("bias") is False and has_bias:
        raise ConversionError(
            "convert: bias must be True for a source with biases or batch norm; got False. They would be lost."
        )
    encoder = overrides.get("encoder", config.encoder)
    if encoder == "latency" and config.encoder != "latency" and (config.mean or config.std):
        raise ConversionError(
            f'convert: encoder must be "{config.encoder}" for a source with mean and std; got "latency". Leave it out.'
        )
    fixed = {"mean": config.mean, "std": config.std}
    return config.replace(**{"bias": has_bias, **overrides, **fixed})


def _network(config: NetworkConfig, state: Mapping[str, Tensor]) -> TTFSNetwork:
    """A spiking network with these weights; missing initial potentials are 0. PyTorch's random state stays."""
    with torch.random.fork_rng(devices=[]):
        network = TTFSNetwork(config)
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items() if name.endswith(".bias")}
    load_state(network, zeros | dict(state), f"the weights must be those of {config.specification}")
    return network.eval()
