"""Random activations and layers of the tests."""

import torch
from torch import Tensor, nn


def activations(*shape: int, seed: int, silent: float = 0.3, saturated: float = 0.1) -> Tensor:
    """Float64 activations in [0, 1]: some silent, some saturated, the others uniform."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(shape, generator=generator, dtype=torch.float64)
    kind = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.where(kind < silent, 0.0, torch.where(kind < silent + saturated, 1.0, values))


def randomised(layer: nn.Module, seed: int, scale: float = 1.0) -> nn.Module:
    """The layer with all its parameters drawn anew: biases and gains too, which start at constants."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * (0.7 + 0.2 * noise if name.endswith("weight_gain") else 0.5 * noise))
    return layer
