"""What an evaluation found, on its way to the terminal, files and the page."""

from dataclasses import dataclass

from ttfs_triton.data.images import ImageData
from ttfs_triton.evaluation.load import LoadedNetwork
from ttfs_triton.hardware import Comparison, Counts, Report, Simulation, Sweep
from ttfs_triton.scoring import Evaluation


@dataclass(frozen=True)
class Found:
    """Everything that an evaluation found.

    Attributes:
        loaded, data: what was scored on what.
        evaluation: accuracy of the closed form.
        counts: of the closed form.
        reports: energy on each chip; of the simulated network if it was simulated.
        comparison: with alternatives, on the first chip that prices those, else on the first.
        simulation, sweep: None if not asked for.
    """

    loaded: LoadedNetwork
    data: ImageData
    evaluation: Evaluation
    counts: Counts
    reports: tuple[Report, ...]
    comparison: Comparison
    simulation: Simulation | None
    sweep: Sweep | None
