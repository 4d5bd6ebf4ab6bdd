"""Simulations of a network at several numbers of time steps, ready to be priced: the one model of all energies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rich.progress import Progress
from torch import nn

from ttfs_triton.hardware.energy.run_options import Run, RunOptions
from ttfs_triton.hardware.simulation.simulation import Simulation
from ttfs_triton.hardware.simulation.simulator import simulate


def simulate_at(model: nn.Module, batches: Iterable[Any], steps: Iterable[int], **options: Any) -> list[Simulation]:
    """Simulate a network at each of some numbers of time steps a window.

    Args:
        model, options: as of `simulate`.
        batches: as of `simulate`, but able to be gone through again.
        steps: each once.
    Raises:
        NetworkError, ValueError: as `simulate`.
    """
    with Progress(transient=True) as bar:
        order = bar.track(list(dict.fromkeys(steps)), description="simulation")
        return [simulate(model, batches, steps=number, **options) for number in order]


def simulated_run(found: Simulation, options: RunOptions | None = None) -> Run:
    """A simulation as it is priced: its counts, and the work of its neurons.

    Args:
        found: the simulation.
        options: whose other attributes count; in closed form, neurons do none of that work.
    """
    if options is not None and options.implementation == "closed_form":
        return Run(found.counts, options)
    settings = found.settings
    own = RunOptions(steps=settings.steps) if options is None else options
    return Run(found.counts, replace(own, steps=settings.steps, gating=settings.gating, activity=found.activity))
