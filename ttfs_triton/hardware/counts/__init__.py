"""Exact counts of a running network."""
