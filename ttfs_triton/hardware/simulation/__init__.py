"""Simulation of a network as hardware runs it: on a clock, in integers."""
