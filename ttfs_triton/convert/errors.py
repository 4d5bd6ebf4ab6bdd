"""What can go wrong between a file of weights and a network, each with the remedy in its message."""


class ConversionError(ValueError):
    """Weights that cannot become the network asked for; nothing has been written."""


class WeightsError(ConversionError):
    """Weights that cannot be read: not there, not reachable, damaged, or not plain tensors."""
