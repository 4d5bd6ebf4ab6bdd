"""Calibrate a trained network for a chip's grid, without training: units of weights and initial potentials.

Layer by layer, each sees what those before it, on the grid already, make of some images; for every output channel, the
unit and then the initial potential are taken that bring its outputs on the grid closest to those without. Layers run as
the chip runs them, so that nothing is estimated. It takes seconds; `--time-steps` and `--weight-bits` of a training
recipe take epochs and give more.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.nn import Grid, TTFSNetwork
from ttfs_triton.nn.chip import check_registers
from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.terminal import TerminalTable

# Shares of the unit that rounds the weights best: outputs, which add many of them up, may like another.
UNIT_SHARES = tuple(2 ** (step / 4) for step in range(-4, 5))
# Changes of an initial potential, in threshold heights: each range four times finer than the one before.
REACHES, POINTS = (0.4, 0.1, 0.025), 9

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerError:
    """How far a layer's outputs on the grid are from those without.

    Attributes:
        name: of the layer.
        before, after: root of the mean squared difference, in windows, or in threshold heights for a readout; with the
            units that round the weights best, and calibrated.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class GridCalibration:
    """What calibration did to a network.

    Attributes:
        grid: of the chip.
        layers: in their order, the readout last.
        images: how many decided.
    """

    grid: Grid
    layers: tuple[LayerError, ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        layers = [asdict(layer) for layer in self.layers]
        return {"grid": self.grid.to_dict(), "images": self.images, "layers": layers}

    def table(self) -> TerminalTable:
        """For a terminal."""
        title = f"Calibrated on {self.images} images for {self.grid.text()}"
        rows = [(layer.name, f"{layer.before:.4f}", f"{layer.after:.4f}") for layer in self.layers]
        caption = "root mean square, in windows; of the readout in threshold heights"
        return TerminalTable(title, ("layer", "difference rounded", "calibrated"), rows, caption=caption)


@torch.no_grad()
def calibrate_grid(
    network: TTFSNetwork,
    images: Tensor,
    grid: Grid,
    *,
    batch_size: int = 64,
    progress: Callable[[str], None] = lambda name: None,
) -> GridCalibration:
    """Put a network on a grid, in place, with the units and initial potentials that fit it best.

    Args:
        network: spiking; without a grid, or on another one, which it leaves.
        images: [N, in_channels, height, width], as the network reads them; some hundred are enough.
        grid: of the chip.
        batch_size: images that run at once.
        progress: told each layer's name before it is calibrated.
    Returns:
        What it did to each layer.
    Raises:
        ValueError: an analog network, no images, or registers that cannot hold the threshold.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> found = calibrate_grid(cnn1(width=0.25), torch.rand(8, 1, 28, 28), Grid(8, 4))
        >>> [layer.name for layer in found.layers]
        ['conv1', 'conv2', 'fc1', 'readout']
    """
    if network.config.analog or len(images) == 0:
        got = "an ANN" if network.config.analog else "no images"
        raise ValueError(f"calibrate_grid: network and images must be a spiking network and some images; got {got}.")
    training = network.training
    network.eval()
    network.put_on_grid(None)
    batches = list(images.split(batch_size))
    steps: list[tuple[str, nn.Module, Run]] = [(*named, named[1]) for named in network.features.named_children()]
    steps.append(("readout", network.readout, _read_out(network)))
    targets, values = {}, batches
    for name, layer, run in steps:
        values = [run(value) for value in values]
        if isinstance(layer, WeightedLayer):
            targets[name] = values
    network.put_on_grid(grid)
    check_registers(network)
    errors, values = [], batches
    for name, layer, run in steps:
        if isinstance(layer, WeightedLayer):
            progress(name)
            errors.append(LayerError(name, *_fit(layer, run, values, targets[name])))
        values = [run(value) for value in values]
    network.train(training)
    return GridCalibration(grid, tuple(errors), len(images))


def _read_out(network: TTFSNetwork) -> Run:
    """The readout's potentials, whatever it decides by: spike times of outputs are too coarse to fit."""
    at = "end" if network.config.readout == "potential_end" else "start"
    return lambda x: network.readout.potential(x, at=at)


def _fit(layer: WeightedLayer, run: Run, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[float, float]:
    """Root mean squared differences before and after."""

    def error() -> Tensor:
        total = torch.zeros(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
        for x, target in zip(inputs, targets, strict=True):
            square = (run(x).double() - target.double()).square_()
            total += square.transpose(0, 1).flatten(1).sum(1)
        return total

    before = error()
    if layer.log2_unit is not None:
        first = layer.log2_unit.clone()
        _choose(layer.log2_unit, error, [first + torch.tensor(share).log2() for share in UNIT_SHARES])
    if layer.bias is not None and layer.kind != "analog":
        for reach in REACHES:
            first = layer.bias.clone()
            _choose(layer.bias, error, [first + change for change in torch.linspace(-reach, reach, POINTS).tolist()])
    count = sum(target.numel() for target in targets)
    return ((before.sum() / count) ** 0.5).item(), ((error().sum() / count) ** 0.5).item()


def _choose(parameter: nn.Parameter, error: Callable[[], Tensor], candidates: Sequence[Tensor]) -> None:
    """Give each channel, or all of them where there is one number for all, the candidate of least error."""
    best, least = parameter.detach().clone(), None
    for candidate in [best, *candidates]:
        parameter.copy_(candidate)
        found = error()
        if len(parameter) == 1:
            found = found.sum(0, keepdim=True)
        if least is None:
            least = found
            continue
        best, least = torch.where(found < least, candidate, best), torch.minimum(found, least)
    parameter.copy_(best)
