"""Layers of a network as SpikingJelly has them, with our spikes in place of its neurons', for its counters."""

from collections.abc import Sequence

import torch
from spikingjelly.activation_based import layer, neuron  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.weighted import WeightedConv2d


class Replay(neuron.IFNode):
    """An integrate-and-fire neuron whose spikes are given, so that both sides count the same ones."""

    spikes: Tensor

    def forward(self, *_: Tensor, **__: Tensor) -> Tensor:
        return self.spikes


class Twin(nn.Module):
    """The layers of stages, each fed with its own spikes; pooling lies between them, outside.

    Args:
        stages: those with synapses, in order.
        spiking: with neurons behind them; an ANN has none.
    """

    def __init__(self, stages: Sequence[Stage], spiking: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(like(stage, spiking) for stage in stages)
        self.neurons = nn.ModuleList(Replay(step_mode="m") for _ in stages) if spiking else ()

    def forward(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] = ()) -> None:
        """Run each layer.

        Args:
            inputs: of each layer, [T, N, ...] in {0, 1} for a spiking twin, else [N, ...].
            outputs: spikes of each layer's neurons, [T, N, ...].
        """
        for place, (weighted, values) in enumerate(zip(self.layers, inputs, strict=True)):
            current = weighted(values)
            if self.neurons:
                self.neurons[place].spikes = outputs[place]
                self.neurons[place](current)


def like(stage: Stage, spiking: bool) -> nn.Module:
    """SpikingJelly's layer of the same sizes and weights."""
    ours, mode = stage.weighted, {"step_mode": "m" if spiking else "s"}
    weight, bias = stage.synapses()
    if isinstance(ours, WeightedConv2d):
        kernel = (*ours.kernel_size,)
        theirs = layer.Conv2d(
            ours.in_channels, ours.out_channels, kernel, 1, ours.padding, bias=bias is not None, **mode
        )
    else:
        theirs = layer.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, **mode)
    with torch.no_grad():
        theirs.weight.copy_(weight)
        if bias is not None:
            theirs.bias.copy_(bias)
    return theirs


def train(remaining: Tensor, steps: int) -> Tensor:
    """Spikes as a train [steps, N, ...]: with k steps remaining a neuron fires at step `steps` − k, with 0 never."""
    return torch.stack([(remaining == steps - step).float() for step in range(steps)])
