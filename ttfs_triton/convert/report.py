"""Where every tensor of the source went, and where every parameter of the network is from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python
from rich.table import Table

from ttfs_triton.convert.fold import BATCH_NORM, INPUT_NORMALISATION, FoldedLayer
from ttfs_triton.convert.layouts import Layout, SourceLayer
from ttfs_triton.convert.source import Weights
from ttfs_triton.nn import TTFSNetwork


@dataclass(frozen=True)
class SourceEntry:
    """What became of one tensor of the source.

    Attributes:
        key: its name, without wrappers' prefixes.
        shape: its sizes.
        status: "used" as it is, "folded" into another, "replaced" on request, or "not needed".
        target: parameters that it went into.
        reason: in words, where it was not used as it is.
    """

    key: str
    shape: tuple[int, ...]
    status: str
    target: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class TargetEntry:
    """Where one parameter of the network is from.

    Attributes:
        name: in its state dict.
        shape: its sizes.
        origin: keys of the source, or "zero" or "drawn", in words.
    """

    name: str
    shape: tuple[int, ...]
    origin: str


@dataclass(frozen=True)
class ConversionReport:
    """A conversion, key by key. A tensor that fits nowhere is no entry: it stops the conversion.

    Attributes:
        source, format, sha256, revision: of the weights; see `Weights`.
        layout: whose network they were recognised as.
        specification: of that network.
        sources: one entry a tensor of the source.
        targets: one entry a parameter of the network.
        notes: containers opened, assumptions, and what was done on request.
    """

    source: str
    format: str
    sha256: str
    revision: str | None
    layout: str
    specification: str
    sources: tuple[SourceEntry, ...]
    targets: tuple[TargetEntry, ...]
    notes: tuple[str, ...]

    @property
    def head_replaced(self) -> bool:
        """Whether the readout was drawn anew, so that its classes are no longer the source's."""
        return any(entry.status == "replaced" for entry in self.sources)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return to_jsonable_python(self)

    def table(self) -> Table:
        """Every parameter and where it is from, for a terminal; below it, what was not used, and the notes."""
        below = [f"SHA-256 {self.sha256}"]
        for status, reason in dict.fromkeys((entry.status, entry.reason) for entry in self.sources):
            if status in ("replaced", "not needed"):
                keys = [entry.key for entry in self.sources if (entry.status, entry.reason) == (status, reason)]
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                below.append(f"{status} ({reason}): {', '.join(keys[:3])}{more}")
        revision = f" at {self.revision[:12]}" if self.revision else ""
        table = Table(
            title=f"{self.source}{revision}, {self.layout}: {self.specification}",
            caption="\n".join([*below, *self.notes]),
            caption_justify="left",
        )
        table.add_column("parameter", overflow="fold")
        table.add_column("shape")
        table.add_column("from", overflow="fold")
        for entry in self.targets:
            table.add_row(entry.name, "×".join(map(str, entry.shape)), entry.origin)
        return table


def make_report(
    weights: Weights, layout: Layout, layers: Sequence[FoldedLayer], network: TTFSNetwork, seed: int
) -> ConversionReport:
    """The report; see `ConversionReport`.

    Args:
        weights, layout: the source.
        layers: folded, in the layout's order.
        network: what they became.
        seed: of a drawn readout.
    """
    parameters = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found, targets = {}, []
    for source, folded in zip(layout.layers, layers, strict=True):
        path = source.name if source.name == "readout" else f"features.{source.name}"
        found |= {entry.key: entry for entry in _source_entries(source, folded, weights, path)}
        targets += [
            TargetEntry(name, shape, _origin(name.rpartition(".")[2], source, folded, seed))
            for name, shape in parameters.items()
            if name.rpartition(".")[0] == path
        ]
    assert len(targets) == len(parameters)
    sources = [
        found.get(key) or SourceEntry(key, tuple(value.shape), "not needed", (), "counts training batches")
        for key, value in weights.tensors.items()
    ]
    notes = [*weights.steps, *layout.assumptions]
    if any(INPUT_NORMALISATION in layer.folded for layer in layers):
        notes.append(f"mean and std folded into {layers[0].name}; inexact at borders that it pads")
    if any(layer.weight_gain for layer in layout.layers) and not network.config.weight_standardisation:
        notes.append("standardised weights folded into plain ones")
    if layout.bound is None:
        notes.append("activations of the source are not bounded, spikes saturate at 1: calibrate or train the network")
    if not layout.from_ann:
        notes.append("the source is a spiking network; its weights are copied")
    return ConversionReport(
        weights.name,
        weights.format,
        weights.sha256,
        weights.revision,
        layout.name,
        layout.config.specification,
        tuple(sources),
        tuple(targets),
        tuple(notes),
    )


def _source_entries(source: SourceLayer, folded: FoldedLayer, weights: Weights, path: str) -> Iterator[SourceEntry]:
    """What became of each tensor of a layer; counters of training batches are left out."""
    scaled = _scaled(folded)
    kinds = {source.weight: ("weight",), source.weight_gain: (scaled,), source.bias: ("bias",)}
    kinds |= {source.skip_weight: ("skip_weight",)}
    norm = {"running_mean": ("bias",), "running_var": (scaled, "bias"), "weight": (scaled, "bias"), "bias": ("bias",)}
    kinds |= {f"{source.batch_norm}.{key}": into for key, into in norm.items()}
    for key, into in kinds.items():
        if key is None or key not in weights.tensors:
            continue
        shape = tuple(weights.tensors[key].shape)
        if folded.drawn:
            yield SourceEntry(key, shape, "replaced", (), "a new readout was asked for")
            continue
        of_norm = key.rpartition(".")[0] == source.batch_norm
        reason = BATCH_NORM if of_norm else ", ".join(_folded_into(into[0], folded))
        yield SourceEntry(key, shape, "folded" if reason else "used", tuple(f"{path}.{kind}" for kind in into), reason)


def _scaled(folded: FoldedLayer) -> str:
    """The parameter that takes what a layer is scaled by: its gain, where standardised weights are kept."""
    return "weight" if folded.weight_gain is None else "weight_gain"


def _folded_into(kind: str, folded: FoldedLayer) -> list[str]:
    """What was folded into a parameter, in words."""
    if kind == "bias":
        return [each for each in folded.folded if each in (BATCH_NORM, INPUT_NORMALISATION)]
    return list(folded.folded) if kind == _scaled(folded) else []


def _origin(kind: str, source: SourceLayer, folded: FoldedLayer, seed: int) -> str:
    """Where a parameter is from, in words."""
    if folded.drawn:
        return "zero" if kind == "bias" else f"drawn, seed {seed}"
    key = getattr(source, kind)
    if key is None:
        key = "zero: the source has none" if source.batch_norm is None else f"{source.batch_norm}.*"
    reasons = _folded_into(kind, folded)
    return key + (f" ({', '.join(reasons)} folded)" if reasons else "")
