"""Calibrates a trained network for a chip's grid, without training: scales of weights and initial potentials.

Layer by layer, an output channel gets first a scale, then an initial potential, which bring its outputs on the grid
closest to its outputs without a grid. A layer reads the outputs of calibrated layers, computed as on the chip.
Calibration takes seconds. Training on the grid (`--time-steps`, `--weight-bits`) starts from it and takes epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ttfs_triton.commands import CalibrateOptions
from ttfs_triton.convert.calibration import Batches, Calibration, calibrate_layers, choose_least, fit_bias
from ttfs_triton.convert.shared import check_folder, draw, load_training_images, write_folder
from ttfs_triton.data.images import draw_indices
from ttfs_triton.model import TTFSModel, find_model
from ttfs_triton.nn import Grid, put_on_grid
from ttfs_triton.nn.graph import Stage, network_graph
from ttfs_triton.nn.prepare import check_registers
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.trace import evaluating
from ttfs_triton.table import print_whole

# Candidate scales, as multiples of the scale that rounds single weights best; for sums of weights, another may be best.
UNIT_SHARES = tuple(2 ** (step / 4) for step in range(-4, 5))
SCORED = 500
"""Number of training images, other than those of the calibration, on which accuracy is told."""
# Changes of an initial potential, in threshold heights: a range is four times finer than the one before it.
REACHES, POINTS = (0.4, 0.1, 0.025), 9


@torch.no_grad()
def calibrate_grid(network: nn.Module, images: Tensor, grid: Grid, *, batch_size: int = 64) -> Calibration:
    """Put a network on a chip's grid, in place, with the scales and initial potentials that fit it best.

    Args:
        network: spiking network that `network_graph` accepts; if it is on a grid already, that grid is replaced.
        images: [N, in_channels, height, width], as the network reads them; a hundred are enough.
        grid: the chip's grid.
        batch_size: images that run at once.
    """
    graph = network_graph(network, images.shape[1:])
    if len(images) == 0:
        raise ValueError("calibrate_grid: images must hold at least one image; got none.")

    def without_grid(stage: Stage, inputs: Batches) -> list[Tensor]:
        layer: Any = stage.layer
        layer.put_on_grid(None)
        outputs = _outputs(stage, inputs)
        layer.put_on_grid(grid)
        return outputs

    with evaluating(network):
        put_on_grid(network, grid)
        check_registers(network)
        layers = calibrate_layers(graph, images, batch_size, without_grid, _outputs, _fit)
    return Calibration(layers, len(images), grid)


def _outputs(stage: Stage, inputs: Batches) -> list[Tensor]:
    """Activations of a layer, or potentials of a readout, whose spike times would be too coarse to fit."""
    if isinstance(readout := stage.layer, Readout):
        return [readout.one_pass(x).potential(at_end=readout.at == "potential_end") for x, _ in inputs]
    return [stage.activations(*batch) for batch in inputs]


def _fit(stage: Stage, inputs: Batches, wanted: Sequence[Tensor]) -> float:
    """Calibrate a layer; returns the initial potentials' mean change."""
    layer = stage.weighted

    def error() -> Tensor:
        total = torch.zeros(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
        for outputs, target in zip(_outputs(stage, inputs), wanted, strict=True):
            total += (outputs.double() - target.double()).square_().transpose(0, 1).flatten(1).sum(1)
        return total

    if layer.log2_unit is not None:
        unit = layer.log2_unit.clone()
        choose_least(layer.log2_unit, error, [unit + torch.tensor(share).log2() for share in UNIT_SHARES])
    if layer.bias is None or layer.kind == "analog":
        return 0.0
    return fit_bias(layer.bias, error, REACHES, POINTS)


@torch.no_grad()
def _right(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Number of images that a network classifies correctly."""
    with evaluating(network):
        return sum(
            int((network(part).argmax(1).cpu() == right).sum())
            for part, right in zip(images.split(64), labels.split(64), strict=True)
        )


def run(options: CalibrateOptions) -> Calibration:
    """Calibrate a network, print the result and write the output folder."""
    check_folder("calibrate", options.output_dir)
    grid = Grid(options.time_steps, options.weight_bits, options.weight_units == "channel", options.state_bits)
    model, console = TTFSModel.from_files(find_model(options.model), options.network).float(), Console()
    count = options.images + SCORED
    data = load_training_images(options, model.description, count)
    images, others = draw(options, data, count).tensor_split([options.images])
    labels = data.labels[draw_indices(torch.arange(len(data)), count, options.seed)][options.images :]
    with console.status("calibrating"):
        network = model.network.to(images.device)
        scored = len(others) > 0 and list(data.class_names) == list(model.class_names)  # labels count in their order
        before = _right(network, others, labels) if scored else 0
        calibration = calibrate_grid(network, images, grid)
    print_whole(calibration.table())
    report = {"calibration.json": calibration.to_dict()}
    if scored:
        after = _right(network, others, labels) / len(others)
        print(f"accuracy on {len(others):,} other training images: {before / len(others):.2%} → {after:.2%}")
    elif len(others) > 0:
        print("no accuracy: the images' classes are not the network's, by name and order")
    write_folder(options.output_dir, model.cpu().state_dict(), model.description, report)
    return calibration
