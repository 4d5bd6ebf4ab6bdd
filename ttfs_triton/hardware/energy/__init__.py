"""Energy of a network on a chip, counts times prices, and of its alternatives."""
