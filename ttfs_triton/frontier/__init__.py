"""The frontier: what accuracy costs in spikes, energy, time steps, bits and time, by networks trained for each."""

from ttfs_triton.frontier.options import FrontierOptions, Point

__all__ = ["FrontierOptions", "Point"]
