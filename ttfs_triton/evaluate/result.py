"""The result of an evaluation as data: scores, counts, energies, and one image's spikes. Tables and pages read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ttfs_triton.chip import Simulation
from ttfs_triton.energy import Comparison, Counts, Estimate
from ttfs_triton.evaluate.deadline import DeadlineRow
from ttfs_triton.nn import Readout, Stage, network_graph
from ttfs_triton.nn.trace import evaluating


@dataclass(frozen=True)
class LayerSpikes:
    """Spikes of one layer for one image; tensors are on the CPU.

    Attributes:
        name: name of the layer; "input" for a latency encoder.
        window: number of the layer's window, from 0; layer l fires from time l on.
        neurons: number of neurons before pooling.
        index: [spikes] int64, indices of the neurons that fired, in memory order.
        time: [spikes] float32, spike times from the image's start, in windows.
    """

    name: str
    window: int
    neurons: int
    index: Tensor
    time: Tensor


@torch.no_grad()
def spikes_of(network: nn.Module, image: Tensor) -> tuple[LayerSpikes, ...]:
    """Spike times of all layers for one image.

    Args:
        network: a network for `network_graph`, on any device. It runs in evaluation mode; its mode is restored.
        image: [channels, height, width], in the form that the network takes.
    Returns:
        One entry for each layer, in the order of the windows; the readout's spikes are on its own ramp.
    Raises:
        NetworkError: as `network_graph` raises it.
    """
    graph = network_graph(network, image.shape)
    layers: list[LayerSpikes] = []

    def fire(stage: Stage, arriving: Tensor, skip: Tensor | None) -> Tensor:
        if isinstance(stage.layer, Readout):
            activations = times = stage.layer.decide(arriving).spike_times[0]
        else:
            activations = stage.activations(arriving, skip)
            flat = activations[0].flatten()
            times = torch.where(flat > 0, 1 - flat, torch.inf)
        times = times.float().cpu()
        index = times.isfinite().nonzero().flatten()
        name = "input" if stage.kind == "latency" else stage.name
        layers.append(LayerSpikes(name, stage.window, len(times), index, stage.window + times[index]))
        return activations

    with evaluating(network):
        graph.run(image[None].to(next(network.parameters()).device), fire)
    return tuple(layers)


@dataclass(frozen=True)
class Sample:
    """One image, its spikes and its decision.

    Attributes:
        image: [channels, height, width], in [0, 1].
        spikes: spikes of all layers, from `spikes_of`.
        label, prediction: names of the image's class and of the predicted class.
        class_names: class name of each output neuron, for the first output spike; if empty, its number is shown.
    """

    image: Tensor
    spikes: tuple[LayerSpikes, ...]
    label: str
    prediction: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """All figures of one network on one data set; a page leaves out fields that are None or empty.

    Attributes:
        title, dataset: title of the page, and name of the data set.
        network: the network's configuration, `NetworkConfig.to_dict()`.
        images: number of images evaluated.
        accuracy, first_spike_accuracy: share of correct images by the readout, and by the first output spike.
        ties, no_spike: number of images with several first output spikes at once, and without an output spike.
        counts: counts of the network, from `count`.
        sample: an image for the spike raster.
        energy: one estimate for each chip.
        chip: name of the chip whose energy is a headline figure, one of `energy`; None without energy.
        comparison, simulation, deadlines: further analyses.
        facts: how the page was made (versions, device, date, command), in the order shown.
    """

    title: str
    network: Mapping[str, Any]
    dataset: str
    images: int
    accuracy: float
    first_spike_accuracy: float
    ties: int
    no_spike: int
    counts: Counts
    sample: Sample | None = None
    energy: tuple[Estimate, ...] = ()
    chip: str | None = None
    comparison: Comparison | None = None
    simulation: Simulation | None = None
    deadlines: tuple[DeadlineRow, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
