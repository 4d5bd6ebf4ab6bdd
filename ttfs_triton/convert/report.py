"""Where every tensor of the source went, and where every parameter of the network is from."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table


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
