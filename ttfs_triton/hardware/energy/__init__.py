"""Energy of a network on a chip, as counts times prices, beside the energy of equivalent ANNs."""
