"""`ttfs energy`: its options."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ttfs_triton.command_line import run_command
from ttfs_triton.commands.evaluate import ImageOptions
from ttfs_triton.option_rules import Needs


class EnergyOptions(ImageOptions):
    """Options of `ttfs energy`: two networks, images and chips."""

    more_rules: ClassVar = {"network": Needs("ttfs")}
    module: str
    """FILE.py:FUNCTION that builds the rate-coded network: a module from images [N, C, height, width] in [0, 1] to
    outputs [N, classes], which runs its time steps and resets its neurons."""
    library: Literal["snntorch", "spikingjelly"]
    """Library of its neurons."""
    ttfs: str | None = None
    """Network beside it, named as for `ttfs evaluate`, and simulated; --network builds it if your own code does."""
    chip: tuple[str, ...] = Field(default=("anp_i", "lemaire45:int8"), min_length=1)
    """Chips to price the counts on: names of presets, your own TOML files, or "all"."""
    steps: Annotated[int | None, Needs("ttfs")] = Field(default=None, ge=1, le=4096)
    """Time steps a window of the network of --ttfs. Default: the steps of its grid, or 32."""
    step_us: float | None = Field(default=None, gt=0)
    """Duration of a step in microseconds, for static power. Default: the chip's own, if it fixes one."""


main = partial(run_command, EnergyOptions, "ttfs_triton.evaluate.energy_command")
