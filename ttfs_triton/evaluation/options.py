"""Options of an evaluation, and its results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from ttfs_triton.data.images import ImageData
from ttfs_triton.evaluation.load import LoadedNetwork
from ttfs_triton.hardware.simulation.simulator import Own
from ttfs_triton.nn import Grid
from ttfs_triton.report import PageData
from ttfs_triton.scoring import Evaluation
from ttfs_triton.shared_options import FaultOptions


class EvaluationOptions(FaultOptions):
    """Which network, which images, which hardware, with which faults. Positional: the run or checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, tyro.conf.Positional]
    """A run's folder, one with config.json and model.safetensors, a .safetensors file with config.json beside it,
    owner/name[@revision] on the Hub, or bundled:NAME, which comes with the package."""

    network: str | None = None
    """FILE.py:FUNCTION that builds the network, if code of yours does."""

    # ---- data
    dataset: str | None = None
    """Hub data set, or "sample". Default: as the run was trained."""
    data_dir: Path | None = None
    """Local folder with parquet files or class folders of images; no network is used."""
    image_column: str | None = None
    """Column of the images. Default: detected (image, img)."""
    label_column: str | None = None
    """Column of the labels. Default: detected (label, fine_label)."""
    max_test_samples: int | None = Field(None, ge=1)
    """Use only this many test images: a quick look."""
    batch_size: int = Field(250, ge=1)
    """Images a batch."""

    # ---- hardware
    chip: tuple[str, ...] = ("anp_i", "lemaire45:int8")
    """Chips to price the counts on: names of presets, TOML files of yours, or "all". The first is shown in detail.
    Alternatives are compared on the first that prices an ANN's multiplications and its memory, else on
    lemaire45:int8; with "all", that one is shown in detail."""
    steps: Annotated[int, Field(ge=1)] | Own = "network"
    """Time steps a window, of the simulation and of the energy. network: as its grid has it, or 32."""
    step_us: float | None = Field(None, gt=0)
    """Duration of a step in microseconds, for static power. Default: the chip's, if it fixes one."""
    latency_us: float | None = Field(None, gt=0)
    """Duration of an image in microseconds, for static power, in place of that of its steps; an ANN has none."""
    clock_mhz: float | None = Field(None, gt=0)
    """Clock, for idle power. Default: the chip's."""
    hops_per_spike: float | None = Field(None, ge=0)
    """Tiles that a delivered spike crosses, all its messages together. Default: not priced."""
    weight_bits: Annotated[int, Field(ge=2, le=16)] | Own | None = "network"
    """Bits of a weight in the simulation; None leaves weights as they are. network: as its grid has it, or 8."""
    gating: bool = True
    """Neurons rest before their first input spike and behind their own."""
    implementation: Literal["clock_driven", "closed_form"] = "clock_driven"
    """How neurons are priced: adding up in every step, or by one multiply-accumulate a spike and a division."""
    rate_steps: int = Field(8, ge=1)
    """Time steps of the rate-coded network in the comparison."""
    rate: float = Field(0.1, gt=0, le=1)
    """Its mean spikes a neuron and step."""
    simulation: bool = True
    """Run the network as hardware would, in integers. Neurons' work then comes from there."""
    fault_seed: int = Field(0, ge=0)
    """Seed of the chip whose faults the simulation has."""
    deadlines: bool = False
    """Find accuracy against decision time, by the earliest output spike."""
    sweep: bool = False
    """Also simulate at 4 to 128 steps and 2 to 16 bits; 36 simulations."""

    # ---- output
    output_dir: Path | None = None
    """Write evaluation.json, energy.csv, sweep.csv and figures there; must not hold an evaluation already."""
    report: Path | None = None
    """Write one self-contained HTML page there."""
    frontier: Path | None = None
    """Folder that `ttfs sweep` wrote, or its frontier.json: the page shows where the network lies on it."""
    overwrite: bool = False
    """Replace what is at --output-dir and --report."""
    sample: int = Field(0, ge=0)
    """Test image whose spikes the report shows."""
    cpu: bool = False
    """Use the CPU even where there is a GPU."""

    def on(self, grid: Grid | None) -> EvaluationOptions:
        """The same for a network on a grid, or without one: steps and bits as numbers."""
        steps, bits = (32, 8) if grid is None else (grid.time_steps, grid.weight_bits)
        return self.model_copy(
            update={
                "steps": steps if self.steps == "network" else self.steps,
                "weight_bits": bits if self.weight_bits == "network" else self.weight_bits,
            }
        )


@dataclass(frozen=True)
class Found:
    """An evaluation: network, data, accuracy of the closed form, and all figures as a page shows them."""

    loaded: LoadedNetwork
    data: ImageData
    evaluation: Evaluation
    page: PageData
