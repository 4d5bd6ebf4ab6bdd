"""What a page shows of its data: texts, tables and figures, section by section."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ttfs_triton.hardware import Counts, Estimate
from ttfs_triton.report import energy_tables, figures, tables
from ttfs_triton.report.data import PageData, Sample
from ttfs_triton.report.frontier_curves import curves
from ttfs_triton.report.frontier_figures import deadline_svg
from ttfs_triton.wording import energy, interval, number, percent, small_percent

READOUTS = {
    "potential_start": "highest membrane potential of the output neurons at their window's start",
    "potential_end": "highest membrane potential of the output neurons at their window's end",
    "first_spike": "first output spike",
}


@dataclass(frozen=True)
class Headline:
    """One figure on top.

    Attributes:
        label: what it is.
        value: the figure.
        note: what it depends on.
    """

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Fineprint:
    """What stands behind one estimate.

    Attributes:
        name: of the chip.
        prices: table of its prices.
        unpriced: (terms, why) that are in no sum.
        assumptions, warnings: sentences.
    """

    name: str
    prices: tables.Table
    unpriced: tuple[tuple[str, str], ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def page_context(data: PageData) -> dict[str, Any]:
    """Everything that the template names; what the data lack is None or empty.

    Args:
        data: of the page.
    """
    sweep, simulation, comparison = data.sweep, data.simulation, data.comparison
    return {
        "title": data.title,
        "subtitle": f"{_layers(data)} on {data.dataset}, {number(data.images)} images",
        "headlines": headlines(data),
        "network": network_facts(data),
        "activity": tables.activity_table(data.counts),
        "operations": tables.operations_table(data.counts),
        "activity_note": _activity_note(data),
        "sample": None if data.sample is None else sample_view(data.sample),
        "histograms": figures.histograms_svg(data.counts),
        "histograms_alt": _histograms_alt(data.counts),
        "energy": energy_tables.chips_table(data.energy) if data.energy else None,
        "energy_figure": figures.energy_svg(data.energy),
        "energy_alt": _energy_alt(data.energy),
        "comparison": None if comparison is None else energy_tables.comparison_table(comparison),
        "break_even": [] if comparison is None else energy_tables.break_even(comparison),
        "simulation": None if simulation is None else tables.simulation_table(simulation),
        "sweep": None if sweep is None else tables.sweep_table(sweep),
        "sweep_details": None if sweep is None else tables.sweep_details(sweep),
        "sweep_figure": None if sweep is None else figures.sweep_svg(sweep),
        "deadlines": data.deadlines,
        "deadline_figure": None if data.deadlines is None else deadline_svg(data.deadlines.rows),
        "curves": curves(data.frontier, data.here) if data.frontier else [],
        "fineprint": fineprint(data),
        "limits": limits(data),
        "facts": tables.pairs_table("How this page was made", data.facts.items()) if data.facts else None,
    }


def headlines(data: PageData) -> list[Headline]:
    """The figures on top of the page."""
    low, high = interval(data.accuracy, data.images)
    found = [
        Headline("accuracy", percent(data.accuracy), f"95% interval {percent(low, 1)} to {percent(high, 1)}"),
        Headline("by the first spike", percent(data.first_spike_accuracy), _first_spike_note(data)),
    ]
    if data.simulation is not None and data.simulation.accuracy is not None:
        settings, images = data.simulation.settings, data.simulation.samples
        bits = "weights not rounded" if settings.weight_bits is None else f"{settings.weight_bits}-bit weights"
        note = f"{settings.steps} time steps, {bits}" + (f"; {number(images)} images" if images != data.images else "")
        found.append(Headline("simulated in integers", percent(data.simulation.accuracy), note))
    found.append(Headline("sparsity", f"{data.counts.sparsity:.4f}", "spikes a hidden neuron; lower is sparser"))
    if data.headline_energy is not None:
        found.append(_energy_headline(data.headline_energy))
    return found


def _first_spike_note(data: PageData) -> str:
    return f"{number(data.ties)} tied, {number(data.no_spike)} without an output spike"


def _energy_headline(found: Estimate) -> Headline:
    total = found.total
    if total is None:
        return Headline("energy of an image", "–", f"{found.chip.name} has no price")
    shown = total if found.memory_included is None else found.memory_included
    low, high = energy(shown.low), energy(shown.high)
    note = found.chip.name + (", memory included" if found.memory_included else ", without memory, which has no price")
    note += f"; {energy(found.compute_only.nominal)} by arithmetic alone" if found.compute_only else ""
    note += f"; {low} to {high}" if low != high else "; no range published"
    missing = len(energy_tables.missing(found))
    note += f"; {found.status} prices" + (f"; {missing} terms not in it" if missing else "")
    return Headline("energy of an image", energy(shown.nominal), note)


def network_facts(data: PageData) -> tables.Table:
    """Key facts of the network."""
    config, total = data.network, data.counts.total()
    height, width = config.get("image_size", ("?", "?"))
    facts = [
        ("layers", _layers(data) or None),
        ("width", config.get("width")),
        ("images", f"{config.get('in_channels', '?')} × {height} × {width}"),
        ("classes", config.get("classes")),
        ("encoder", config.get("encoder")),
        ("decision", READOUTS.get(str(config.get("readout")), config.get("readout"))),
        ("σ (psp_persistence)", config.get("psp_persistence")),
        ("neurons", number(total["neurons"])),
        ("synapses", number(total["synapses"])),
        ("weights and biases", number(total["weights"] + total["biases"])),
    ]
    return tables.pairs_table("The network", [(name, value) for name, value in facts if value is not None])


def _layers(data: PageData) -> str:
    """The specification, or what built a network that has none."""
    return data.network.get("specification") or data.network.get("builder", "")


def sample_view(sample: Sample) -> dict[str, Any]:
    """The image, and its raster in a figure and in words."""
    spikes = sum(len(layer.time) for layer in sample.spikes)
    last = sample.spikes[-1]
    if len(last.time):
        place = int(last.time.argmin())
        neuron, time = int(last.index[place]), float(last.time[place])
        name = sample.class_names[neuron] if neuron < len(sample.class_names) else str(neuron)
        first = f"The first output spike is that of class {name}, {time:.2f} windows after the image's start."
    else:
        first = "No output neuron fires."
    height, width = sample.image.shape[1:]
    return {
        "png": png_base64(sample.image),
        "alt": f"The image of class {sample.label} whose spikes are shown, {width} by {height} pixels",
        "label": sample.label,
        "prediction": sample.prediction,
        "right": sample.label == sample.prediction,
        "text": f"{spikes:,} spikes in {len(sample.spikes)} windows. {first}",
        "figure": figures.raster_svg(sample.spikes),
        "raster_alt": f"Spike raster: time across, one band a layer, {spikes:,} spikes. {first}",
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


def fineprint(data: PageData) -> list[Fineprint]:
    """What stands behind the estimates, the chosen chip first, then by chip; comparisons join their chip's."""
    chosen = data.headline_energy
    estimates = sorted(data.energy, key=lambda found: found is not chosen)
    estimates += [] if data.comparison is None else list(data.comparison.estimates)
    chips = []
    for name in dict.fromkeys(found.chip.name for found in estimates):
        own = [found for found in estimates if found.chip.name == name]
        chips.append(
            Fineprint(
                name,
                energy_tables.prices_table(own),
                tuple((", ".join(terms), why) for why, terms in energy_tables.why_missing(*own).items()),
                tuple(dict.fromkeys(line for found in own for line in found.assumptions)),
                tuple(dict.fromkeys(line for found in own for line in found.warnings)),
            )
        )
    return chips


