"""The frontier of a network: accuracy against spikes, energy, time steps, weight bits, faults and decision time."""

from ttfs_triton.frontier.options import FrontierOptions, Point

__all__ = ["FrontierOptions", "Point"]
