"""What calibration did, layer by layer."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class LayerCalibration:
    """What calibration did to a layer.

    Attributes:
        name: of the layer.
        before, after: correlation of its activations with the ANN's, in [−1, 1]; None where either is constant.
        shift: mean change of the initial potential over channels, in threshold heights; 0 for a layer left alone.
    """

    name: str
    before: float | None
    after: float | None
    shift: float


@dataclass(frozen=True)
class Calibration:
    """What calibration did to a network.

    Attributes:
        layers: hidden layers in their order.
        images: how many decided.
    """

    layers: tuple[LayerCalibration, ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"images": self.images, "layers": [asdict(layer) for layer in self.layers]}

    def table(self) -> Table:
        """For a terminal."""
        table = Table("layer", title=f"Calibrated on {self.images} images", title_justify="left")
        for heading in ("correlation\nwith the ANN", "\ncalibrated", "mean change of\ninitial potential"):
            table.add_column(heading, justify="right")
        for layer in self.layers:
            table.add_row(layer.name, _text(layer.before), _text(layer.after), f"{layer.shift:+.3f}")
        return table


def _text(correlation: float | None) -> str:
    return "constant" if correlation is None else f"{correlation:.3f}"
