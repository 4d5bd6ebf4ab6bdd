"""`ttfs calibrate`: puts a trained network on a chip's grid without training, writes a folder with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field
from rich.console import Console

from ttfs_triton.command_line import run_command
from ttfs_triton.convert.calibrate_grid import calibrate_grid
from ttfs_triton.convert.calibration import Calibration
from ttfs_triton.convert.command import CalibrationImages, check_folder, write_folder
from ttfs_triton.model import TTFSModel, find_model
from ttfs_triton.nn import Grid
from ttfs_triton.nn.grid import MOST_STEPS


class CalibrateOptions(CalibrationImages):
    """What to calibrate, for which grid, on which images, where to."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's folder, one with config.json and model.safetensors, owner/name[@revision] on the Hub, or bundled:NAME."""
    output_dir: Path
    """Folder for model.safetensors, config.json and calibration.json; must not hold anything."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if code of yours does."""

    # ---- grid of a chip
    time_steps: int = Field(ge=1, le=MOST_STEPS)
    """Time steps of a window."""
    weight_bits: int | None = Field(None, ge=2, le=16)
    """Bits of a weight, sign included. Default: weights are not rounded."""
    weight_units: Literal["channel", "tensor"] = "channel"
    """Quantisation granularity: one scale per output channel, or one per layer ("tensor")."""
    state_bits: int | None = Field(None, ge=4, le=62)
    """Bits of the registers that hold a neuron's slope and potential, which saturate. Default: as wide as it takes."""

    images: int = Field(512, ge=1)
    """How many images, drawn by the seed."""


def run(options: CalibrateOptions) -> Calibration:
    """Calibrate as asked, print what it did, write the folder.

    Raises:
        ConversionError: the folder holds something already; nothing has been written.
        ValueError: no such network, an ANN, a grid whose registers are too small, or unusable images.
        OSError, RuntimeError: images that cannot be had, or a folder that cannot be written.
    """
    check_folder(options.output_dir)
    grid = Grid(options.time_steps, options.weight_bits, options.weight_units == "channel", options.state_bits)
    model, console = TTFSModel.from_files(find_model(options.model), options.network).float(), Console()
    images = options.load("calibrate", model.description, options.images)
    with console.status("calibrating") as status:
        network = model.network.to(images.device)
        found = calibrate_grid(network, images, grid, progress=lambda name: status.update(f"calibrating {name}"))
    console.print(found.table())
    report = {"calibration.json": found.to_dict()}
    write_folder(options.output_dir, model.cpu().state_dict(), model.description, report)
    return found


main = partial(run_command, CalibrateOptions, run, prog="calibrate.py")
