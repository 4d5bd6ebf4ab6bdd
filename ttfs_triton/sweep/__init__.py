"""Sweeps of trained networks: accuracy against spikes, energy, time steps, weight bits, faults and decision time."""

from ttfs_triton.commands.sweep import FrontierOptions, Point

__all__ = ["FrontierOptions", "Point"]
