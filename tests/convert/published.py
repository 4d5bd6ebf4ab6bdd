"""The paper's published networks, written anew from what its scripts compute, narrow, with the names of their files.

`Proxy` works with activations and reads images by spiking neurons, `Direct` with spike times behind an analog layer.
They share nothing with the code that they are compared with. A layer's spikes are kept in `fired`.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.convert.sources import Paper, named, paper_linear


class _Published(Paper):
    """Spiking: what fires is in `fired`, and the activation functions of the ANN are passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.fired: list[Tensor] = []

    def layers(self) -> list[nn.Module]:
        """All that computes something, up to the readout."""
        found = [*self.conv, nn.Flatten(), *self.fc]
        return [layer for layer in found if not isinstance(layer, nn.Hardtanh)]


class Proxy(_Published):
    """Activations; the first layer reads pixels of either sign, bright ones as spikes. Logits: A of the last."""

    def forward(self, x: Tensor) -> Tensor:
        self.fired = []
        *hidden, readout = self.layers()
        for layer in hidden:
            if isinstance(layer, nn.Sequential):  # a layer with weights, by its name
                x = _fire(layer, x)
                self.fired.append(x > 0)
            else:
                x = layer(x)
        return readout(x)


class Direct(_Published):
    """Times in the layer's own window, inf for none, behind a clamped convolution. Logits: potential at the end."""

    def forward(self, x: Tensor) -> Tensor:
        first, *hidden, readout = self.layers()
        analog = first(x).clamp(0, 1)
        times = torch.where(analog > 0, 1 - analog, math.inf)
        self.fired = [times != math.inf]
        for layer in hidden:
            if not isinstance(layer, nn.Sequential):
                times = -layer(-times)  # the earliest of a pool
                continue
            fired = times != math.inf
            slope = layer(fired.to(x.dtype))
            weighted = layer(torch.where(fired, times, 0.0))
            # From the input's window on: slope · t − weighted = 2 − t, as the threshold falls from 1 at t = 1.
            crossing = (2 + weighted) / (1 + slope)
            crossing = torch.where((crossing < 0) | (crossing > 2), math.inf, crossing)
            crossing = torch.where(slope >= 1 + weighted, 1.0, crossing) - 1
            times = torch.where(crossing < 0, math.inf, crossing)
            self.fired.append(times != math.inf)
        fired = times != math.inf
        return readout(fired.to(x.dtype)) + readout(torch.where(fired, 1 - times, 0.0))


class ForDigits(nn.Module):
    """The networks for MNIST: pixels are activations, convolutions are not padded; logits as of `Proxy`."""

    def __init__(self, kernel: int = 3, hidden: tuple[int, ...] = (16,)) -> None:
        super().__init__()
        side = ((28 - kernel + 1) // 2 - kernel + 1) // 2
        self.conv = nn.Sequential()
        for place, inputs, outputs in ((0, 1, 4), (3, 4, 6)):
            self.conv.add_module(str(place), named(cnn=nn.Conv2d(inputs, outputs, kernel, bias=False)))
        self.fc, features = nn.Sequential(), 6 * side**2
        for place, size in enumerate((*hidden, 10)):
            self.fc.add_module(str(2 * place), paper_linear(features, size))
            features = size

    def forward(self, x: Tensor) -> Tensor:
        for module in self.conv:
            x = nn.functional.max_pool2d(_fire(module, x), 2)
        x = x.flatten(1)
        for module in list(self.fc)[:-1]:
            x = _fire(module, x)
        return list(self.fc)[-1](x)


def _fire(layer: nn.Module, x: Tensor) -> Tensor:
    potential, slope = layer(x), layer((x > 0).to(x.dtype))
    inside = torch.where(potential + slope > 0, (potential + slope) / (1 + slope), 0.0)
    return torch.where(potential >= 1, 1.0, inside)


def saved(model: nn.Module, path: Path) -> Path:
    """As the published scripts save."""
    torch.save(model.state_dict(), path)
    return path
