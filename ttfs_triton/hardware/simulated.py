"""Simulations as they are priced: the one model of all energies."""

from dataclasses import replace

from ttfs_triton.hardware.energy.run_options import Run, RunOptions
from ttfs_triton.hardware.simulation.simulation import Simulation


def simulated_run(found: Simulation, options: RunOptions | None = None) -> Run:
    """A simulation as it is priced: its counts, and the work of its neurons.

    Args:
        found: the simulation.
        options: whose other attributes count; in closed form, neurons do none of that work.
    """
    if options is not None and options.implementation == "closed_form":
        return Run(found.counts, options)
    steps, gating = found.settings.steps, found.settings.gating
    own = RunOptions(steps=steps) if options is None else options
    return Run(found.counts, replace(own, steps=steps, gating=gating, activity=found.activity))
