"""What the page of an evaluated network shows: tables, figures and the words that depend on its data."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ttfs_triton.hardware import Estimate
from ttfs_triton.report import energy_tables, figures, tables
from ttfs_triton.report.data import PageData, Sample
from ttfs_triton.report.frontier_figures import lines_svg, sections
from ttfs_triton.wording import energy, interval, number, percent

READOUTS = {
    "potential_start": "highest membrane potential of the output neurons at their window's start",
    "potential_end": "highest membrane potential of the output neurons at their window's end",
    "first_spike": "first output spike",
}


@dataclass(frozen=True)
class Fineprint:
    """What stands behind the estimates on one chip.

    Attributes:
        name: of the chip.
        prices: table of its prices.
        unpriced: terms that are in no sum, by why.
        assumptions, warnings: sentences.
    """

    name: str
    prices: tables.Table
    unpriced: dict[str, list[str]]
    assumptions: list[str]
    warnings: list[str]

    @classmethod
    def of(cls, name: str, estimates: list[Estimate]) -> Fineprint:
        """From all estimates on a chip."""
        return cls(
            name,
            energy_tables.prices_table(estimates),
            energy_tables.why_missing(*estimates),
            list(dict.fromkeys(line for found in estimates for line in found.assumptions)),
            list(dict.fromkeys(line for found in estimates for line in found.warnings)),
        )


def page_context(data: PageData) -> dict[str, Any]:
    """Everything that the template names; what the data lack is None or empty."""
    sweep, comparison, deadlines = data.sweep, data.comparison, data.deadlines
    curve = {"": [(row.deadline, row.accuracy) for row in deadlines]}
    # The chip of the headline comes first; estimates of the comparison join their chip's.
    estimates = sorted(data.energy, key=lambda found: found is not data.headline_energy)
    estimates += [] if comparison is None else list(comparison.estimates)
    chips = list(dict.fromkeys(found.chip.name for found in estimates))
    return {
        "data": data,
        "layers": layers(data),
        "low_high": interval(data.accuracy, data.images),
        "headlines": headlines(data),
        "network": network_facts(data),
        "activity": tables.activity_table(data.counts),
        "operations": tables.operations_table(data.counts),
        "sample": None if data.sample is None else sample_view(data.sample),
        "histograms": figures.histograms_svg(data.counts),
        "energy": energy_tables.chips_table(data.energy),
        "energy_figure": figures.energy_svg(data.energy),
        "comparison": None if comparison is None else energy_tables.comparison_table(comparison),
        "break_even": [] if comparison is None else energy_tables.break_even(comparison),
        "simulation": None if data.simulation is None else tables.simulation_table(data.simulation),
        "sweep": None if sweep is None else tables.sweep_table(sweep),
        "sweep_details": None if sweep is None else tables.sweep_details(sweep),
        "sweep_figure": None if sweep is None else figures.sweep_svg(sweep),
        "deadlines": tables.deadline_table(deadlines),
        "deadline_figure": lines_svg("deadline", curve, "deadline, windows from the image's start", data.images),
        "curves": sections(data.frontier, data.here) if data.frontier else [],
        "fineprint": [Fineprint.of(name, [found for found in estimates if found.chip.name == name]) for name in chips],
        "facts": tables.pairs_table("How this page was made", data.facts.items()),
    }


def headlines(data: PageData) -> list[tuple[str, str, str]]:
    """The figures on top of the page: what each is, the figure, and what it depends on."""
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
        found.append(("simulated in integers", percent(data.simulation.accuracy), note))
    found.append(("sparsity", f"{data.counts.sparsity:.4f}", "spikes a hidden neuron; lower is sparser"))
    if data.headline_energy is not None:
        found.append(_energy_headline(data.headline_energy))
    return found


def _energy_headline(found: Estimate) -> tuple[str, str, str]:
    total, title = found.total, "energy of an image"
    if total is None:
        return title, "–", f"{found.chip.name} has no price"
    shown = total if found.memory_included is None else found.memory_included
    notes = [
        found.chip.name + (", memory included" if found.memory_included else ", without memory, which has no price")
    ]
    if found.compute_only:
        notes.append(f"{energy(found.compute_only.nominal)} by arithmetic alone")
    ranged = shown.low != shown.high
    notes.append(f"{energy(shown.low)} to {energy(shown.high)}" if ranged else "no range published")
    notes.append(f"{found.status} prices")
    if missing := len({term.name for term in found.unpriced}):
        notes.append(f"{missing} {'term' if missing == 1 else 'terms'} not in it")
    if "synop" in found.chip.prices and found.chip.capacity.neurons is None and found.chip.capacity.synapses is None:
        notes.append("capacity not published")
    return title, energy(shown.nominal), "; ".join(notes)


def network_facts(data: PageData) -> tables.Table:
    """Key facts of the network."""
    config, total = data.network, data.counts.total()
    height, width = config.get("image_size", ("?", "?"))
    facts = {
        "layers": layers(data) or None,
        "width": config.get("width"),
        "images": f"{config.get('in_channels', '?')} × {height} × {width}",
        "classes": config.get("classes"),
        "encoder": config.get("encoder"),
        "decision": READOUTS.get(str(config.get("readout")), config.get("readout")),
        "σ (psp_persistence)": config.get("psp_persistence"),
        "neurons": number(total["neurons"]),
        "synapses": number(total["synapses"]),
        "weights and biases": number(total["weights"] + total["biases"]),
    }
    return tables.pairs_table("The network", [(name, value) for name, value in facts.items() if value is not None])


def layers(data: PageData) -> str:
    """The specification, or what built a network that has none."""
    return data.network.get("specification") or data.network.get("builder", "")


def sample_view(sample: Sample) -> dict[str, Any]:
    """The image, and its raster in a figure and in words."""
    last, first = sample.spikes[-1], "No output neuron fires."
    if len(last.time):
        place = int(last.time.argmin())
        neuron, time = int(last.index[place]), float(last.time[place])
        name = sample.class_names[neuron] if neuron < len(sample.class_names) else str(neuron)
        first = f"The first output spike is that of class {name}, {time:.2f} windows after the image's start."
    return {
        "png": png_base64(sample.image),
        "spikes": sum(len(layer.time) for layer in sample.spikes),
        "first": first,
        "figure": figures.raster_svg(sample.spikes),
    }


def png_base64(image: Tensor) -> str:
    """An image [channels, height, width] in [0, 1] as PNG in base64; other than 1 or 3 channels are averaged."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.mean(dim=0, keepdim=True)
    array = (255 * pixels).round().permute(1, 2, 0).numpy().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
