"""Counts times prices: what a network takes on a chip, and what else could compute it."""
