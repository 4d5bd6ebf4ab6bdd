"""Spike times of all neurons for one image: the data of the spike raster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.trace import evaluating, network_graph


@dataclass(frozen=True)
class LayerSpikes:
    """Spikes of one layer for one image; tensors are on the CPU.

    Attributes:
        name: of the layer; "input" for a latency encoder.
        window: number of its window, 0 for the first; layer l fires from time l on.
        neurons: of the layer, before pooling.
        index: [spikes] int64, which neurons fired, in their order in memory.
        time: [spikes] float32, when, from the image's start, in windows.
        length: of its window; 1 for all but a readout with another ramp.
    """

    name: str
    window: int
    neurons: int
    index: Tensor
    time: Tensor
    length: float = 1.0


@torch.no_grad()
def spikes_of(network: nn.Module, image: Tensor) -> tuple[LayerSpikes, ...]:
    """Spike times of all layers for one image.

    Args:
        network: what `network_graph` takes, on any device; runs in evaluation mode and comes back in the mode it had.
        image: [channels, height, width], as the network takes them.
    Returns:
        One entry a layer, in the order of the windows; the readout's neurons on their own ramp.
    Raises:
        ValueError: no such network, or an image of another shape.
    """
    if image.ndim != 3:
        raise ValueError(
            f"spikes_of: image must be [channels, height, width]; got {list(image.shape)}. Take one of the batch."
        )
    graph = network_graph(network, image.shape)
    layers: list[LayerSpikes] = []

    def fire(stage: Stage, arriving: Tensor, skip: Tensor | None) -> Tensor:
        length = 1.0
        if isinstance(stage.layer, Readout):
            activations = times = stage.layer.decide(arriving).spike_times[0]
            length = stage.layer.window
        else:
            activations = stage.activations(arriving, skip)
            flat = activations[0].flatten()
            times = torch.where(flat > 0, 1 - flat, torch.inf)
        times = times.float().cpu()
        index = times.isfinite().nonzero().flatten()
        name = "input" if stage.kind == "latency" else stage.name
        layers.append(LayerSpikes(name, stage.window, len(times), index, stage.window + times[index], length))
        return activations

    with evaluating(network):
        graph.run(image[None].to(next(network.parameters()).device), fire)
    return tuple(layers)
