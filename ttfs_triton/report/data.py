"""What a page shows of one evaluated network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ttfs_triton.hardware import Comparison, Counts, Estimate, Simulation, Sweep
from ttfs_triton.report.frontier_table import FrontierRow
from ttfs_triton.report.raster import LayerSpikes
from ttfs_triton.scoring.deadline import DeadlineRow


@dataclass(frozen=True)
class Sample:
    """One image and what the network did with it.

    Attributes:
        image: [channels, height, width], in [0, 1].
        spikes: of all layers, as `spikes_of` gives them.
        label: name of its class.
        prediction: name of the class that the network decided for.
        class_names: one name an output neuron, to name the first output spike; empty names it by its number.
    """

    image: Tensor
    spikes: tuple[LayerSpikes, ...]
    label: str
    prediction: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageData:
    """One network, evaluated on one data set. What is None or empty is left out.

    Attributes:
        title: of the page.
        network: its configuration, `NetworkConfig.to_dict()`.
        dataset: name.
        images: evaluated.
        accuracy, first_spike_accuracy: shares of images, by the readout's potentials and by the first output spike.
        ties: images with several first output spikes at the same time.
        no_spike: images without an output spike.
        counts: of `count`.
        sample: an image for the raster.
        energy: one estimate a chip.
        chip: whose energy is among the headline figures. Default: the first one that prices memory, or anything.
        comparison: with other ways of computing the network.
        simulation: on the clock, with quantised weights.
        sweep: over time steps and weight bits.
        deadlines: accuracy by decision time.
        frontier, here: points of a sweep, and this network among them.
        facts: how the page was made (versions, device, date, command), in the order in which they are shown.
    Raises:
        ValueError: no images, a share outside [0, 1], or a chip without an estimate.
    """

    title: str
    network: Mapping[str, Any]
    dataset: str
    images: int
    accuracy: float
    first_spike_accuracy: float
    ties: int
    no_spike: int
    counts: Counts
    sample: Sample | None = None
    energy: tuple[Estimate, ...] = ()
    chip: str | None = None
    comparison: Comparison | None = None
    simulation: Simulation | None = None
    sweep: Sweep | None = None
    deadlines: tuple[DeadlineRow, ...] = ()
    frontier: tuple[FrontierRow, ...] = ()
    here: FrontierRow | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images < 1 or self.counts.samples < 1:
            raise ValueError(f"PageData: images must be at least 1; got {self.images}, {self.counts.samples} counted.")
        for name in ("accuracy", "first_spike_accuracy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"PageData: {name} must be a share in [0, 1]; got {getattr(self, name)}.")
        chips = [found.chip.name for found in self.energy]
        if self.chip is not None and self.chip not in chips:
            raise ValueError(f"PageData: chip must be one of {chips}, which have estimates; got {self.chip}.")

    @property
    def headline_energy(self) -> Estimate | None:
        """The estimate among the headline figures: that of `chip`, or the first one with memory, or with a price."""
        if self.chip is not None:
            return next(found for found in self.energy if found.chip.name == self.chip)
        priced = [found for found in self.energy if found.total is not None]
        return next((found for found in priced if found.memory_included is not None), priced[0] if priced else None)
