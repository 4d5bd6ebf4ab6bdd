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


def assert_finite_differences(function, parameters: list[Tensor], *, step: float = 1e-6, seed: int = 0) -> None:
    """Directional derivatives by autograd and by central differences agree, for each parameter."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.autograd.grad(function(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
                values.append(function())
                parameter.add_(direction, alpha=-sign * step)
        numeric = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-7)
