"""Exact counts of spikes and operations in a running network."""
