"""The page of an evaluation: figures, counts, energies and one image's spikes, as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image
from torch import Tensor, nn

from ttfs_triton.atomic import write_text
from ttfs_triton.chip import Simulation
from ttfs_triton.energy import Comparison, Counts, Estimate
from ttfs_triton.evaluate import figures, tables
from ttfs_triton.evaluate.deadline import DeadlineRow
from ttfs_triton.nn import Readout, Stage, network_graph
from ttfs_triton.nn.statistics import layer_table
from ttfs_triton.nn.trace import evaluating
from ttfs_triton.wording import energy, interval, number, percent, small_percent

READOUTS = {
    "potential_start": "highest membrane potential of the output neurons at their window's start",
    "potential_end": "highest membrane potential of the output neurons at their window's end",
    "first_spike": "first output spike",
}
ADDRESS = re.compile(r"((?:https?://|\b(?:github\.com|doi\.org|arxiv\.org)/)[\w./~%?&=#:+@-]*[\w/])")
TIED = re.compile(r"(?<=×) (?=\d)|(?<=\d) (?=[pnµm]?J\b)")


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


def write_page(path: Path, data: PageData) -> Path:
    """Write the page as an HTML file into an existing folder, in place of an older one; returns its path.

    Raises:
        RuntimeError: matplotlib is not installed.
        OSError: the file cannot be written; an existing file is untouched.
    """
    write_text(Path(path), render_page(data))
    return Path(path)


def render_page(data: PageData) -> str:
    """The page as HTML text; equal data give equal text. Raises RuntimeError without matplotlib."""
    chips: dict[str, list[Estimate]] = {}  # the headline's chip is first
    estimates = sorted(data.energy, key=lambda found: found is not data.headline_energy)
    for found in (*estimates, *(data.comparison.estimates if data.comparison else ())):
        chips.setdefault(found.chip.name, []).append(found)
    return render(
        "page.html",
        data=data,
        headlines=headlines(data),
        decision=page_decision(data),
        readouts=READOUTS,
        interval=interval(data.accuracy, data.images),
        deadline_curve={"": [(row.deadline, row.accuracy) for row in data.deadlines]},
        deadlines=figures.DEADLINE_AXIS,
        layer_table=layer_table,
        chips=chips,
    )


def render(template: str, package: str = "ttfs_triton.evaluate", **names: Any) -> str:
    """A template of a package's folder as HTML text; it sees `names` and the modules `tables` and `figures`."""
    figures.require_matplotlib("write_page")
    environment = template_environment(package)
    environment.filters["linked"] = linked
    environment.globals.update(tables=tables, figures=figures)
    return environment.get_template(template).render(**names)


