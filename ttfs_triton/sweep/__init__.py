"""Sweeps of trained networks: accuracy against spikes, energy, time steps, weight bits, faults and decision time."""

from ttfs_triton.sweep.options import FrontierOptions, Point

__all__ = ["FrontierOptions", "Point"]
