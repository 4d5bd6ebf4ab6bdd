"""Where every tensor of the source went, and where every parameter of the network is from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from ttfs_triton.convert.fold import FoldedLayer
from ttfs_triton.convert.layouts import Layout, SourceLayer
from ttfs_triton.convert.source import Weights
from ttfs_triton.nn import TTFSNetwork


@dataclass(frozen=True)
class SourceEntry:
    """What became of one tensor of the source.

    Attributes:
        key: its name, cleaned.
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
        return {
            "source": self.source,
            "format": self.format,
            "sha256": self.sha256,
            "revision": self.revision,
            "layout": self.layout,
            "specification": self.specification,
            "notes": list(self.notes),
            "sources": [
                {
                    "key": entry.key,
                    "shape": list(entry.shape),
                    "status": entry.status,
                    "target": list(entry.target),
                    "reason": entry.reason,
                }
                for entry in self.sources
            ],
            "targets": [
                {"name": entry.name, "shape": list(entry.shape), "origin": entry.origin} for entry in self.targets
            ],
        }

    def table(self) -> Table:
        """Every parameter and where it is from, for a terminal; below it, what was not used, and the notes."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        table = Table(
            title=f"{self.source}{revision}, {self.layout}: {self.specification}",
            caption="\n".join(self._below()),
            caption_justify="left",
        )
        table.add_column("parameter", overflow="fold")
        table.add_column("shape")
        table.add_column("from", overflow="fold")
        for entry in self.targets:
            table.add_row(entry.name, "×".join(map(str, entry.shape)), entry.origin)
        return table

    def _below(self) -> list[str]:
        lines = [f"SHA-256 {self.sha256}"]
        for status in ("replaced", "not needed"):
            entries = [entry for entry in self.sources if entry.status == status]
            for reason in dict.fromkeys(entry.reason for entry in entries):
                keys = [entry.key for entry in entries if entry.reason == reason]
                lines.append(
                    f"{status} ({reason}): {', '.join(keys[:3])}{f' and {n} more' if (n := len(keys) - 3) > 0 else ''}"
                )
        return [*lines, *self.notes]


def make_report(
    weights: Weights,
    layout: Layout,
    layers: Sequence[FoldedLayer],
    network: TTFSNetwork,
    seed: int,
) -> ConversionReport:
    """The report; see `ConversionReport`.

    Args:
        weights, layout: the source.
        layers: folded, in the layout's order.
        network: what they became.
        seed: of a drawn readout.
    """
    pairs = list(zip(layout.layers, layers, strict=True))
    parameters = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    entries = {
        entry.key: entry for source, folded in pairs for entry in _source_entries(source, folded, weights, parameters)
    }
    targets = [
        TargetEntry(name, shape, _origin(name, source, folded, seed))
        for source, folded in pairs
        for name, shape in parameters.items()
        if name.rpartition(".")[0] == _path(source)
    ]
    assert entries.keys() == weights.tensors.keys()
    assert len(targets) == len(parameters)
    return ConversionReport(
        source=weights.name,
        format=weights.format,
        sha256=weights.sha256,
        revision=weights.revision,
        layout=layout.name,
        specification=layout.config.specification,
        sources=tuple(entries[key] for key in weights.tensors),
        targets=tuple(targets),
        notes=tuple(_notes(weights, layout, layers, network)),
    )


def _notes(weights: Weights, layout: Layout, layers: Sequence[FoldedLayer], network: TTFSNetwork) -> list[str]:
    notes = [*weights.steps, *layout.assumptions]
    if any("mean and std of the images" in layer.folded for layer in layers):
        notes.append(f"mean and std folded into {layers[0].name}; inexact at borders that it pads")
    if layout.config.weight_standardisation and not network.config.weight_standardisation:
        notes.append("standardised weights folded into plain ones")
    if layout.bound is None:
        notes.append("activations of the source are not bounded, spikes saturate at 1: calibrate or train the network")
    if not layout.config.analog:
        notes.append("the source is a spiking network; its weights are copied")
    return notes


def _path(source: SourceLayer) -> str:
    return source.name if source.name == "readout" else f"features.{source.name}"


def _source_entries(
    source: SourceLayer, folded: FoldedLayer, weights: Weights, parameters: dict[str, tuple[int, ...]]
) -> list[SourceEntry]:
    path = _path(source)
    weight, bias = f"{path}.weight", f"{path}.bias"
    gain = f"{path}.weight_gain"
    # With standardised weights kept, what is folded goes into the gain.
    scaled = gain if gain in parameters else weight
    targets = {source.weight: (weight,), source.weight_gain: (scaled,), source.bias: (bias,)}
    targets |= {source.skip_weight: (f"{path}.skip_weight",)}
    norm = source.batch_norm
    if norm is not None:
        targets |= {f"{norm}.{key}": (scaled, bias) for key in ("running_mean", "running_var", "weight", "bias")}
        targets |= {f"{norm}.running_mean": (bias,), f"{norm}.bias": (bias,)}
    entries = []
    for key, target in targets.items():
        if key is None or key not in weights.tensors:
            continue
        shape = tuple(weights.tensors[key].shape)
        if folded.drawn:
            entries.append(SourceEntry(key, shape, "replaced", (), "a new readout was asked for"))
            continue
        reason = _reason(key, source, folded, gain in parameters)
        entries.append(SourceEntry(key, shape, "folded" if reason else "used", target, reason))
    counter = f"{norm}.num_batches_tracked"
    if counter in weights.tensors:
        shape = tuple(weights.tensors[counter].shape)
        entries.append(SourceEntry(counter, shape, "not needed", (), "counts training batches"))
    return entries


def _reason(key: str, source: SourceLayer, folded: FoldedLayer, standardised: bool) -> str:
    """What was folded together with the tensor, or "" if it was used as it is."""
    if key == source.skip_weight:
        return ""
    if key == source.weight:
        return "" if standardised else ", ".join(folded.folded)
    if key == source.bias:
        return ", ".join(part for part in folded.folded if part not in ("weight standardisation", "average pool"))
    if key == source.weight_gain:
        return ", ".join(folded.folded)
    return "batch norm"


def _origin(name: str, source: SourceLayer, folded: FoldedLayer, seed: int) -> str:
    kind = name.rpartition(".")[2]
    if folded.drawn:
        return "zero" if kind == "bias" else f"drawn, seed {seed}"
    norm = source.batch_norm
    if kind == "bias":
        keys = [source.bias] if source.bias else []
        keys += [f"{norm}.*"] if norm else []
        keys += [source.weight] if "mean and std of the images" in folded.folded else []
        return " + ".join(keys) or "zero: the source has none"
    if kind == "skip_weight":
        return f"{source.skip_weight}"
    if kind == "weight_gain":
        return f"{source.weight_gain}" + (f" × {norm}.*" if norm else "")
    if folded.weight_gain is not None:
        return source.weight
    parts = f" ({', '.join(folded.folded)} folded)" if folded.folded else ""
    return source.weight + parts
