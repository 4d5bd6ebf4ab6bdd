"""The result of an evaluation: figures, counts, energies, and one image's spikes. Pages and tables read it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ttfs_triton.chip import Simulation
from ttfs_triton.data.images import ImageData
from ttfs_triton.energy import Comparison, Counts, Estimate
from ttfs_triton.evaluate.deadline import DeadlineRow
from ttfs_triton.evaluate.load import LoadedNetwork
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.trace import evaluating, network_graph


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
        ValueError: the network is not accepted, or the image has another shape.
    """
    if image.ndim != 3:
        raise ValueError(
            f"spikes_of: image must be [channels, height, width]; got {list(image.shape)}. Take one of the batch."
        )
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

    @property
    def first_spike(self) -> str:
        """The first output spike, in a sentence."""
        last = self.spikes[-1]
        if not len(last.time):
            return "No output neuron fires."
        place = int(last.time.argmin())
        neuron, time = int(last.index[place]), float(last.time[place])
        name = self.class_names[neuron] if neuron < len(self.class_names) else str(neuron)
        return f"The first output spike is for class {name}, {time:.2f} windows after the image's start."

    @property
    def png(self) -> str:
        """The image as a PNG in base64; its channels are averaged unless there are 1 or 3."""
        pixels = self.image.detach().float().cpu().clamp(0, 1)
        if pixels.shape[0] not in (1, 3):
            pixels = pixels.mean(dim=0, keepdim=True)
        array = (255 * pixels).round().permute(1, 2, 0).numpy().astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG", optimize=True)
        return base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class PageData:
    """Everything that the page shows of one network on one data set; fields that are None or empty are left out.

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

    @property
    def layers(self) -> str:
        """The network's specification, or the builder of a network without a specification."""
        return self.network.get("specification") or self.network.get("builder", "")

    @property
    def headline_energy(self) -> Estimate | None:
        """The estimate for the headline, on `chip`; None without energy."""
        return next((found for found in self.energy if found.chip.name == self.chip), None)


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation: network, data, and all figures for the page."""

    loaded: LoadedNetwork
    data: ImageData
    page: PageData
