"""What calibration did to a network, and the search for the initial potentials of a layer."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.rule import fire
from ttfs_triton.terminal import TerminalTable

# Grids of 17 initial potentials, each eight times finer than the one before. The first reaches two threshold heights
# up and down, the last resolves 1/256 of one.
REACH, POINTS, GRIDS = 2.0, 17, 3


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

    def table(self) -> TerminalTable:
        """For a terminal."""
        headers = ("layer", "correlation with the ANN", "calibrated", "mean change of initial potential")
        rows = [(each.name, _text(each.before), _text(each.after), f"{each.shift:+.3f}") for each in self.layers]
        return TerminalTable(f"Calibrated on {self.images} images", headers, rows)


def search_initial_potentials(bias: Tensor, potential: Tensor, slope: Tensor, wanted: Tensor) -> float:
    """Give each channel the initial potential of least squared error, in place; returns the mean change.

    Args:
        bias: [C], to start from.
        potential, slope: [rows, C], A without an initial potential, and σW.
        wanted: [rows, C], activations of the ANN.
    """
    first = bias.float().clone()
    best, reach = first, REACH
    error = _squared_error(potential, slope, wanted, best)
    for _ in range(GRIDS):
        centre = best
        for step in torch.linspace(-reach, reach, POINTS).tolist():
            candidate = centre + step
            its_error = _squared_error(potential, slope, wanted, candidate)
            best, error = torch.where(its_error < error, candidate, best), torch.minimum(error, its_error)
        reach *= 2 / (POINTS - 1)
    bias.copy_(best)
    return (best - first).mean().item()


def _squared_error(potential: Tensor, slope: Tensor, wanted: Tensor, initial: Tensor) -> Tensor:
    """Mean squared difference [C] of the activations, for an initial potential [C]."""
    activations, _ = fire(potential + initial, slope)
    return (activations - wanted).square().mean(0)


def correlation(spiking: Tensor, analog: Tensor) -> float | None:
    """Pearson's coefficient of activations, in [−1, 1]; None where either side is constant."""
    return pearson(*moments(spiking, analog).tolist())


def moments(spiking: Tensor, analog: Tensor) -> Tensor:
    """Count, Σx, Σy, Σx², Σxy (twice) and Σy² of activations x, y of two networks, [7] float64: they add up."""
    pairs = torch.stack([spiking.flatten(), analog.flatten()]).double()
    return torch.cat([torch.tensor([float(pairs.shape[1])]), pairs.sum(1).cpu(), (pairs @ pairs.T).view(-1).cpu()])


def pearson(count: float, x: float, y: float, xx: float, xy: float, _: float, yy: float) -> float | None:
    """Pearson's coefficient from `moments`; see `correlation`."""
    covariance, spread = xy - x * y / count, (xx - x * x / count) * (yy - y * y / count)
    # Rounding leaves about 1e-16 of the squares where nothing varies.
    return covariance / spread**0.5 if spread > 1e-20 * xx * yy and xx * yy > 0 else None


def _text(correlation: float | None) -> str:
    return "constant" if correlation is None else f"{correlation:.3f}"
