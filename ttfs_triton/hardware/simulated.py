"""From a simulation to what `estimate` prices."""

from dataclasses import replace

from ttfs_triton.hardware.energy.estimate import Run, RunOptions
from ttfs_triton.hardware.simulation.simulation import Simulation


def simulated_run(found: Simulation, options: RunOptions | None = None) -> Run:
    """Counts and options of a simulation, to be priced: estimate(run.counts, chip, run.options).

    Args:
        found: the simulation.
        options: how it runs on the chip. Steps, gating and activity are the simulation's; a closed form has none.
    """
    if options is not None and options.implementation == "closed_form":
        return Run(found.counts, options)
    steps, gating = found.settings.steps, found.settings.gating
    own = RunOptions(steps=steps) if options is None else options
    return Run(found.counts, replace(own, steps=steps, gating=gating, activity=found.activity))
