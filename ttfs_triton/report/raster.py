"""When every neuron of a network fires for one image: data of the spike raster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttfs_triton.hardware.simulation.stages import Stage, network_stages
from ttfs_triton.nn.readout import Readout


@dataclass(frozen=True)
class LayerSpikes:
    """Spikes of one layer for one image.

    Attributes:
        name: of the layer; "input" for a latency encoder.
        window: number of its window, 0 for the first; layer l fires from time l on.
        neurons: of the layer, before pooling.
        index: [spikes] int64, which neurons fired, in their order in memory; on the CPU.
        time: [spikes] float32, when, from the image's start, in windows; on the CPU.
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
        network: what `network_stages` takes, on any device; runs in evaluation mode and comes back in the mode it had.
        image: [channels, height, width], as the network takes them.
    Returns:
        One entry a layer, in the order of the windows; the readout's neurons on their own ramp.
    Raises:
        NotImplementedError: a network with layers that do not spike, or that are not known.
        ValueError: an image of another shape.
    """
    if image.ndim != 3:
        raise ValueError(
            f"spikes_of: image must be [channels, height, width]; got {list(image.shape)}. Take one of the batch."
        )
    stages = network_stages(network)
    was_training = network.training
    network.eval()
    try:
        return _run(stages, image[None].to(next(network.parameters()).device))
    finally:
        network.train(was_training)


def _run(stages: tuple[Stage, ...], activations: Tensor) -> tuple[LayerSpikes, ...]:
    layers: list[LayerSpikes] = []
    for window, stage in enumerate(stages):
        arriving = stage.deliver(activations)
        length = 1.0
        if isinstance(stage.layer, Readout):
            times, length = stage.layer.decide(arriving).spike_times[0], stage.layer.window
        else:
            activations = stage.layer(arriving)
            flat = activations[0].flatten()
            times = torch.where(flat > 0, 1 - flat, torch.inf)
        times = times.float().cpu()
        index = times.isfinite().nonzero().flatten()
        name = "input" if stage.kind == "latency" else stage.name
        layers.append(LayerSpikes(name, window, len(times), index, window + times[index], length))
    return tuple(layers)
