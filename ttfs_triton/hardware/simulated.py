"""Simulations in the form that estimates price."""

from dataclasses import replace

from ttfs_triton.hardware.energy.estimate import Run, RunOptions
from ttfs_triton.hardware.simulation.simulation import Simulation


def simulated_run(found: Simulation, options: RunOptions | None = None) -> Run:
    """Counts and neurons' work of a simulation, as estimates take them.

    Args:
        found: the simulation.
        options: whose other attributes count; in closed form, neurons do none of that work.
    """
    if options is not None and options.implementation == "closed_form":
        return Run(found.counts, options)
    steps, gating = found.settings.steps, found.settings.gating
    own = RunOptions(steps=steps) if options is None else options
    return Run(found.counts, replace(own, steps=steps, gating=gating, activity=found.activity))