def limits(data: PageData) -> list[str]:
    """What the figures do not say, in sentences."""
    low, high = interval(data.accuracy, data.images)
    lines = [
        f"Accuracy is of {number(data.images)} images of {data.dataset}: with 95% confidence, that on all images like "
        f"them lies between {percent(low, 1)} and {percent(high, 1)}."
    ]
    if data.counts.samples != data.images:
        lines.append(f"Spikes and operations were counted over {number(data.counts.samples)} images.")
    if data.energy or data.comparison:
        lines += [
            "Energies are estimates: exact counts times published prices. Nothing was measured on a chip.",
            "A range has every price at its low end at once, then at its high end: it bounds, it is no standard "
            "deviation. A price without a published range counts as exact, so some ranges are too narrow.",
            "Chips differ in process, precision and in what their prices hold; energies of two chips compare only as "
            "far as these agree.",
        ]
    if data.energy and data.simulation is not None:
        counted, simulated = (
            number(counts.total()["synaptic_operations"] / counts.samples)
            for counts in (data.counts, data.simulation.counts)
        )
        lines.append(
            f"Energies are of the network as simulated, {simulated} synaptic operations an image; the tables of "
            f"activity and operations are of the closed form, {counted}. Rounded weights and times move spikes."
        )
    if data.sweep is not None and data.sweep.samples != data.images:
        count = number(data.sweep.samples)
        lines.append(f"The sweep ran over {count} images; differences below its own interval are chance.")
    return lines


def _activity_note(data: PageData) -> str:
    counts = data.counts
    parts = [f"Means over {number(counts.samples)} images."]
    if counts.input.neurons:
        share = counts.input.spikes / (counts.input.neurons * counts.samples)
        parts.append(
            f"Of the {number(counts.input.neurons)} input pixels, "
            f"{number(counts.input.spikes / counts.samples)} spike ({small_percent(share)})."
        )
    parts.append(
        "Saturated neurons fire at the window's very start; never active ones fired for none of the images. Pooling "
        "comes after the neurons, so not all spikes are delivered."
    )
    if str(data.network.get("readout", "")).startswith("potential"):
        parts.append("The readout decides by potentials: its spikes here are those on the hidden layers' ramp.")
    return " ".join(parts)


def _histograms_alt(counts: Counts) -> str:
    layers = [layer for layer in counts.layers if layer.spikes]
    means = ", ".join(f"{layer.name} {layer.summed_spike_time / layer.spikes:.2f}" for layer in layers)
    return f"Histograms of spike times in the window, a picture a layer. Mean times in windows: {means}."


def _energy_alt(estimates: tuple[Estimate, ...]) -> str:
    totals = [(found.total, found.chip.name) for found in estimates if found.total is not None]
    if not totals:
        return ""
    low, high = (pick(totals, key=lambda entry: entry[0].nominal) for pick in (min, max))
    ends = (f"{energy(total.nominal)} on {name}" for total, name in (low, high))
    return f"Energy of an image by chip, with ranges, on a logarithmic axis: from {' to '.join(ends)}."
