"""`ttfs evaluate`: its options, and those of all commands that measure networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from ttfs_triton.command_line import run_command
from ttfs_triton.option_rules import Needs
from ttfs_triton.shared_options import CommandOptions, FaultOptions

Bits = Annotated[int, Field(ge=2, le=16)]
Steps = Annotated[int, Field(ge=1, le=4096)]
OfNetwork = Literal["network"]


class ImageOptions(CommandOptions):
    """Options of commands that run networks on test images: own code, images, device."""

    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if your own code does."""
    dataset: str | None = None
    """Hub data set, or "sample". Default: the data set of the run's training."""
    data_dir: Path | None = None
    """Local folder with parquet files or class folders of images; needs no internet access."""
    max_test_samples: int | None = Field(default=None, ge=1, lt=2**31)
    """Use only this many test images, for a quick look."""
    batch_size: int = Field(default=250, ge=1, lt=2**31)
    """Images in a batch of the measurements."""
    cpu: bool = False
    """Use the CPU even if there is a GPU."""


class MeasuringOptions(ImageOptions):
    """Options of commands that measure networks on test images: faults and decision time, besides `ImageOptions`."""

    fault_seed: Annotated[int, Needs(*FaultOptions.model_fields)] = Field(default=0, ge=0, lt=2**63)
    """Seed of the faults in simulations."""
    deadlines: bool = False
    """Measure accuracy against decision time, by the earliest output spike, for each network."""


class EvaluationOptions(FaultOptions, MeasuringOptions):
    """Options of an evaluation: network, images, hardware, faults and output. Positional: the run or checkpoint."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's folder, a folder with config.json and model.safetensors, a .safetensors file with config.json beside it,
    owner/name[@revision] on the Hub, or bundled:NAME for a network that comes with the package."""

    # ---- data
    image_column: str | None = None
    """Column with the images. Default: detected (image, img)."""
    label_column: str | None = None
    """Column with the labels. Default: detected (label, fine_label)."""

    # ---- hardware
    chip: tuple[str, ...] = Field(default=("anp_i", "lemaire45:int8"), min_length=1)
    """Chips to price the counts on: names of presets, your own TOML files, or "all". The first is shown in detail.
    ANNs are compared on the first chip that prices an ANN's multiplications and memory, or else on
    lemaire45:int8; with "all", the chip of the comparison is shown in detail."""
    steps: Steps | OfNetwork = "network"
    """Time steps a window, in simulation and energy. network: the steps of the network's grid, or 32 without a grid."""
    step_us: float | None = Field(default=None, gt=0)
    """Duration of a step in microseconds, for static power. Default: the chip's own, if it fixes one."""
    latency_us: float | None = Field(default=None, gt=0)
    """Duration of an image in microseconds, for static power. Default: its steps' duration; an ANN has no steps."""
    clock_mhz: float | None = Field(default=None, gt=0)
    """Clock frequency in MHz, for idle power. Default: the chip's own."""
    hops_per_spike: float | None = Field(default=None, ge=0)
    """Tiles that a delivered spike crosses, summed over its messages. Default: hops are not priced."""
    weight_bits: Annotated[Bits | OfNetwork | None, Needs("simulation")] = "network"
    """Bits of a weight in the simulation; None does not round. network: the bits of the network's grid, or 8."""
    gating: bool = True
    """Neurons rest before their first input spike and after their own spike."""
    simulation: bool = True
    """Simulate the network in integers, as hardware runs it, and price the simulated work of its neurons."""

    # ---- output
    output_dir: Path | None = None
    """Folder in which to write evaluation.json; must not hold one already."""
    report: Path | None = None
    """Path of the report, one self-contained HTML page, which ends in .html."""
    overwrite: bool = False
    """Replace existing files of --output-dir and --report."""
    sample: Annotated[int, Needs("report")] = Field(default=0, ge=0, lt=2**31)
    """Index of the test image whose spikes the report shows."""


main = partial(run_command, EvaluationOptions, "ttfs_triton.evaluate.command")