def template_environment(package: str, *, autoescape: bool = True) -> Environment:
    """Jinja environment for templates of a package and of this one; filters format numbers. Undefined names raise."""
    loader = ChoiceLoader([PackageLoader(name, ".") for name in (package, "ttfs_triton.evaluate")])
    found = Environment(
        loader=loader, autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters.update(number=number, percent=percent, small_percent=small_percent)
    return found


def linked(text: str) -> Markup:
    """Escaped text as HTML, with web addresses as links and no line break after × or before a unit of energy."""
    parts = list[str | Markup](ADDRESS.split(TIED.sub("\u00a0", text)))  # every second part is an address
    for place, address in enumerate(parts[1::2]):
        target = address if address.startswith("http") else f"https://{address}"
        parts[2 * place + 1] = Markup('<a href="{}" rel="noopener">{}</a>').format(target, address)
    return Markup("").join(map(escape, parts))


Scores = tuple[int, float, float, int]
"""Number of images, accuracies by the readout and by the first output spike, and images in which output spikes tie."""


def decision_lines(at: str, scores: Scores, *, clocked: bool, simulation: Simulation | None = None) -> list[str]:
    """Sentences: the decision that a chip makes, and what the first output spike gains and costs.

    Args:
        at: the decision that the readout was trained for, a key of `READOUTS`.
        clocked: whether the scores are of spikes in whole time steps.
        simulation: the simulation with these scores, for latencies and for ties that potentials break.
    """
    images, accuracy, first_spike, ties = scores
    lines = [f"The network was trained to decide by the {READOUTS[at]}, and a chip decides so."]
    if at != "first_spike":
        lost, comes = 100 * (accuracy - first_spike), ""
        if simulation is not None:
            early = simulation.potential_latency_steps - simulation.mean_latency_steps
            comes = f" comes {abs(early):.1f} steps {'earlier' if early >= 0 else 'later'} on average, and"
        costs = f"costs {lost:.2f} points of accuracy" if lost > 0.005 else "costs no accuracy"
        lines.append(f"The first output spike{comes} {costs}.")
    if ties:
        share = f"{number(ties)} of {number(images)} images ({small_percent(ties / images)})"
        lines.append(f"Output spikes tie at the earliest {'step' if clocked else 'time'} in {share}.")
    if ties and clocked:
        lines.append("More time steps make ties rarer.")
        if simulation is not None:
            right = percent(simulation.tie_broken_accuracy)
            lines.append(f"If the highest potential breaks ties, the first spike is right for {right}.")
    return lines


def page_decision(data: PageData) -> list[str]:
    """`decision_lines` for the figures of a page: those of the simulation, if there is one."""
    found, scores = data.simulation, (data.images, data.accuracy, data.first_spike_accuracy, data.ties)
    if found is not None and found.accuracy is not None and found.first_spike_accuracy is not None:
        scores = found.samples, found.accuracy, found.first_spike_accuracy, found.ties
    clocked = found is not None or data.network.get("grid") is not None
    return decision_lines(data.network["readout"], scores, clocked=clocked, simulation=found)


def headlines(data: PageData) -> list[tuple[str, str, str]]:
    """Headline figures of the page, each as (title, figure, note)."""
    low, high = interval(data.accuracy, data.images)
    spikes = f"{number(data.ties)} tied, {number(data.no_spike)} without an output spike"
    found = [
        ("accuracy", percent(data.accuracy), f"95% interval {percent(low, 1)} to {percent(high, 1)}"),
        ("by the first spike", percent(data.first_spike_accuracy), spikes),
    ]
    if data.simulation is not None and data.simulation.accuracy is not None:
        settings, images = data.simulation.settings, data.simulation.samples
        bits = "weights not rounded" if settings.weight_bits is None else f"{settings.weight_bits}-bit weights"
        note = f"{settings.steps} time steps, {bits}" + (f"; {number(images)} images" if images != data.images else "")
        note += f"; on a chip with {settings.faults.text()}" if settings.faults else ""
        found.append(("simulated in integers", percent(data.simulation.accuracy), note))
    found.append(("activity", f"{data.counts.sparsity:.4f}", "spikes a hidden neuron; lower is sparser"))
    if data.headline_energy is not None:
        found.append(_energy_headline(data.headline_energy, bound=data.simulation is None))
    return found


def _energy_headline(found: Estimate, *, bound: bool) -> tuple[str, str, str]:
    total, title = found.total, "energy of an image"
    if total is None:
        return title, "–", f"{found.chip.name} has no price"
    shown = total if found.memory_included is None else found.memory_included
    notes = [found.chip.name + (", memory included" if found.memory_included else ", without memory: no price")]
    if bound:
        notes.append("an upper bound: not simulated")
    if found.compute_only:
        notes.append(f"{energy(found.compute_only.nominal)} by arithmetic alone")
    ranged = shown.low != shown.high
    notes.append(f"{energy(shown.low)} to {energy(shown.high)}" if ranged else "no range published")
    notes.append(f"{found.status} prices")
    if missing := dict.fromkeys(term.name for term in found.unpriced):
        notes.append(f"{', '.join(missing)} not included")
    if tables.capacity_unpublished(found.chip):
        notes.append("capacity not published")
    return title, energy(shown.nominal), "; ".join(notes)
