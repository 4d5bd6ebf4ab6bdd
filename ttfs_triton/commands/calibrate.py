"""`ttfs calibrate`: its options."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ttfs_triton.command_line import run_command
from ttfs_triton.commands.convert import CalibrationImages


class CalibrateOptions(CalibrationImages):
    """Options of `ttfs calibrate`: network, grid, images, output folder."""

    model: Annotated[str, tyro.conf.Positional]
    """Trained network: a run's folder, a folder with config.json and model.safetensors, owner/name[@revision] on the
    Hub, or bundled:NAME."""
    output_dir: Path
    """New or empty folder for model.safetensors, config.json and calibration.json."""
    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if it is one of your own."""

    # ---- grid of a chip
    time_steps: int = Field(ge=1, le=1024)
    """Time steps in a window."""
    weight_bits: int | None = Field(None, ge=2, le=16)
    """Bits of a weight, sign included. Default: weights are not rounded."""
    weight_units: Literal["channel", "tensor"] = "channel"
    """Quantisation granularity: one scale per output channel, or one per layer ("tensor")."""
    state_bits: int | None = Field(None, ge=4, le=62)
    """Bits of the registers that hold a neuron's slope and potential, which saturate. Default: as wide as needed."""

    images: int = Field(128, ge=1, lt=2**31)
    """Number of calibration images, drawn by --seed."""


main = partial(run_command, CalibrateOptions, "ttfs_triton.convert.calibrate_grid")
