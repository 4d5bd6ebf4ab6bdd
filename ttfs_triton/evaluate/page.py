"""The page of an evaluation, as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image
from torch import Tensor

from ttfs_triton.atomic import write_text
from ttfs_triton.chip import Simulation
from ttfs_triton.energy import Estimate
from ttfs_triton.evaluate import figures, tables
from ttfs_triton.evaluate.measure import EvaluationResult, Sample
from ttfs_triton.nn.statistics import layer_table
from ttfs_triton.wording import energy, interval, number, percent, small_percent

READOUTS = {
    "potential_start": "highest membrane potential of the output neurons at their window's start",
    "potential_end": "highest membrane potential of the output neurons at their window's end",
    "first_spike": "first output spike",
}
ADDRESS = re.compile(r"((?:https?://|\b(?:github\.com|doi\.org|arxiv\.org)/)[\w./~%?&=#:+@-]*[\w/])")
TIED = re.compile(r"(?<=×) (?=\d)|(?<=\d) (?=[pnµm]?J\b)")


def write_page(path: Path, data: EvaluationResult) -> Path:
    """Write the page as an HTML file into an existing folder, in place of an older file; returns its path.

    Raises:
        RuntimeError: matplotlib is not installed.
        OSError: the file cannot be written; an existing file is untouched.
    """
    write_text(Path(path), render_page(data))
    return Path(path)


def render_page(data: EvaluationResult) -> str:
    """The page as HTML text; equal data give equal text. Raises RuntimeError without matplotlib."""
    chips: dict[str, list[Estimate]] = {}  # the headline's chip is first
    for estimate in (headline_energy(data), *data.energy, *data.comparison.estimates):
        chips.setdefault(estimate.chip.name, []).append(estimate)
    return render(
        "page.html",
        data=data,
        layers=data.network.get("specification") or data.network.get("builder", ""),
        headlines=headlines(data),
        decision=page_decision(data),
        readouts=READOUTS,
        interval=interval(data.scores.accuracy, data.scores.images),
        deadline_curve={"": [(row.deadline, row.accuracy) for row in data.deadlines]},
        deadlines=figures.DEADLINE_AXIS,
        layer_table=layer_table,
        first_spike=first_spike,
        png=png,
        chips=chips,
    )


def headline_energy(data: EvaluationResult) -> Estimate:
    """The estimate for the headline, on the result's `chip`."""
    return next(estimate for estimate in data.energy if estimate.chip.name == data.chip)


def first_spike(sample: Sample) -> str:
    """The first output spike, in a sentence."""
    last = sample.spikes[-1]
    if not len(last.time):
        return "No output neuron fires."
    place = int(last.time.argmin())
    neuron, time = int(last.index[place]), float(last.time[place])
    name = sample.class_names[neuron] if neuron < len(sample.class_names) else str(neuron)
    return f"The first output spike is for class {name}, {time:.2f} windows after the image's start."


def png(image: Tensor) -> str:
    """An image [C, H, W] in [0, 1] as a PNG in base64; its channels are averaged unless there are 1 or 3."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.mean(dim=0, keepdim=True)
    array = (255 * pixels).round().permute(1, 2, 0).numpy().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def render(template: str, package: str = "ttfs_triton.evaluate", **names: Any) -> str:
    """HTML text from a template in a package's folder, which sees `names` and the modules `tables` and `figures`."""
    figures.require_matplotlib("write_page")
    environment = template_environment(package)
    environment.filters["linked"] = linked
    environment.globals.update(tables=tables, figures=figures)
    return environment.get_template(template).render(**names)


def template_environment(package: str, *, autoescape: bool = True) -> Environment:
    """Jinja environment for templates of `package` and of this one, with filters for numbers; undefined names raise."""
    loader = ChoiceLoader([PackageLoader(name, ".") for name in (package, "ttfs_triton.evaluate")])
    environment = Environment(
        loader=loader, autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, percent=percent, small_percent=small_percent)
    return environment


def linked(text: str) -> Markup:
    """Escaped text as HTML: web addresses become links, and no line breaks after × or before a unit of energy."""
    parts = list[str | Markup](ADDRESS.split(TIED.sub("\u00a0", text)))  # every second part is an address
    for place, address in enumerate(parts[1::2]):
        target = address if address.startswith("http") else f"https://{address}"
        parts[2 * place + 1] = Markup('<a href="{}" rel="noopener">{}</a>').format(target, address)
    return Markup("").join(map(escape, parts))


Scores = tuple[int, float, float, int]
"""Number of images, accuracies by the readout and by the first output spike, and images in which output spikes tie."""


def decision_lines(at: str, scores: Scores, *, clocked: bool, simulation: Simulation | None = None) -> list[str]:
    """Sentences on the decision that a chip makes, and on what the first output spike gains and costs.

    Args:
        at: the decision that the readout was trained for, a key of `READOUTS`.
        clocked: whether spikes of the scored network are in whole time steps.
        simulation: the simulation with these scores, for latencies.
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
    return lines


def page_decision(data: EvaluationResult) -> list[str]:
    """`decision_lines` for the figures of a page: those of the simulation, if there is one."""
    simulation, scores = data.simulation, data.scores
    figures: Any = (scores.images, scores.accuracy, scores.first_spike_accuracy, scores.ties)
    if simulation is not None:
        figures = simulation.samples, simulation.accuracy, simulation.first_spike_accuracy, simulation.ties
    clocked = simulation is not None or data.network.get("grid") is not None
    return decision_lines(data.network["readout"], figures, clocked=clocked, simulation=simulation)


def headlines(data: EvaluationResult) -> list[tuple[str, str, str]]:
    """Headline figures of the page: (title, figure, note)."""
    scores, simulation = data.scores, data.simulation
    low, high = interval(scores.accuracy, scores.images)
    spikes = f"{number(scores.ties)} tied, {number(scores.no_spike)} without an output spike"
    figures = [
        ("accuracy", percent(scores.accuracy), f"95% interval {percent(low, 1)} to {percent(high, 1)}"),
        ("by the first spike", percent(scores.first_spike_accuracy), spikes),
    ]
    if simulation is not None:
        settings = simulation.settings
        bits = "weights not rounded" if settings.weight_bits is None else f"{settings.weight_bits}-bit weights"
        faults = f"; on a chip with {settings.faults.text()}" if settings.faults else ""
        figures.append(
            ("simulated in integers", percent(simulation.accuracy), f"{settings.steps} time steps, {bits}{faults}")
        )
    figures.append(("activity", f"{data.counts.sparsity:.4f}", "spikes a hidden neuron; lower is sparser"))
    return [*figures, _energy_headline(headline_energy(data), bound=simulation is None)]


def _energy_headline(estimate: Estimate, *, bound: bool) -> tuple[str, str, str]:
    shown = estimate.memory_included or estimate.total
    notes = [estimate.chip.name + (", memory included" if estimate.memory_included else ", without memory: no price")]
    if bound:
        notes.append("an upper bound: not simulated")
    if estimate.compute_only:
        notes.append(f"{energy(estimate.compute_only.nominal)} by arithmetic alone")
    if shown is not None and shown.low != shown.high:
        notes.append(f"{energy(shown.low)} to {energy(shown.high)}")
    if missing := dict.fromkeys(term.name for term in estimate.unpriced):
        notes.append(f"{', '.join(missing)} not included")
    return "energy of an image", energy(shown and shown.nominal), "; ".join(notes)
