"""Report of a conversion: the source's tensors for each layer, and assumptions."""

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python
from rich.markup import escape

from ttfs_triton.terminal import TerminalTable

BATCH_NORM = "batch norm"


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
        layout: name of the layout as which the weights were recognised.
        specification: specification of the network.
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

    def table(self) -> TerminalTable:
        """The report as a table for a terminal."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        rows = [(each.name, ", ".join(each.sources) or "drawn", ", ".join(each.folded)) for each in self.layers]
        title = f"{self.source}{revision}, {self.layout}: {self.specification}"
        caption = escape("\n".join((f"SHA-256 {self.sha256}", *self.notes)))
        return TerminalTable(title, ("layer", "from", "folded"), rows, caption=caption)
