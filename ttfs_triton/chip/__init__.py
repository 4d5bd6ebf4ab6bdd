"""Simulation of a network as hardware runs it: on a clock, in integers."""

from ttfs_triton.chip.simulation import Simulation, SimulationSettings, simulated_run
from ttfs_triton.chip.simulator import simulate, simulate_at

__all__ = ["Simulation", "SimulationSettings", "simulate", "simulate_at", "simulated_run"]
