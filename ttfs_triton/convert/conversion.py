"""Conversion of trained weights in a file to a spiking network: fold, copy; then scale and calibrate.

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
from torch import Tensor

from ttfs_triton.convert.ann_file import LayerEntry, TrainedAs, is_paper, paper_config, state_of
from ttfs_triton.convert.calibration import Calibration, calibrate_network, fit_range
from ttfs_triton.convert.source import ConversionError, Weights, load_state, open_weights
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.table import Table

_OURS = re.compile(r"(?:features\.(?:conv|fc)\d+|readout)\..+")
SPIKING = "the source is a spiking network; its weights are copied"


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
    layers: tuple[LayerEntry, ...]
    bounded: bool
    from_ann: bool
    notes: tuple[str, ...]


def convert(
    source: str | Path | Weights,
    *,
    config: NetworkConfig | None = None,
    classes: int | None = None,
    replace_head: bool = False,
    seed: int = 0,
    keep_standardisation: bool = True,
    trained_as: TrainedAs | None = None,
    **overrides: Any,
) -> Converted:
    """Convert trained weights into a spiking network: fold, copy.

    No weight is drawn at random unless asked for, and none is dropped: tensors that fit no layer stop the conversion.
    Weights are copied; `calibrate_converted` calibrates them. An ANN that is no chain of layers, or whose file does not
    say what the network is, converts by `convert_ann`.

    Args:
        source: a source that `open_weights` reads, or its result: weights of this package, of the paper's networks, or
            of an ANN with the layers of `config`.
        config: the network that an ANN becomes, by order and shapes; or the configuration of weights of this package
            that have no config.json beside them. A timm config.json beside an ANN's weights replaces its mean and std.
        classes: number of classes wanted. Default: the source's.
        replace_head: draw a new readout for `classes` classes; without it, another number of classes is an error.
        seed: seed of the new readout's weights.
        keep_standardisation: keep standardised weights and their gains, for further training; plain ones stay plain.
        trained_as: see `TrainedAs`; needed for the paper's networks. Networks that were trained to spike are not
            calibrated, and keep their encoder, neuron and readout.
        **overrides: fields of `NetworkConfig` that the weights leave open: encoder, mean, std (of the
            source's training images, in place of assumed ones), readout, neuron, bias, initial_gain, dropout.
    Raises:
        WeightsError: the source cannot be read.
        ConversionError: names or shapes do not fit together, or `config` is missing; another number of classes
            without `replace_head`; options that exclude each other.
        ValueError: a value out of range, see `NetworkConfig`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import nn
        >>> from ttfs_triton.nn import Neuron
        >>> ann = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 4, 10)
        ... )
        >>> config = NetworkConfig("4C3-P2", in_channels=3, image_size=(8, 8), encoder="analog")
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(ann.state_dict(), f"{folder}/ann.pth")
        ...     converted = convert(f"{folder}/ann.pth", config=config, neuron=Neuron(psp_persistence=0.25))
        >>> converted.report.layers[1].sources, converted.needs_calibration
        (('4.weight', '4.bias'), True)
        >>> converted.network(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    weights = source if isinstance(source, Weights) else open_weights(source)
    recognised = _recognise(weights, config, trained_as, keep_standardisation, overrides)
    if not replace_head and classes not in (None, recognised.config.classes):
        raise ConversionError(
            f"convert: classes must be {recognised.config.classes}, as {weights.name} has; got {classes}. "
            "Give replace_head=True (--replace-head) to draw a new readout."
        )
    layers, notes, state = recognised.layers, (*weights.steps, *recognised.notes), recognised.state
    has_bias = any(key.endswith(".bias") for key in state)
    if overrides.get("bias") is False and has_bias:
        raise ConversionError(
            "convert: bias must be True for a source with biases or batch norm; got False. They would be lost."
        )
    target = recognised.config.replace(
        **{"bias": has_bias, "classes": classes or recognised.config.classes, **overrides}
    )
    if replace_head:
        layers = (*layers[:-1], LayerEntry("readout", ()))
        notes += (f"a new readout for {target.classes} classes, drawn from seed {seed}",)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("readout.")}
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        torch.manual_seed(seed)
        network = TTFSNetwork(target).eval()
    drawn = {
        name: value
        for name, value in network.state_dict().items()
        if name.endswith(".bias") or (replace_head and name.startswith("readout."))  # initial potentials are 0
    }
    load_state(network, drawn | state, f"the weights must be those of {target.specification}")
    report = ConversionReport(
        *(weights.name, weights.format, weights.sha256, weights.revision),
        *(recognised.layout, recognised.config.specification, layers, notes, replace_head),
    )
    return Converted(network, weights, report, recognised.bounded, recognised.from_ann)


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


def _recognise(
    weights: Weights,
    config: NetworkConfig | None,
    trained_as: TrainedAs | None,
    keep_standardisation: bool,
    overrides: Mapping[str, Any],
) -> _Source:
    """What the names of the tensors say; arguments as of `convert`."""
    ours = any(_OURS.fullmatch(name) for name in weights.tensors)
    paper = is_paper(weights.tensors)
    if trained_as is not None and not paper and (ours or config is not None):
        raise ConversionError(f"convert: trained_as must be left out for weights not of the paper; got {trained_as}.")
    if ours and (given := sorted(overrides.keys() & {"mean", "std"})):
        raise ConversionError(f"convert: {' and '.join(given)} must be left out for a network of ours, which has them.")
    if ours:
        return _own(weights, config, keep_standardisation)
    if paper and (config is None or trained_as is not None):
        assumed = paper_config(weights.tensors, trained_as)
        notes = (f"trained as {trained_as}, as stated: the paper's networks share their names",)
        return _ann("Wei et al., ICCV 2023", weights, assumed, True, trained_as == "ann", notes)
    if config is None:
        shapes = [f"{name} {list(tensor.shape)}" for name, tensor in weights.tensors.items()]
        raise ConversionError(
            "convert: weights must be of a network of ttfs-triton or of the paper; got "
            f"{', '.join(shapes[:6])}{' and more' if len(shapes) > 6 else ''}. Name the function that builds their "
            "module: --network FILE.py:FUNCTION or --network torchvision.models:vgg16_bn."
        )
    mean, std = weights.statistics() or (config.mean, config.std)
    return _ann("ANN", weights, config.replace(mean=mean, std=std), paper, True)


def _own(weights: Weights, config: NetworkConfig | None, keep_standardisation: bool) -> _Source:
    """A network of this package, batch norm folded, and standardised weights too unless they are kept."""
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
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
        network = TTFSNetwork(own.replace(grid=None))
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
    return _Source("ours", network.config, network.state_dict(), tuple(entries), True, False, tuple(notes))


def _ann(
    layout: str, weights: Weights, config: NetworkConfig, bounded: bool, from_ann: bool, notes: tuple[str, ...] = ()
) -> _Source:
    """A network of another project."""
    config = config.replace(batch_norm=False, weight_standardisation=False, grid=None)
    state, entries = state_of(config, weights.tensors)
    if config.encoder != "latency" and not config.mean:
        notes += ("no mean and std: the ANN reads pixels in [0, 1]",)
    if not bounded:
        notes += ("activations of the source are not bounded, spikes saturate at 1: calibrate or train the network",)
    notes += () if from_ann else (SPIKING,)
    return _Source(layout, config, state, tuple(entries), bounded, from_ann, notes)
