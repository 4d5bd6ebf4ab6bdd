"""Calibrate a trained network for a chip's grid, without training: scales of weights and initial potentials.

Layer by layer, each sees what those before it, on the grid already, make of some images; every output channel gets the
scale and then the initial potential that bring its outputs on the grid closest to those without. Layers run as the chip
runs them, so that nothing is estimated. It takes seconds; `--time-steps` and `--weight-bits` of a training
recipe take epochs and give more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

from ttfs_triton.convert.calibration import around, batches, choose_least
from ttfs_triton.nn import Grid, put_on_grid
from ttfs_triton.nn.chip import check_registers
from ttfs_triton.nn.graph import Stage, readout_time
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.trace import network_graph
from ttfs_triton.terminal import TerminalTable

# Shares of the unit that rounds the weights best: outputs, which add many of them up, may like another.
UNIT_SHARES = tuple(2 ** (step / 4) for step in range(-4, 5))
# Changes of an initial potential, in threshold heights: each range four times finer than the one before.
REACHES, POINTS = (0.4, 0.1, 0.025), 9


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
        return to_jsonable_python(self) | {"grid": self.grid.to_dict()}

    def table(self) -> TerminalTable:
        """For a terminal."""
        title = f"Calibrated on {self.images} images for {self.grid.text()}"
        rows = [(layer.name, f"{layer.before:.4f}", f"{layer.after:.4f}") for layer in self.layers]
        caption = "root mean square, in windows; of the readout in threshold heights"
        return TerminalTable(title, ("layer", "difference rounded", "calibrated"), rows, caption=caption)


@torch.no_grad()
def calibrate_grid(
    network: nn.Module,
    images: Tensor,
    grid: Grid,
    *,
    batch_size: int = 64,
    progress: Callable[[str], None] = lambda name: None,
) -> GridCalibration:
    """Put a network on a grid, in place, with the scales and initial potentials that fit it best.

    Args:
        network: what `network_graph` takes, spiking; without a grid, or on another one, which it leaves.
        images: [N, in_channels, height, width], as the network reads them; some hundred are enough.
        grid: of the chip.
        batch_size: images that run at once.
        progress: told each layer's name before it is calibrated.
    Returns:
        What it did to each layer.
    Raises:
        NetworkError: as `network_graph`, or an ANN layer.
        ValueError: no images, or registers that cannot hold the threshold.
    Example:
        >>> from ttfs_triton.nn import cnn1
        >>> found = calibrate_grid(cnn1(width=0.25), torch.rand(8, 1, 28, 28), Grid(8, 4))
        >>> [layer.name for layer in found.layers]
        ['conv1', 'conv2', 'fc1', 'readout']
    """
    graph = network_graph(network, images.shape[1:])
    graph.require_spiking()
    if len(images) == 0:
        raise ValueError("calibrate_grid: images must be some images; got none.")
    training = network.training
    network.eval()
    _put_on_grid(network, None)
    targets: dict[str, Tensor] = {}
    errors: list[LayerError] = []

    def run(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        return torch.cat([_outputs(stage, x, delayed) for x, delayed in batches(inputs, skip, batch_size)])

    def keep(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        targets[stage.name] = run(stage, inputs, skip)
        return targets[stage.name]

    def fit(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind != "latency":
            progress(stage.name)
            parts = batches(inputs, skip, batch_size)
            errors.append(LayerError(stage.name, *_fit(stage, parts, targets.pop(stage.name).split(batch_size))))
        return run(stage, inputs, skip)

    graph.run(images, keep)
    _put_on_grid(network, grid)
    check_registers(network)
    graph.run(images, fit)
    network.train(training)
    return GridCalibration(grid, tuple(errors), len(images))


def _put_on_grid(network: nn.Module, grid: Grid | None) -> None:
    """By its own method, which notes it in its configuration, if it has one."""
    getattr(network, "put_on_grid", partial(put_on_grid, network))(grid)


def _outputs(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
    """Activations; of a readout its potentials, whatever it decides by: spike times are too coarse to fit."""
    if isinstance(stage.layer, Readout):
        return stage.layer.potential(inputs, at="end" if readout_time(stage.layer) == "potential_end" else "start")
    return stage.activations(inputs, skip)


def _fit(
    stage: Stage, inputs: Sequence[tuple[Tensor, Tensor | None]], targets: Sequence[Tensor]
) -> tuple[float, float]:
    """Root mean squared differences before and after."""
    layer = stage.weighted

    def error() -> Tensor:
        total = torch.zeros(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
        for (x, skip), target in zip(inputs, targets, strict=True):
            square = (_outputs(stage, x, skip).double() - target.double()).square_()
            total += square.transpose(0, 1).flatten(1).sum(1)
        return total

    before = error()
    if layer.log2_unit is not None:
        first = layer.log2_unit.clone()
        choose_least(layer.log2_unit, error, [first + torch.tensor(share).log2() for share in UNIT_SHARES])
    if layer.bias is not None and layer.kind != "analog":
        for reach in REACHES:
            choose_least(layer.bias, error, around(layer.bias, reach, POINTS))
    count = sum(target.numel() for target in targets)
    return ((before.sum() / count) ** 0.5).item(), ((error().sum() / count) ** 0.5).item()
